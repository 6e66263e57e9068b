"""Parameters: published totals, the real module's names and shapes, and how shards add up."""

from __future__ import annotations

import math

import pytest
from cost_examples import shapes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.cost.params import counts, matmul_parameters, parameter_shapes, shard_rows, total_parameters
from thrifty.spec import ModelShape
from thrifty.spec.load import build
from thrifty.spec.trained import untrained

# As the models' own cards and papers count them.
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-1.5b": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2-0.5b": 494_032_768,
}


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_totals_are_the_published_ones(name: str, total: int) -> None:
    assert total_parameters(of_catalog(name)) == total


def of_catalog(name: str) -> ModelShape:
    return build(ModelShape, lookup.model(name), "")


@pytest.mark.parametrize("name", [name for name in lookup.models() if not untrained(of_catalog(name))])
def test_names_and_shapes_are_those_of_the_module(name: str) -> None:
    torch = pytest.importorskip("torch")
    from thrifty.model.transformer import Transformer

    shape = of_catalog(name)
    with torch.device("meta"):
        model = Transformer(shape)
    assert [(key, tuple(p.shape)) for key, p in model.named_parameters()] == parameter_shapes(shape)


@given(shapes())
def test_counts_are_sums_over_the_shapes(shape: ModelShape) -> None:
    everything = parameter_shapes(shape)
    held = counts(shape)
    assert held.total == sum(math.prod(size) for _, size in everything)
    assert held.tensors == len(everything)
    assert held.shard == held.total
    matrices = sum(math.prod(size) for name, size in everything if len(size) == 2 and name.startswith("blocks."))
    assert matmul_parameters(shape) == matrices + shape.vocab_size * shape.hidden


def chunks(rows: int, ranks: int) -> list[int]:
    """Slices of ceil(rows / ranks), one after another: the rule of torch.chunk, padded with empty ones."""
    size = math.ceil(rows / ranks)
    found = [len(range(rows)[start : start + size]) for start in range(0, rows, size)]
    return found + [0] * (ranks - len(found))


@given(st.integers(1, 300), st.integers(1, 64))
def test_shards_follow_the_chunk_rule(rows: int, ranks: int) -> None:
    assert shard_rows(rows, ranks) == chunks(rows, ranks)
    assert sum(shard_rows(rows, ranks)) == rows


def test_shards_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for rows in range(1, 40):
        for ranks in range(1, 12):
            held = [len(part) for part in torch.arange(rows).chunk(ranks)]
            assert shard_rows(rows, ranks) == held + [0] * (ranks - len(held))


@given(shapes(), st.integers(1, 16))
def test_the_fullest_rank_holds_the_first_shard_of_every_tensor(shape: ModelShape, ranks: int) -> None:
    shards = [[rows * math.prod(size[1:]) for rows in chunks(size[0], ranks)] for _, size in parameter_shapes(shape)]
    per_rank = [sum(column) for column in zip(*shards, strict=True)]
    assert counts(shape, ranks).shard == max(per_rank) == per_rank[0]
    assert sum(per_rank) == total_parameters(shape)
