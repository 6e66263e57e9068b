"""Number formats of blocks: what one value and one block cost in bits, and the levels that codes stand for.

A block is a run of consecutive values that shares its scales, each stored in bfloat16: the range of fp32, so the scale
of a tiny gradient does not vanish. Read by the quantizer and, without torch, by whoever prices a payload.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from thrifty.spec.errors import ThriftyError, did_you_mean

SCALE_BITS = 16


@dataclass(frozen=True)
class BlockFormat:
    """One way to write a block of values.

    Args:
        name: what settings call it.
        bits: of one packed code.
        kind: uniform (code times scale), levels (fixed levels times scale), means (two levels of the block's own,
            and signs), sign (one level and signs), float (an 8-bit float times scale), lattice (points of E8 times
            scale, eight values a point), root (code + 1 times scale, squared: of values that are never
            negative), square (the square of a signed whole number, times scale).
        block: values that share scales, unless the caller says otherwise.
        top: largest magnitude a code stands for, in units of the scale.
        levels: magnitudes of the codes of `levels`, in units of the scale, ascending.
        step: distance of levels in units of the block's rms, where the scale follows it: of `lattice`, and of `uniform`
            for an entropy coder; else 0.
    """

    name: str
    bits: int
    kind: Literal["uniform", "levels", "means", "sign", "float", "lattice", "root", "square"]
    block: int
    top: float
    levels: tuple[float, ...] = ()
    step: float = 0.0

    @property
    def scales(self) -> int:
        """How many scales a block stores."""
        return 2 if self.kind == "means" else 1


# Lloyd-Max levels of the unit Gaussian: Max, "Quantizing for minimum distortion", IRE Trans. IT-6 (1960), table I.
FORMATS = {
    known.name: known
    for known in (
        BlockFormat("int8", 8, "uniform", 256, 127.0),
        BlockFormat("int4", 4, "uniform", 64, 7.0),
        BlockFormat("lloyd3", 3, "levels", 128, 2.1520, (0.2451, 0.7560, 1.3439, 2.1520)),
        BlockFormat("lloyd2", 2, "levels", 256, 1.5104, (0.4528, 1.5104)),
        BlockFormat("means2", 2, "means", 256, 1.0),
        BlockFormat("sign", 1, "sign", 128, 1.0),
        BlockFormat("fp8_e4m3", 8, "float", 256, 448.0),
        BlockFormat("fp8_e5m2", 8, "float", 256, 57344.0),
        BlockFormat("e8", 2, "lattice", 256, 2.0, step=1.0),
        BlockFormat("uniform", 8, "uniform", 4096, 127.0, step=0.5),
        BlockFormat("lattice", 4, "lattice", 4096, 8.0, step=0.7),
    )
}
# Of the running mean of squares that optimizers keep. What is divided by is its root, so the root has the equal steps:
# a range of 256 to 1 of it, where the mean itself would have 16. The lowest level is one step and not zero, which could
# not be divided by. Not among FORMATS: gradients have signs.
ROOT8 = BlockFormat("root8", 8, "root", 256, 256.0)
# The same in 4 bits. Levels of the mean of gradients are then squares, 0 1 4 .. 49, and their negatives: equal steps of
# a seventh of the largest value would be larger than most values of a block whose columns differ.
ROOT4 = BlockFormat("root4", 4, "root", 64, 16.0)
SQUARE4 = BlockFormat("square4", 4, "square", 64, 49.0)
OF_BITS = {8: "int8", 4: "int4", 3: "lloyd3", 2: "means2", 1: "sign"}


def block_format(asked: int | str | BlockFormat) -> BlockFormat:
    """The format of that many bits or of that name.

    Raises:
        ThriftyError: no such format.
    """
    if isinstance(asked, BlockFormat):
        return asked
    name = OF_BITS.get(asked) if isinstance(asked, int) else asked
    if name not in FORMATS:
        raise ThriftyError(f"no block format {asked!r}", hint=did_you_mean(str(asked), [*FORMATS, *map(str, OF_BITS)]))
    return FORMATS[name]


def uniform(step: float, block: int = 4096) -> BlockFormat:
    """Uniform levels `step` times the block's rms apart, for an entropy coder behind: about log2(4.13 / step) bits.

    At high rate a uniform quantizer and an ideal entropy coder stay 1.53 dB above the Gaussian rate-distortion bound:
    Gish and Pierce, "Asymptotically efficient quantizing", IEEE Trans. IT-14 (1968). Above a step of 0.5 codes take
    4 bits, which entropy coders shorten better than bytes, and values beyond 7 steps are clipped: where a few values
    hold much of the energy, as in gradients, finer steps in bytes lose less at the same rate.

    Raises:
        ThriftyError: a step that is not in (0, 1.5].
    """
    if not 0 < step <= 1.5:
        raise ThriftyError(f"a step of {step} rms", hint="steps lie in (0, 1.5]; 0.5 takes about 3 bits a value")
    bits, top = (4, 7.0) if step > 0.5 else (8, 127.0)
    return replace(FORMATS["uniform"], bits=bits, top=top, step=step, block=block)


def lattice(step: float, block: int = 4096) -> BlockFormat:
    """Points of the lattice E8, whole numbers `step` times the block's rms apart, for an entropy coder behind.

    About log2(4.13 / step) bits, as of `uniform`, with less error: a cell of E8 has 0.65 dB less second moment than a
    cube of its volume (Conway and Sloane, "Voronoi regions of lattices", IEEE Trans. IT-28, 1982).

    Raises:
        ThriftyError: a step that is not in (0, 1.5].
    """
    scalar = uniform(step, block)
    return replace(FORMATS["lattice"], bits=scalar.bits, top=scalar.top + 1, step=step, block=block)
