"""Parameters: published totals, the real module's names and shapes, and how shards add up."""

from __future__ import annotations

import math

import pytest
from cost_examples import priced_shapes, shapes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.cost.params import (
    active_parameters,
    block_shapes,
    counts,
    matmul_parameters,
    parameter_shapes,
    shard_rows,
    total_parameters,
)
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


@given(shapes() | priced_shapes(), st.integers(1, 16))
def test_counts_of_every_kind_are_sums_over_the_shapes(shape: ModelShape, ranks: int) -> None:
    everything = parameter_shapes(shape)
    held = counts(shape, ranks)
    assert held.total == sum(math.prod(size) for _, size in everything)
    assert held.tensors == len(everything) == len(dict(everything))
    assert held.shard == sum(math.ceil(size[0] / ranks) * math.prod(size[1:]) for _, size in everything)
    experts, idle = shape.experts, 0
    if experts is not None:
        stacked = sum(math.prod(size) for name, size in everything if ".experts." in name)
        idle = stacked * (experts.count - experts.active) // experts.count
    assert held.active == active_parameters(shape) == held.total - idle
    last = [(name, size) for name, size in everything if name.startswith(f"blocks.{shape.layers - 1}.")]
    assert [name.split(".", 2)[2] for name, _ in last] == [name for name, _ in block_shapes(shape, shape.layers - 1)]
    assert (held.block, held.block_tensors) == (sum(math.prod(size) for _, size in last), len(last))
    if experts is None or experts.dense_layers == 0:
        assert held.total == shape.layers * held.block + held.root


@given(shapes() | priced_shapes())
def test_products_use_every_matrix_but_the_lookups_and_idle_experts(shape: ModelShape) -> None:
    """Counted the other way round: what is in no product is named here, one by one."""
    found = 0
    for name, size in parameter_shapes(shape):
        part = name.rpartition(".")[0].rpartition(".")[2]
        lookup = name in ("embed.weight", "positions.weight", "token_types.weight", "class_token")
        vector = name.endswith((".bias", "sinks")) or part.endswith("norm")
        share = shape.experts.active / shape.experts.count if shape.experts and ".experts." in name else 1
        found += 0 if lookup or vector else round(math.prod(size) * share)
    tied = shape.tied_embeddings and shape.kind != "vit"
    assert matmul_parameters(shape) == found + (shape.vocab_size * shape.hidden if tied else 0)


def test_the_first_layers_of_a_mixture_may_be_dense() -> None:
    shape = of_catalog("deepseek-v3")
    dense, routed = dict(block_shapes(shape, 2)), dict(block_shapes(shape, 3))
    assert block_shapes(shape) == block_shapes(shape, 2)
    assert dense["mlp.gate.weight"] == (18432, 7168)
    assert "router.weight" not in dense
    assert routed["experts.gate.weight"] == (256, 2048, 7168)
    assert routed["experts.down.weight"] == (256, 7168, 2048)
    assert routed["shared.up.weight"] == (2048, 7168)
    assert routed["router.weight"] == (256, 7168)
    for block in (dense, routed):
        assert block["attention.kv_down.weight"] == (512 + 64, 7168)
        assert block["attention.kv_up.weight"] == (128 * (128 + 128), 512)
        assert block["attention.query_up.weight"] == (128 * (128 + 64), 1536)
        assert block["attention.output.weight"] == (7168, 128 * 128)
    assert dict(block_shapes(of_catalog("deepseek-v2-lite")))["attention.query.weight"] == (16 * 192, 2048)


def test_what_encoders_and_vision_transformers_have_around_their_blocks() -> None:
    def around(name: str) -> dict[str, tuple[int, ...]]:
        return {key: size for key, size in parameter_shapes(of_catalog(name)) if not key.startswith("blocks.")}

    bert, vit = around("bert-base"), around("vit-b-16")
    assert bert["token_types.weight"] == (2, 768)
    assert bert["transform.weight"] == (768, 768)
    assert bert["head.bias"] == (30522,), "the decoder is the embedding, with a bias of its own"
    assert "head.weight" not in bert
    assert "norm.weight" not in bert, "its blocks end with one"
    assert {"embed_norm.bias", "transform_norm.weight"} < set(bert)
    assert vit["patch.weight"] == (768, 3 * 16 * 16)
    assert vit["class_token"] == (1, 1, 768)
    assert vit["positions.weight"] == (14 * 14 + 1, 768)
    assert (vit["head.weight"], vit["head.bias"]) == ((1000, 768), (1000,))


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
