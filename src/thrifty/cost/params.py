"""Parameters of a model by name and shape, and what each rank holds of them.

What the three kinds of model have:

    decoder   embedding, blocks of attention and MLP (or experts) with a norm before each, last norm, head
    encoder   embedding, positions, token types and their norm; blocks with a norm after each part; the head of masked
              language modelling: a square matrix, a norm, and a decoder that is the embedding where it is tied
    vit       patch projection, class token and positions; blocks as a decoder's; last norm, classes
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from thrifty.spec.job import Experts, LatentAttention, ModelShape

Named = tuple[str, tuple[int, ...]]

_LOOKUPS = ("embed.weight", "positions.weight", "token_types.weight")


def parameter_shapes(shape: ModelShape) -> list[Named]:
    """Name and shape of every parameter, in the order of the model's modules."""
    before, after = _root_shapes(shape)
    inside = ((layer, name, size) for layer in range(shape.layers) for name, size in block_shapes(shape, layer))
    return [*before, *((f"blocks.{layer}.{name}", size) for layer, name, size in inside), *after]


def block_shapes(shape: ModelShape, layer: int = 0) -> tuple[Named, ...]:
    """Name (inside the block) and shape of every parameter of the block at `layer`.

    Blocks are alike, but for the first ones of a mixture of experts that are dense (`experts.dense_layers`).
    """
    return _block_shapes(shape, shape.experts is not None and layer >= shape.experts.dense_layers)


@lru_cache(maxsize=128)
def _block_shapes(shape: ModelShape, routed: bool) -> tuple[Named, ...]:
    found = _norm(shape, "attention_norm")
    found += _grouped(shape) if shape.latent is None else _latent(shape, shape.latent)
    found += _norm(shape, "mlp_norm")
    found += _mlp(shape) if shape.experts is None or not routed else _experts(shape, shape.experts)
    return tuple(found)


def _grouped(shape: ModelShape) -> list[Named]:
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found: list[Named] = []
    for name, rows in (("query", query), ("key", kv), ("value", kv)):
        found += _linear(f"attention.{name}", rows, shape.hidden, shape.bias in ("qkv", "all"))
    if shape.attention_sinks:
        found.append(("attention.sinks", (shape.heads,)))
    if shape.qk_norm:
        together = shape.qk_norm == "width"
        found.append(("attention.query_norm.weight", (query if together else shape.head_dim,)))
        found.append(("attention.key_norm.weight", (kv if together else shape.head_dim,)))
    return found + _linear("attention.output", shape.hidden, query, shape.bias == "all")


def _latent(shape: ModelShape, latent: LatentAttention) -> list[Named]:
    """DeepSeek-V2 (arXiv:2405.04434), section 2.1; `kv_down` also makes the rotary key that all heads share."""
    query = shape.heads * (latent.nope_dim + latent.rope_dim)
    found: list[Named] = []
    if latent.q_rank is None:
        found += _linear("attention.query", query, shape.hidden, False)
    else:
        found += _linear("attention.query_down", latent.q_rank, shape.hidden, False)
        found.append(("attention.query_norm.weight", (latent.q_rank,)))
        found += _linear("attention.query_up", query, latent.q_rank, False)
    found += _linear("attention.kv_down", latent.kv_rank + latent.rope_dim, shape.hidden, False)
    found.append(("attention.kv_norm.weight", (latent.kv_rank,)))
    keys_and_values = shape.heads * (latent.nope_dim + latent.value_dim)
    found += _linear("attention.kv_up", keys_and_values, latent.kv_rank, False)
    return found + _linear("attention.output", shape.hidden, shape.heads * latent.value_dim, False)


def _mlp(shape: ModelShape, name: str = "mlp", ffn: int | None = None) -> list[Named]:
    inner = shape.ffn if ffn is None else ffn
    found: list[Named] = []
    for part in _inputs(shape):
        found += _linear(f"{name}.{part}", inner, shape.hidden, shape.bias == "all")
    return found + _linear(f"{name}.down", shape.hidden, inner, shape.bias == "all")


def _experts(shape: ModelShape, experts: Experts) -> list[Named]:
    """Router, routed experts stacked along their first dimension, and the shared ones as one wider MLP."""
    found = _linear("router", experts.count, shape.hidden, shape.bias == "all")
    sides = dict.fromkeys(_inputs(shape), (experts.ffn, shape.hidden)) | {"down": (shape.hidden, experts.ffn)}
    for part, (rows, columns) in sides.items():
        found.append((f"experts.{part}.weight", (experts.count, rows, columns)))
        if shape.bias == "all":
            found.append((f"experts.{part}.bias", (experts.count, rows)))
    return found + (_mlp(shape, "shared", experts.shared * experts.ffn) if experts.shared else [])


def _inputs(shape: ModelShape) -> tuple[str, ...]:
    return ("gate", "up") if shape.mlp == "swiglu" else ("up",)


@lru_cache(maxsize=64)
def _root_shapes(shape: ModelShape) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    """What no block holds, before and after the blocks."""
    biased = shape.bias == "all"
    before: list[Named] = []
    if shape.patch_size is None:
        before.append(("embed.weight", (shape.vocab_size, shape.hidden)))
    else:
        before += _linear("patch", shape.hidden, shape.channels * shape.patch_size**2, biased)
        before.append(("class_token", (1, 1, shape.hidden)))
    if shape.positions == "learned":
        before.append(("positions.weight", (shape.max_positions, shape.hidden)))
    if shape.kind == "encoder":
        if shape.token_types:
            before.append(("token_types.weight", (shape.token_types, shape.hidden)))
        before += _norm(shape, "embed_norm")
        after = _linear("transform", shape.hidden, shape.hidden, biased) + _norm(shape, "transform_norm")
    else:
        after = _norm(shape, "norm")
    head = _linear("head", shape.vocab_size, shape.hidden, biased and shape.kind != "decoder")
    # A tied head is the embedding, and adds its bias alone. Classes are no embedding.
    return tuple(before), tuple(after + (head[1:] if shape.tied_embeddings and shape.kind != "vit" else head))


def _norm(shape: ModelShape, name: str) -> list[Named]:
    found: list[Named] = [(f"{name}.weight", (shape.hidden,))]
    return [*found, (f"{name}.bias", (shape.hidden,))] if shape.norm == "layernorm" and shape.bias == "all" else found


def _linear(name: str, rows: int, columns: int, bias: bool) -> list[Named]:
    found: list[Named] = [(f"{name}.weight", (rows, columns))]
    return [*found, (f"{name}.bias", (rows,))] if bias else found


def shard_rows(rows: int, ranks: int) -> list[int]:
    """Rows that each rank holds of a tensor that is split along dimension 0 as `torch.chunk` splits it.

    Every rank but the last ones holds ceil(rows / ranks); the last ones may hold fewer, or none.
    """
    chunk = -(-rows // ranks)
    return [max(0, min(chunk, rows - rank * chunk)) for rank in range(ranks)]


@dataclass(frozen=True, slots=True)
class Counts:
    """Elements of a model, whole and on the fullest rank; a unit is what FSDP gathers at once.

    Where the first layers of a mixture of experts are dense, what is said of one block is said of the last one, and
    `layers x block` is not the sum over blocks; `total`, `shard`, `tensors`, `active` and `in_matmuls` are whole sums.

    Attributes:
        block: elements of one block.
        root: elements of the root unit: embeddings, last norm, head.
        head: elements of the matrix that makes logits (in `root`).
        block_shard: elements of one block on the fullest rank: sum of ceil(rows / ranks) x columns.
        root_shard: elements of the root unit on the fullest rank.
        matrices: elements of one block that are in matrix products, all experts of it included.
        tensors: number of parameters tensors.
        block_tensors: those of one block.
        total: every parameter once.
        shard: elements on the fullest rank.
        active: every parameter once, but of the routed experts only those that a token passes through.
        root_matrices: elements of the root unit that are in matrix products; a tied embedding counts, as the head.
        in_matmuls: active parameters in matrix products: no norms, biases or lookups, no idle experts.
    """

    layers: int
    block: int
    root: int
    head: int
    block_shard: int
    root_shard: int
    matrices: int
    tensors: int
    block_tensors: int
    total: int
    shard: int
    active: int
    root_matrices: int
    in_matmuls: int


@lru_cache(maxsize=4096)
def counts(shape: ModelShape, ranks: int = 1) -> Counts:
    """Counts of a model whose parameters are sharded over `ranks`."""
    dense = shape.layers if shape.experts is None else shape.experts.dense_layers
    kinds = ((dense, _block_shapes(shape, False)), (shape.layers - dense, _block_shapes(shape, True)))
    block = block_shapes(shape, shape.layers - 1)
    root = [item for part in _root_shapes(shape) for item in part]
    head = shape.vocab_size * shape.hidden
    tied = head if "head.weight" not in dict(root) else 0
    root_matrices = sum(math.prod(size) for name, size in root if _multiplied(name)) + tied
    in_matmuls = sum(
        number * sum(_active(shape, name, size) for name, size in inside if _multiplied(name))
        for number, inside in kinds
    )
    everything = [(1, root), *kinds]
    return Counts(
        layers=shape.layers,
        block=sum(math.prod(size) for _, size in block),
        root=sum(math.prod(size) for _, size in root),
        head=head,
        block_shard=sum(_fullest(size, ranks) for _, size in block),
        root_shard=sum(_fullest(size, ranks) for _, size in root),
        matrices=sum(math.prod(size) for name, size in block if _multiplied(name)),
        tensors=sum(number * len(inside) for number, inside in everything),
        block_tensors=len(block),
        total=sum(number * sum(math.prod(size) for _, size in inside) for number, inside in everything),
        shard=sum(number * sum(_fullest(size, ranks) for _, size in inside) for number, inside in everything),
        active=sum(number * sum(_active(shape, *item) for item in inside) for number, inside in everything),
        root_matrices=root_matrices,
        in_matmuls=in_matmuls + root_matrices,
    )


def _fullest(size: tuple[int, ...], ranks: int) -> int:
    return -(-size[0] // ranks) * math.prod(size[1:])


def _multiplied(name: str) -> bool:
    return name.endswith(".weight") and not name.endswith("norm.weight") and name not in _LOOKUPS


def _active(shape: ModelShape, name: str, size: tuple[int, ...]) -> int:
    """Elements that one token meets: of stacked experts only the chosen ones."""
    if shape.experts is None or not name.startswith("experts."):
        return math.prod(size)
    return shape.experts.active * math.prod(size[1:])


def total_parameters(shape: ModelShape) -> int:
    """Every parameter once; a tied head adds none."""
    return counts(shape).total


def active_parameters(shape: ModelShape) -> int:
    """Parameters that one token meets: all of a dense model; embeddings count whole, idle experts do not."""
    return counts(shape).active


def matmul_parameters(shape: ModelShape) -> int:
    """Active parameters in matrix products: what 6 x parameters x tokens should count."""
    return counts(shape).in_matmuls
