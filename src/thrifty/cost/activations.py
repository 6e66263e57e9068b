"""What a forward pass keeps for the backward pass, tensor by tensor, in bytes for one token of one rank.

This trainer's blocks are counted exactly (tests compare with what autograd saves). Other software's are counted from
the tensors that its kernels take: inputs and outputs of norms, queries, keys and values, what attention made of them,
and the inner tensors of the MLP or of the experts that a token passes through.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from thrifty.cost import constants
from thrifty.cost.habits import Habits
from thrifty.spec.job import LatentAttention, ModelShape

# NVFP4 training leaves the last layers in bf16: about 15% of them (NVIDIA 2025, arXiv:2509.25149).
NVFP4_PLAIN_LAYERS = 0.15


def activation_bytes_per_token(
    shape: ModelShape, sequence_length: int, element: int, recompute: str, keeps_scores: bool, tensor: int = 1,
    stream: int = 1,
) -> float:  # fmt: skip
    """Bytes that this trainer's forward pass keeps for the backward pass, for one token on one rank.

    Each block's own, or under recomputation its input alone; and of the root the token ids (and under tensor
    parallelism whether they are this rank's), the last norm's input and scale, and the gradient of the head's input,
    which the loss forms at once.

    Args:
        keeps_scores: whether short sequences keep probabilities: on a CPU, unless context ranks share them.
        tensor: ranks that split the heads and the MLP.
        stream: ranks that split the residual stream (sequence parallel).
    """
    inputs, scale = element * shape.hidden, _norm_scale_bytes(shape, element)
    if recompute == "full":
        block = inputs / stream
    else:
        block = block_activation_bytes_per_token(
            shape, sequence_length, element, keeps_scores, tensor, stream, recompute == "selective"
        )
    return shape.layers * block + (8 if tensor == 1 else 9) + (inputs + scale) / stream + inputs


@lru_cache(maxsize=1024)
def block_activation_bytes_per_token(
    shape: ModelShape, sequence_length: int, element: int, keeps_scores: bool, tensor: int = 1, stream: int = 1,
    selective: bool = False,
) -> float:  # fmt: skip
    """Bytes that one of this trainer's blocks keeps for its backward pass, for one token on one rank.

    The inputs and outputs of both norms with their scales; queries, keys and values as attention reads them, its
    output and log-sum-exp; the MLP's inner tensors: gate, up and what is made of them, or GELU's input and output.
    Around a ring of context ranks it is the same without scores. Selective recomputation keeps nothing between the
    projections of attention but their outputs.
    """
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    width = element * shape.hidden
    norms = 2 * (width / stream + _norm_scale_bytes(shape, element) / stream + width)
    heads = float(element * (2 * query + 2 * kv))
    if not selective:
        heads += shape.heads * _scores_bytes(shape, sequence_length, element, keeps_scores)
        heads += element * (query + kv) + 4 * (shape.heads + shape.kv_heads) if shape.qk_norm else 0
    inner = element * shape.ffn * (3 if shape.mlp == "swiglu" else 2)
    return norms + (heads + inner) / tensor


def _scores_bytes(shape: ModelShape, sequence_length: int, element: int, keeps_scores: bool) -> float:
    """What attention keeps of one query's scores in a head: a log-sum-exp, or on a CPU, if short, probabilities."""
    windowed = shape.sliding_window is not None and sequence_length > shape.sliding_window
    longest = constants.SHORT_ATTENTION_LONGEST if element == 2 else constants.SHORT_ATTENTION_BLOCK
    if not keeps_scores or windowed or sequence_length > longest:
        return 4.0
    size = constants.SHORT_ATTENTION_BLOCK
    ends = [min(begin + size, sequence_length) for begin in range(0, sequence_length, size)]
    area = sum((end - begin) * end for begin, end in zip([0, *ends], ends, strict=False))
    return element * area / sequence_length


def _norm_scale_bytes(shape: ModelShape, element: int) -> int:
    """What a norm keeps of one token beside its input: one fp32 scale, or mean and scale in the compute dtype."""
    return 2 * element if shape.norm == "layernorm" else 4


def working_bytes_per_token(shape: ModelShape, element: int) -> int:
    """Gradients alive inside one block's backward pass, for one token: of the widest inner tensors and the stream."""
    return element * (3 if shape.mlp == "swiglu" else 2) * shape.ffn + 2 * element * shape.hidden


def ring_bytes_per_token(shape: ModelShape, element: int) -> int:
    """What attention around a ring holds in its backward pass, for one token of a rank (`parallel/ring.py`).

    Keys and values that are here and that arrive; their gradients' sums, own, here and arriving, in fp32; the same of
    queries, and copies of queries, output and both gradients by key heads.
    """
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return element * (2 * 2 * kv + 4 * query) + 4 * (3 * 2 * kv + query)


@dataclass(frozen=True, slots=True)
class Split:
    """How a layout divides what a token keeps: `tensor` ranks, and what they leave whole over `stream` of them."""

    tensor: int = 1
    stream: int = 1
    context: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes of one block for one token of a rank.

    Attributes:
        full: kept where nothing is computed again.
        kept: kept under the recipe's recomputation.
        working: gradients alive inside its backward pass.
    """

    full: float
    kept: float
    working: float


@lru_cache(maxsize=16384)
def block(
    shape: ModelShape, sparse: bool, sequence_length: int, precision: str, recompute: str, compiled: bool,
    split: Split, habits: Habits,
) -> Block:  # fmt: skip
    """One block of other software.

    Args:
        sparse: whether experts take the place of the MLP.
    """
    e = 4 if precision == "fp32" else 2
    # Transformer Engine keeps the inputs of its low-precision products as it multiplied them.
    low = {"fp8": 1.0, "nvfp4": 0.5625}.get(precision, float(e)) if habits.weight_gradients else float(e)
    stream, t = shape.hidden / split.stream, split.tensor
    inputs = e * stream
    column = low * (
        shape.hidden if habits.gathered else stream
    )  # the norm's output, as a column-parallel layer read it
    scale = _norm_scale_bytes(shape, e) / split.stream
    mask = stream if habits.dropout else 0.0
    heads, score = _heads(shape, sequence_length, e, low, split, habits)
    inner, width = _inner(shape, sparse, e, low, compiled, t, habits)
    full = 2 * (inputs + column + scale + mask) + heads + score + inner
    kept = full
    if recompute == "full":
        kept = inputs
    elif recompute == "selective" and habits.by_operation:
        query, kv = shape.heads * shape.head_dim / t, max(1, shape.kv_heads // t) * shape.head_dim
        attention = inputs + e * query + score
        products = e * (query + kv + width + shape.hidden)
        # NVFP4's own kernels are not among the operations whose results are kept.
        kept = attention + products * (NVFP4_PLAIN_LAYERS if precision == "nvfp4" else 1.0)
    elif recompute == "selective":
        kept = full - score
    return Block(full, kept, e * (2 * stream + (3 if shape.mlp == "swiglu" else 2) * width))


def _heads(
    shape: ModelShape, sequence_length: int, e: int, low: float, split: Split, habits: Habits
) -> tuple[float, float]:
    """What attention keeps, and apart from it what it keeps of the scores."""
    t = split.tensor
    if shape.latent is not None:
        kept, values = _latent(shape, shape.latent, e, t)
    else:
        values = shape.heads * shape.head_dim / t
        kept = e * (2 * values + 2 * max(1.0, shape.kv_heads / t) * shape.head_dim)
        if shape.qk_norm:
            kept += e * (values + max(1.0, shape.kv_heads / t) * shape.head_dim)
    if low < e:
        kept += low * values  # the output projection's input, beside attention's output
    if split.context > 1:
        kept += e * values  # attention's output before and after it changes hands
    if habits.flash:
        return kept, 4.0 * shape.heads / t
    return kept, shape.heads / t * sequence_length * (2 * e + 1 if habits.dropout else e)


def _latent(shape: ModelShape, latent: LatentAttention, e: int, t: int) -> tuple[float, float]:
    """Both low-rank vectors before and after their norms; queries and keys with their rotary parts; values; output."""
    query = shape.heads * (latent.nope_dim + latent.rope_dim) / t
    values = shape.heads * latent.value_dim / t
    low_rank = 2 * (latent.q_rank or 0) + 2 * latent.kv_rank + latent.rope_dim
    return e * (low_rank + 2 * query + 2 * values), values


def _inner(
    shape: ModelShape, sparse: bool, e: int, low: float, compiled: bool, t: int, habits: Habits
) -> tuple[float, float]:
    """What the MLP or the experts keep beside their input, and the width of the inner tensors of a token."""

    def mlp(width: float) -> float:
        tensors = (habits.inner_compiled if compiled else habits.inner) if shape.mlp == "swiglu" else 2
        return ((tensors - 1) * e + low) * width

    if not sparse or shape.experts is None:
        return mlp(shape.ffn / t), shape.ffn / t
    experts = shape.experts
    seen = experts.active * experts.imbalance  # tokens that a rank's experts see, for one of its own
    width = experts.ffn / t
    routed = seen * ((e + low) * shape.hidden + mlp(width))  # as they arrive and as they leave
    router = 8.0 * experts.count  # fp32 logits and probabilities
    return router + routed + mlp(experts.shared * width), (seen + experts.shared) * width
