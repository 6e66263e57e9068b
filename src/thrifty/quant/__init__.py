"""One quantizer for gradients, states, weights and activations: blocks of values that share a scale."""

from thrifty.quant.blockwise import Quantised, dequantise, quantise
from thrifty.spec.formats import FORMATS, BlockFormat, block_format, lattice, uniform

__all__ = ["FORMATS", "BlockFormat", "Quantised", "block_format", "dequantise", "lattice", "quantise", "uniform"]
