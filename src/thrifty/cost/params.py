"""Parameters of a model by name and shape, and what each rank holds of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from thrifty.spec.job import ModelShape

Named = tuple[str, tuple[int, ...]]

# The root unit is what no block holds: the embeddings, the last norm and an untied head.
_ROOT_AFTER_BLOCKS = ("norm.", "head.")


def parameter_shapes(shape: ModelShape) -> list[Named]:
    """Name and shape of every parameter, in the order of the model's modules."""
    root = _root_shapes(shape)
    before = [item for item in root if not item[0].startswith(_ROOT_AFTER_BLOCKS)]
    after = [item for item in root if item[0].startswith(_ROOT_AFTER_BLOCKS)]
    inside = block_shapes(shape)
    blocks = [(f"blocks.{layer}.{name}", size) for layer in range(shape.layers) for name, size in inside]
    return before + blocks + after


@lru_cache(maxsize=64)
def block_shapes(shape: ModelShape) -> tuple[Named, ...]:
    """Name (inside the block) and shape of every parameter of one block; all blocks are alike."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found = _norm(shape, "attention_norm")
    for name, rows in (("query", query), ("key", kv), ("value", kv)):
        found += _linear(f"attention.{name}", rows, shape.hidden, shape.bias in ("qkv", "all"))
    if shape.qk_norm:
        found += [(f"attention.{name}.weight", (shape.head_dim,)) for name in ("query_norm", "key_norm")]
    found += _linear("attention.output", shape.hidden, query, shape.bias == "all")
    found += _norm(shape, "mlp_norm")
    for name in ("gate", "up") if shape.mlp == "swiglu" else ("up",):
        found += _linear(f"mlp.{name}", shape.ffn, shape.hidden, shape.bias == "all")
    return tuple(found + _linear("mlp.down", shape.hidden, shape.ffn, shape.bias == "all"))


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
