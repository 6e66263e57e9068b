"""Parameters of a model by name and shape, and what each rank holds of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from thrifty.spec.job import Experts, LatentAttention, ModelShape

Named = tuple[str, tuple[int, ...]]

# The root unit is what no block holds: the embeddings, the last norm and an untied head.
_ROOT_AFTER_BLOCKS = ("norm.", "head.")


def parameter_shapes(shape: ModelShape) -> list[Named]:
    """Name and shape of every parameter, in the order of the model's modules."""
    root = _root_shapes(shape)
    before = [item for item in root if not item[0].startswith(_ROOT_AFTER_BLOCKS)]
    after = [item for item in root if item[0].startswith(_ROOT_AFTER_BLOCKS)]
    inside = ((layer, name, size) for layer in range(shape.layers) for name, size in block_shapes(shape, layer))
    blocks = [(f"blocks.{layer}.{name}", size) for layer, name, size in inside]
    return before + blocks + after


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
    found += _experts(shape, shape.experts) if routed and shape.experts is not None else _mlp(shape, "mlp", shape.ffn)
    return tuple(found)


def _grouped(shape: ModelShape) -> list[Named]:
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found: list[Named] = []
    for name, rows in (("query", query), ("key", kv), ("value", kv)):
        found += _linear(f"attention.{name}", rows, shape.hidden, shape.bias in ("qkv", "all"))
    if shape.qk_norm:
        found += [(f"attention.{name}.weight", (shape.head_dim,)) for name in ("query_norm", "key_norm")]
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
    found += _linear("attention.kv_up", shape.heads * (latent.nope_dim + latent.value_dim), latent.kv_rank, False)
    return found + _linear("attention.output", shape.hidden, shape.heads * latent.value_dim, False)


def _mlp(shape: ModelShape, name: str, ffn: int) -> list[Named]:
    found: list[Named] = []
    for part in ("gate", "up") if shape.mlp == "swiglu" else ("up",):
        found += _linear(f"{name}.{part}", ffn, shape.hidden, shape.bias == "all")
    return found + _linear(f"{name}.down", shape.hidden, ffn, shape.bias == "all")


def _experts(shape: ModelShape, experts: Experts) -> list[Named]:
    """Router, routed experts stacked along their first dimension, and the shared ones as one wider MLP."""
    found = _linear("router", experts.count, shape.hidden, False)
    for part in ("gate", "up") if shape.mlp == "swiglu" else ("up",):
        found.append((f"experts.{part}.weight", (experts.count, experts.ffn, shape.hidden)))
    found.append(("experts.down.weight", (experts.count, shape.hidden, experts.ffn)))
    return found + (_mlp(shape, "shared", experts.shared * experts.ffn) if experts.shared else [])


@lru_cache(maxsize=64)
def _root_shapes(shape: ModelShape) -> tuple[Named, ...]:
    found: list[Named] = [("embed.weight", (shape.vocab_size, shape.hidden))]
    if shape.positions == "learned":
        found.append(("positions.weight", (shape.max_positions, shape.hidden)))
    found += _norm(shape, "norm")
    if not shape.tied_embeddings:
        found.append(("head.weight", (shape.vocab_size, shape.hidden)))
    return tuple(found)


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

    Attributes:
        block: elements of one block.
        root: elements of the root unit.
        head: elements of the matrix that makes logits (in `root`).
        block_shard: elements of one block on the fullest rank: sum of ceil(rows / ranks) x columns.
        root_shard: elements of the root unit on the fullest rank.
        matrices: elements of one block that are in matrix products.
        tensors: number of parameters tensors.
        block_tensors: those of one block.
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

    @property
    def total(self) -> int:
        """Every parameter once."""
        return self.layers * self.block + self.root

    @property
    def shard(self) -> int:
        """Elements on the fullest rank."""
        return self.layers * self.block_shard + self.root_shard

    @property
    def in_matmuls(self) -> int:
        """Parameters in matrix products: no norms, biases or lookups; a tied embedding counts, as the head."""
        return self.layers * self.matrices + self.head


@lru_cache(maxsize=4096)
def counts(shape: ModelShape, ranks: int = 1) -> Counts:
    """Counts of a model whose parameters are sharded over `ranks`."""
    block, root = block_shapes(shape), _root_shapes(shape)
    return Counts(
        layers=shape.layers,
        block=sum(math.prod(size) for _, size in block),
        root=sum(math.prod(size) for _, size in root),
        head=shape.vocab_size * shape.hidden,
        block_shard=sum(_fullest(size, ranks) for _, size in block),
        root_shard=sum(_fullest(size, ranks) for _, size in root),
        matrices=sum(math.prod(size) for _, size in block if len(size) == 2),
        tensors=shape.layers * len(block) + len(root),
        block_tensors=len(block),
    )


def _fullest(size: tuple[int, ...], ranks: int) -> int:
    return -(-size[0] // ranks) * math.prod(size[1:])


def total_parameters(shape: ModelShape) -> int:
    """Every parameter once; a tied head adds none."""
    return counts(shape).total


def matmul_parameters(shape: ModelShape) -> int:
    """Parameters in matrix products: what 6 x parameters x tokens should count."""
    return counts(shape).in_matmuls
