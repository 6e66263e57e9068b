"""What one rank computes in one block and in the head for a microbatch: products, attention, bytes, dispatches.

Counts follow the decoder of `model/transformer.py` in eager mode. Bytes are those of elementwise operations, each of
which reads and writes main memory; matrix products and fused attention are counted apart. A `Split` says which part of
a microbatch's work a rank of a tensor, context or expert group does.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.cost import constants
from thrifty.cost.flops import attention_forward_flops
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Layout

Product = tuple[float, float, float, float]  # (m, n, k, times): 2mnk FLOPs, so many times


@dataclass(frozen=True, slots=True)
class Split:
    """How the ranks of a model-parallel group divide a microbatch.

    Attributes:
        tensor: ranks that split each matrix.
        context: ranks that split each sequence.
        expert: ranks that split the experts of a layer.
        sequence: what tensor parallelism leaves whole is split along the sequence.
    """

    tensor: int = 1
    context: int = 1
    expert: int = 1
    sequence: bool = False


WHOLE = Split()


def split_of(layout: Layout) -> Split:
    """The split that a layout makes of a microbatch."""
    return Split(layout.tensor, layout.context, layout.expert, layout.sequence_parallel and layout.tensor > 1)


@dataclass(frozen=True, slots=True)
class Work:
    """One pass over one unit by one rank.

    Attributes:
        products: matrix products that may be done in low precision: those of the linear layers.
        plain: other matrix products: head, router, unfused attention.
        attention_flops: of fused attention.
        gelus: elements that pass through a GELU, forward or backward.
        moved_bytes: read and written by elementwise operations.
        kernels: operations dispatched; the experts of a layer are one grouped product.
    """

    products: tuple[Product, ...]
    plain: tuple[Product, ...]
    attention_flops: float
    gelus: float
    moved_bytes: float
    kernels: float


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer's matrix on one rank, and how often a token, on average, passes through it."""

    outputs: float
    inputs: float
    rows_per_token: float = 1.0
    times: float = 1.0


def linear_layers(shape: ModelShape, split: Split = WHOLE, sparse: bool = False) -> tuple[Matrix, ...]:
    """Every matrix of one block on one rank.

    Args:
        sparse: a block with experts; else with the plain MLP. Of the experts a rank holds `count / expert`, each of
            which sees the tokens of all `expert` ranks, in the ratio active / count.
    """
    h, t = shape.hidden, split.tensor
    found = list(_attention_layers(shape, t))
    gates = 2 if shape.mlp == "swiglu" else 1
    if not sparse or shape.experts is None:
        return (*found, *(Matrix(shape.ffn / t, h),) * gates, Matrix(h, shape.ffn / t))
    mix = shape.experts
    held = mix.count / split.expert
    each = mix.active * split.expert / mix.count * mix.imbalance
    found += [Matrix(mix.ffn / t, h, each, held)] * gates + [Matrix(h, mix.ffn / t, each, held)]
    if mix.shared:
        found += [Matrix(mix.shared * mix.ffn / t, h)] * gates + [Matrix(h, mix.shared * mix.ffn / t)]
    return tuple(found)


def _attention_layers(shape: ModelShape, t: int) -> tuple[Matrix, ...]:
    h = shape.hidden
    if shape.latent is None:
        query = shape.heads * shape.head_dim / t
        kv = max(1.0, shape.kv_heads / t) * shape.head_dim
        return Matrix(query, h), Matrix(kv, h), Matrix(kv, h), Matrix(h, query)
    mla, heads = shape.latent, shape.heads / t
    wide = heads * (mla.nope_dim + mla.rope_dim)
    queries = (Matrix(wide, h),) if mla.q_rank is None else (Matrix(mla.q_rank, h), Matrix(wide, mla.q_rank))
    keys = (Matrix(mla.kv_rank + mla.rope_dim, h), Matrix(heads * (mla.nope_dim + mla.value_dim), mla.kv_rank))
    return (*queries, *keys, Matrix(h, heads * mla.value_dim))


def block_forward(
    shape: ModelShape, tokens: float, length: int, element: int, fused_norm: bool, split: Split = WHOLE,
    sparse: bool = False, fused_attention: bool = True,
) -> Work:  # fmt: skip
    """The forward pass of one block over a microbatch.

    Args:
        tokens: of the microbatch on this rank: sequences x length / context.
        length: of the whole sequence.
        element: bytes of the compute dtype.
        fused_norm: whether an RMSNorm is one kernel (GPU) or composed of several (CPU).
        sparse: a block with experts.
        fused_attention: else scores are written, masked ones too.
    """
    query, kv = _head_widths(shape, split.tensor)
    norm = _norm(shape, element, fused_norm)
    whole = (2 * norm.forward_bytes + 2 * 3 * element) * shape.hidden / (split.tensor if split.sequence else 1)
    moved = whole + element * 2 * (query + kv)  # attention reads queries, keys and values and writes its output
    layers = linear_layers(shape, split, sparse)
    kernels = 2 * norm.forward_kernels + len(layers) + _VIEWS + _ATTENTION_KERNELS + 2
    if shape.positions == "rope":
        # Two products with fp32 tables, a rotation, a sum, and the cast back.
        moved += (query + kv) * (5 * element + (24 if element == 2 else 20))
        kernels += 2 * 5
    if shape.qk_norm:
        each = _norm(shape, element, fused_norm, rms=True)
        moved += each.forward_bytes * (query + kv)
        kernels += 2 * each.forward_kernels
    inner, activations = (5, 2) if shape.mlp == "swiglu" else (2, 1)
    moved += inner * element * _inner_width(shape, split, sparse) + _routing_bytes(shape, element, sparse)
    plain, scores = _scores(shape, tokens, length, split, fused_attention)
    return Work(
        products=tuple((tokens * m.rows_per_token, m.outputs, m.inputs, m.times) for m in layers),
        plain=plain,
        attention_flops=tokens / split.tensor * _attention_flops(shape, length) if fused_attention else 0.0,
        gelus=tokens * shape.ffn / split.tensor if shape.mlp == "gelu" else 0.0,
        moved_bytes=tokens * moved + scores * constants.SCORE_BYTES_FORWARD,
        kernels=kernels + activations + (_ROUTING_KERNELS if sparse else 0),
    )


def block_backward(
    shape: ModelShape, tokens: float, length: int, element: int, fused_norm: bool, split: Split = WHOLE,
    sparse: bool = False, fused_attention: bool = True,
) -> Work:  # fmt: skip
    """The backward pass of one block: gradients of inputs and weights; arguments as in `block_forward`."""
    query, kv = _head_widths(shape, split.tensor)
    layers = linear_layers(shape, split, sparse)
    norm = _norm(shape, element, fused_norm)
    inputs_shared = 3 if shape.mlp == "swiglu" else 2  # sums where several layers read one input
    whole = 2 * norm.backward_bytes + (2 + inputs_shared) * 3 * element
    moved = whole * shape.hidden / (split.tensor if split.sequence else 1) + element * 4 * (query + kv)
    kernels = 2 * norm.backward_kernels + 3 * len(layers) + _VIEWS + 2 * _ATTENTION_KERNELS
    kernels += 2 + inputs_shared
    if shape.positions == "rope":
        moved += (query + kv) * (5 * element + (24 if element == 2 else 20))
        kernels += 2 * 6
    if shape.qk_norm:
        each = _norm(shape, element, fused_norm, rms=True)
        moved += each.backward_bytes * (query + kv)
        kernels += 2 * each.backward_kernels
    inner, activations = (11, 4) if shape.mlp == "swiglu" else (3, 1)
    moved += inner * element * _inner_width(shape, split, sparse) + 2 * _routing_bytes(shape, element, sparse)
    by_input = tuple((tokens * m.rows_per_token, m.inputs, m.outputs, m.times) for m in layers)
    by_weight = tuple((m.outputs, m.inputs, tokens * m.rows_per_token, m.times) for m in layers)
    plain, scores = _scores(shape, tokens, length, split, fused_attention)
    return Work(
        products=by_input + by_weight,
        plain=plain + plain,
        attention_flops=constants.ATTENTION_BACKWARD * tokens / split.tensor * _attention_flops(shape, length)
        if fused_attention
        else 0.0,
        gelus=tokens * shape.ffn / split.tensor if shape.mlp == "gelu" else 0.0,
        moved_bytes=tokens * moved + scores * constants.SCORE_BYTES_BACKWARD,
        kernels=kernels + activations + (2 * _ROUTING_KERNELS if sparse else 0),
    )


def attention_again(
    shape: ModelShape, tokens: float, length: int, element: int, split: Split, fused_attention: bool
) -> Work:
    """What selective recomputation does once more: the attention core, between its inputs and its output product."""
    query, kv = _head_widths(shape, split.tensor)
    plain, scores = _scores(shape, tokens, length, split, fused_attention)
    return Work(
        products=(),
        plain=plain,
        attention_flops=tokens / split.tensor * _attention_flops(shape, length) if fused_attention else 0.0,
        gelus=0.0,
        moved_bytes=tokens * element * 2 * (query + kv) + scores * constants.SCORE_BYTES_FORWARD,
        kernels=_ATTENTION_KERNELS,
    )


def head(
    shape: ModelShape, tokens: float, element: int, fused_norm: bool, tensor: int = 1, chunked: bool = True
) -> Work:
    """Last norm, head and cross-entropy, forward and backward.

    Args:
        tensor: ranks that split the vocabulary.
        chunked: as this project's loss, whose gradients are formed chunk by chunk at once; else logits exist whole.
            A chunk's logits are read into an fp32 log-softmax, picked from, turned into their gradient and cast back.
    """
    width, vocab, norm = shape.hidden, shape.vocab_size / tensor, _norm(shape, element, fused_norm)
    rows = chunk_rows(int(tokens), shape.vocab_size) if chunked else tokens
    chunks = -(-tokens // rows)
    logits = element + 4 + 8 + 8 + 4 + element
    weight = (12 if chunks > 1 else 4) * vocab * width * chunks  # its gradient in fp32, added up over the chunks
    lookup = 12 * vocab * width  # the embedding's dense gradient: zeros, and added to the head's or the microbatch's
    moved = tokens * (logits * vocab + (norm.forward_bytes + norm.backward_bytes) * width)
    return Work(
        products=(),
        plain=((rows, vocab, width, chunks), (rows, width, vocab, chunks), (vocab, width, rows, chunks)),
        attention_flops=0.0,
        gelus=0.0,
        moved_bytes=float(moved + weight + lookup),
        kernels=norm.forward_kernels + norm.backward_kernels + 16 * chunks + 8,
    )


def head_forward(shape: ModelShape, tokens: float, element: int, fused_norm: bool, tensor: int = 1) -> Work:
    """The same without gradients, as in an evaluation."""
    norm, vocab = _norm(shape, element, fused_norm), shape.vocab_size / tensor
    rows = chunk_rows(int(tokens), shape.vocab_size)
    chunks = -(-tokens // rows)
    return Work(
        products=(),
        plain=((rows, vocab, shape.hidden, chunks),),
        attention_flops=0.0,
        gelus=0.0,
        moved_bytes=float(tokens * ((element + 4 + 8) * vocab + norm.forward_bytes * shape.hidden)),
        kernels=norm.forward_kernels + 6 * chunks + 3,
    )


def chunk_rows(tokens: int, vocab: int) -> int:
    """Tokens whose logits exist at once: equal parts of at most 512 tokens, or of 16 MiB of fp32 logits if more."""
    most = max(constants.LOSS_CHUNK_ROWS, constants.LOSS_CHUNK_BYTES // (4 * vocab))
    return -(-tokens // max(1, -(-tokens // most)))


def _head_widths(shape: ModelShape, tensor: int) -> tuple[float, float]:
    """Columns of queries (or outputs), and of keys (or values), on one rank."""
    if shape.latent is not None:
        wide = shape.heads * (shape.latent.nope_dim + shape.latent.rope_dim) / tensor
        return wide, (wide + shape.heads * shape.latent.value_dim / tensor) / 2
    return shape.heads * shape.head_dim / tensor, max(1.0, shape.kv_heads / tensor) * shape.head_dim


def _inner_width(shape: ModelShape, split: Split, sparse: bool) -> float:
    """Columns of the MLP's inner tensors that a token has on one rank, experts and shared ones together."""
    if not sparse or shape.experts is None:
        return shape.ffn / split.tensor
    mix = shape.experts
    return (mix.active * mix.imbalance + mix.shared) * mix.ffn / split.tensor


def _routing_bytes(shape: ModelShape, element: int, sparse: bool) -> float:
    """A token's scores over the experts, and its copies sorted by expert and back."""
    if not sparse or shape.experts is None:
        return 0.0
    return 12.0 * shape.experts.count + 6.0 * element * shape.experts.active * shape.hidden


def _scores(
    shape: ModelShape, tokens: float, length: int, split: Split, fused: bool
) -> tuple[tuple[Product, ...], float]:
    """Products of attention that is not fused, masked pairs included, and how many scores they write."""
    if fused:
        return (), 0.0
    heads, sequences = shape.heads / split.tensor, tokens * split.context / length
    rows, times = length / split.context, heads * sequences
    pair = ((rows, length, shape.head_dim, times), (rows, shape.head_dim, length, times))
    return pair, rows * length * times


def _attention_flops(shape: ModelShape, length: int) -> float:
    """What the kernel computes for one token: the causal half, or everything where a window needs a mask."""
    if shape.sliding_window is not None and length > shape.sliding_window:
        return 4.0 * shape.heads * shape.head_dim * length
    return attention_forward_flops(shape, length)


# Views and reshapes of a block's heads, each about a third of a dispatch; fused attention with its checks and set-up.
_VIEWS = 3.0
_ATTENTION_KERNELS = 3.0
_ROUTING_KERNELS = 12.0  # scores, top-k, sort, gather, weighted sum


@dataclass(frozen=True, slots=True)
class _Norm:
    """One norm: bytes moved for one element, and operations dispatched, in both directions."""

    forward_bytes: int
    backward_bytes: int
    forward_kernels: float
    backward_kernels: float


def _norm(shape: ModelShape, element: int, fused: bool, rms: bool = False) -> _Norm:
    if shape.norm == "layernorm" and not rms:
        return _Norm(2 * element, 4 * element, 1, 2)
    if fused:
        return _Norm(2 * element, 4 * element, 2, 3)
    widen = 0 if element == 4 else 6  # to fp32, or back
    return _Norm(20 + 2 * widen, 56 + 3 * widen, 9, 16)
