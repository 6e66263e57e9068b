"""Dense decoders of every size, in the proportions of Llama 3: what a budget may be spent on.

Width about 128 times depth (Llama 3 8B: 4096 x 32; 405B: 16384 x 126), layers in fours, at least 12; heads of 128, up
to 8 key/value heads; ffn 3.5 times the width; head and embedding tied up to a width of 3072, as in Llama 3.2. Widths
divide well among ranks. Kaplan et al. 2020 (arXiv:2001.08361, figure 5) found the loss to change by under 2% over wide
ranges of such proportions.
"""

from __future__ import annotations

import math
from functools import lru_cache

from thrifty.cost.params import total_parameters
from thrifty.spec.job import ModelShape

HEAD, KV_HEADS, FEWEST_LAYERS, LAYERS_STEP = 128, 8, 12, 4
ASPECTS = (100, 165)  # least and most width for a layer
WIDEST_TIED = 3072
VOCABULARY = 128_256  # of Llama 3
WIDTHS = (256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, *range(4096, 16385, 1024),
          *range(18432, 24577, 2048))  # fmt: skip

Family = tuple[tuple[float, ModelShape], ...]  # parameters and shape, smallest first


@lru_cache(maxsize=8)
def family(vocabulary: int, sequence_length: int) -> Family:
    """Shapes from some fifty million to two trillion parameters."""
    shapes = [_shape(width, layers, vocabulary, sequence_length) for width in WIDTHS for layers in _depths(width)]
    return tuple(sorted(((float(total_parameters(shape)), shape) for shape in shapes), key=lambda pair: pair[0]))


def nearest(shapes: Family, parameters: float) -> tuple[float, ModelShape]:
    """The member whose size is nearest in ratio."""
    return min(shapes, key=lambda pair: abs(math.log(pair[0] / parameters)))


def _depths(width: int) -> list[int]:
    shallowest, deepest = width / ASPECTS[1], width / ASPECTS[0]
    depths = range(LAYERS_STEP, round(deepest) + 1, LAYERS_STEP)
    return [depth for depth in depths if depth >= max(shallowest, FEWEST_LAYERS)] or [FEWEST_LAYERS]


def _shape(width: int, layers: int, vocabulary: int, sequence_length: int) -> ModelShape:
    heads = width // HEAD
    ffn = -(-7 * width // 2 // 256) * 256
    return ModelShape(
        name=f"dense-{layers}x{width}", layers=layers, hidden=width, heads=heads, kv_heads=math.gcd(heads, KV_HEADS),
        ffn=ffn, head_dim=HEAD, vocab_size=vocabulary, max_positions=sequence_length, rope_theta=500000.0,
        tied_embeddings=width <= WIDEST_TIED, source="proportions of Llama 3",
    )  # fmt: skip
