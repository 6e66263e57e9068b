"""What one block and the head compute for a microbatch: matrix products, attention, bytes moved, operations dispatched.

Counts follow the decoder of `model/transformer.py` in eager mode. Bytes are those of elementwise operations, each of
which reads and writes main memory; matrix products and fused attention are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.cost import constants
from thrifty.cost.flops import attention_forward_flops
from thrifty.spec.job import ModelShape

Product = tuple[int, int, int]  # (m, n, k): 2mnk FLOPs


@dataclass(frozen=True, slots=True)
class Work:
    """One pass over one unit.

    Attributes:
        products: matrix products (m, n, k).
        repeats: how often each of them is done.
        attention_flops: of fused attention.
        gelus: elements that pass through a GELU, forward or backward.
        moved_bytes: read and written by elementwise operations.
        kernels: operations dispatched.
    """

    products: tuple[Product, ...]
    repeats: int
    attention_flops: float
    gelus: float
    moved_bytes: float
    kernels: float


def linear_layers(shape: ModelShape) -> tuple[tuple[int, int], ...]:
    """(outputs, inputs) of every matrix of one block."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = ((query, shape.hidden), (kv, shape.hidden), (kv, shape.hidden), (shape.hidden, query))
    up = ((shape.ffn, shape.hidden),) * (2 if shape.mlp == "swiglu" else 1)
    return (*attention, *up, (shape.hidden, shape.ffn))


def block_forward(shape: ModelShape, tokens: int, sequence_length: int, element: int, fused_norm: bool) -> Work:
    """The forward pass of one block over a microbatch.

    Args:
        tokens: in the microbatch.
        element: bytes of the compute dtype.
        fused_norm: whether an RMSNorm is one kernel (GPU) or composed of several (CPU).
    """
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norm = _norm(shape, element, fused_norm)
    moved = 2 * norm.forward_bytes * shape.hidden + 2 * 3 * element * shape.hidden
    moved += element * 2 * (query + kv)  # attention reads queries, keys and values and writes its output
    kernels = 2 * norm.forward_kernels + len(linear_layers(shape)) + _VIEWS + _ATTENTION_KERNELS + 2
    if shape.positions == "rope":
        # Two products with fp32 tables, a rotation, a sum, and the cast back.
        moved += (query + kv) * (5 * element + (24 if element == 2 else 20))
        kernels += 2 * 5
    if shape.qk_norm:
        each = _norm(shape, element, fused_norm, rms=True)
        moved += each.forward_bytes * (query + kv)
        kernels += 2 * each.forward_kernels
    inner, activations = (5, 2) if shape.mlp == "swiglu" else (2, 1)
    moved += inner * element * shape.ffn
    return Work(
        products=tuple((tokens, rows, columns) for rows, columns in linear_layers(shape)),
        repeats=1,
        attention_flops=tokens * _attention_flops(shape, sequence_length),
        gelus=tokens * shape.ffn if shape.mlp == "gelu" else 0.0,
        moved_bytes=tokens * moved,
        kernels=kernels + activations,
    )


def block_backward(shape: ModelShape, tokens: int, sequence_length: int, element: int, fused_norm: bool) -> Work:
    """The backward pass of one block: gradients of inputs and weights; arguments as in `block_forward`."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layers = linear_layers(shape)
    norm = _norm(shape, element, fused_norm)
    inputs_shared = 3 if shape.mlp == "swiglu" else 2  # sums where several layers read one input
    moved = 2 * norm.backward_bytes * shape.hidden + (2 + inputs_shared) * 3 * element * shape.hidden
    moved += element * 4 * (query + kv)
    kernels = 2 * norm.backward_kernels + 3 * len(layers) + _VIEWS + 2 * _ATTENTION_KERNELS + 2 + inputs_shared
    if shape.positions == "rope":
        moved += (query + kv) * (5 * element + (24 if element == 2 else 20))
        kernels += 2 * 6
    if shape.qk_norm:
        each = _norm(shape, element, fused_norm, rms=True)
        moved += each.backward_bytes * (query + kv)
        kernels += 2 * each.backward_kernels
    inner, activations = (11, 4) if shape.mlp == "swiglu" else (3, 1)
    moved += inner * element * shape.ffn
    by_input = tuple((tokens, columns, rows) for rows, columns in layers)
    by_weight = tuple((rows, columns, tokens) for rows, columns in layers)
    return Work(
        products=by_input + by_weight,
        repeats=1,
        attention_flops=constants.ATTENTION_BACKWARD * tokens * _attention_flops(shape, sequence_length),
        gelus=tokens * shape.ffn if shape.mlp == "gelu" else 0.0,
        moved_bytes=tokens * moved,
        kernels=kernels + activations,
    )


def head(shape: ModelShape, tokens: int, element: int, fused_norm: bool) -> Work:
    """Last norm, head and cross-entropy, forward and backward, whose gradients are formed chunk by chunk at once.

    A chunk's logits are read into an fp32 log-softmax, picked from, turned into their gradient and cast back.
    """
    width, vocab, norm = shape.hidden, shape.vocab_size, _norm(shape, element, fused_norm)
    rows = chunk_rows(tokens, vocab)
    chunks = -(-tokens // rows)
    logits = element + 4 + 8 + 8 + 4 + element
    weight = (12 if chunks > 1 else 4) * vocab * width * chunks  # its gradient in fp32, added up over the chunks
    lookup = 12 * vocab * width  # the embedding's dense gradient: zeros, and added to the head's or the microbatch's
    moved = tokens * (logits * vocab + (norm.forward_bytes + norm.backward_bytes) * width)
    return Work(
        products=((rows, vocab, width), (rows, width, vocab), (vocab, width, rows)),
        repeats=chunks,
        attention_flops=0.0,
        gelus=0.0,
        moved_bytes=float(moved + weight + lookup),
        kernels=norm.forward_kernels + norm.backward_kernels + 16 * chunks + 8,
    )


def head_forward(shape: ModelShape, tokens: int, element: int, fused_norm: bool) -> Work:
    """The same without gradients, as in an evaluation."""
    norm = _norm(shape, element, fused_norm)
    rows = chunk_rows(tokens, shape.vocab_size)
    chunks = -(-tokens // rows)
    return Work(
        products=((rows, shape.vocab_size, shape.hidden),),
        repeats=chunks,
        attention_flops=0.0,
        gelus=0.0,
        moved_bytes=float(tokens * ((element + 4 + 8) * shape.vocab_size + norm.forward_bytes * shape.hidden)),
        kernels=norm.forward_kernels + 6 * chunks + 3,
    )


def chunk_rows(tokens: int, vocab: int) -> int:
    """Tokens whose logits exist at once: equal parts of at most 512 tokens, or of 16 MiB of fp32 logits if more."""
    most = max(constants.LOSS_CHUNK_ROWS, constants.LOSS_CHUNK_BYTES // (4 * vocab))
    return -(-tokens // max(1, -(-tokens // most)))


def _attention_flops(shape: ModelShape, sequence_length: int) -> float:
    """What the kernel computes for one token: the causal half, or everything where a window needs a mask."""
    if shape.sliding_window is not None and sequence_length > shape.sliding_window:
        return 4.0 * shape.heads * shape.head_dim * sequence_length
    return attention_forward_flops(shape, sequence_length)


# Views and reshapes of a block's heads, each about a third of a dispatch; fused attention with its checks and set-up.
_VIEWS = 3.0
_ATTENTION_KERNELS = 3.0


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
