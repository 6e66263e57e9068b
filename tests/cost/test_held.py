"""What ranks hold: against the real module split by DTensor and FSDP2, and by the arithmetic of other software."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from cost_examples import gpt, shape
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost.held import held, local_size, stage_layers, states
from thrifty.cost.optimizer import Kept
from thrifty.cost.params import parameter_shapes, total_parameters
from thrifty.spec import ModelShape
from thrifty.spec.recipe import Layout, Optimizer

EXPERTS = {"count": 8, "active": 2, "ffn": 96, "shared": 1, "dense_layers": 1}
LATENT = {"q_rank": 48, "kv_rank": 32, "nope_dim": 64, "rope_dim": 32, "value_dim": 64}
WORLD = 24


@pytest.fixture(scope="module")
def world() -> Iterator[Any]:
    """A process group of `WORLD` ranks of which only this one exists: nothing is sent."""
    torch = pytest.importorskip("torch")
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    yield torch
    dist.destroy_process_group()


def sharded(torch: Any, model: ModelShape, island: int, shard: int, tensor: int) -> Any:
    """The module, on the meta device, as tensor parallelism and fully sharded data parallel leave it to rank 0."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    from thrifty.model.transformer import Transformer

    with torch.device("meta"):
        module = Transformer(model)
    rest = WORLD // (island * shard * tensor)
    mesh = init_device_mesh("cpu", (rest, island, shard, tensor), mesh_dim_names=("rest", "island", "shard", "tensor"))
    column, row, whole = ColwiseParallel(), RowwiseParallel(), SequenceParallel()
    inside = {"attention.output": row, "mlp.down": row, "attention_norm": whole, "mlp_norm": whole}
    inside |= {f"attention.{name}": column for name in ("query", "key", "value")}
    inside |= {f"mlp.{name}": column for name in (("gate", "up") if model.mlp == "swiglu" else ("up",))}
    outside = {"embed": RowwiseParallel(input_layouts=Replicate()), "norm": whole}
    if not model.tied_embeddings:
        outside["head"] = column
    data = mesh["shard"] if island == 1 else mesh["island", "shard"]
    for block in module.blocks:
        if tensor > 1:
            parallelize_module(block, mesh["tensor"], inside)
        fully_shard(block, mesh=data)
    if tensor > 1:
        parallelize_module(module, mesh["tensor"], outside)
    fully_shard(module, mesh=data)
    return module


MODELS = {
    "llama": shape(),
    "nothing divides": shape(hidden=264, heads=6, kv_heads=2, ffn=700, vocab_size=1003),
    "gpt": gpt(heads=8, positions="rope", vocab_size=514),
    "tied": shape(tied_embeddings=True, bias="qkv"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("island", "shard", "tensor"), [(1, 4, 1), (1, 3, 2), (2, 3, 2), (1, 12, 2), (2, 6, 1)])
def test_states_are_those_of_the_sharded_module(world: Any, name: str, island: int, shard: int, tensor: int) -> None:
    model = MODELS[name]
    module = sharded(world, model, island, shard, tensor)
    local = {key: p.to_local() for key, p in module.named_parameters()}
    optimizer = world.optim.AdamW(module.parameters(), foreach=False)
    for parameter in module.parameters():
        parameter.grad = world.zeros_like(parameter)
    optimizer.step()
    counted = sum(
        value.to_local().nbytes if hasattr(value, "to_local") else value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
    )
    layout = Layout(island=island, shard=shard, tensor=tensor)
    piece = held(model, layout, "torchtitan")[0]
    predicted = states(piece, "torchtitan", "bf16", 3, Kept())
    assert predicted.parameters == sum(part.nbytes for part in local.values())
    assert predicted.gradients == sum(p.grad.to_local().nbytes for p in module.parameters())
    assert predicted.optimizer == counted
    assert piece.tensors == len(local)


@pytest.mark.parametrize(
    ("name", "bits"), [("adamw", 8), ("adamw", 4), ("lion", 8), ("lamb", 32), ("lars", 32), ("muon", 8)]
)
def test_states_of_other_optimizers_are_those_of_the_sharded_module(world: Any, name: str, bits: int) -> None:
    """A rank's piece of a tensor decides whether it is small."""
    from thrifty.trainer.memory import optimizer_bytes
    from thrifty.trainer.optimizers import build_optimizer

    model = MODELS["nothing divides"]
    module = sharded(world, model, 2, 6, 1).to_empty(device="cpu")
    optimizer = build_optimizer(module, Optimizer(name=name, state_bits=bits))
    for parameter in module.parameters():
        parameter.grad = world.zeros_like(parameter)
    optimizer.step()
    piece = held(model, Layout(island=2, shard=6), "thrifty")[0]
    assert states(piece, "thrifty", "bf16", 3, Kept(name, bits)).optimizer == optimizer_bytes(optimizer)


def test_what_a_rank_computes_with_is_the_unsharded_dtensor(world: Any) -> None:
    model = MODELS["nothing divides"]
    module = sharded(world, model, 1, 1, 2)
    for key, parameter in module.named_parameters():
        name = key.split(".", 2)[2] if key.startswith("blocks.") else key
        assert tuple(parameter.to_local().shape) == local_size(name, tuple(parameter.shape), model, 2, 1), key


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    shard, context = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2]))
    expert = draw(st.sampled_from([size for size in (1, 2, 4) if shard * context % size == 0]))
    return Layout(
        shard=shard, context=context, expert=expert, pipeline=draw(st.integers(1, 4)),
        tensor=draw(st.sampled_from([1, 2, 4])),
    )  # fmt: skip


@given(layouts(), st.sampled_from(["torchtitan", "megatron", "nanotron"]), st.booleans(), st.booleans())
def test_all_ranks_together_hold_the_model_at_least_once(
    layout: Layout, software: str, experts: bool, latent: bool
) -> None:
    model = shape(
        layers=6, heads=4, kv_heads=4, experts=EXPERTS if experts else None, latent=LATENT if latent else None
    )
    pieces = held(model, layout, software)
    ranks = layout.tensor * layout.shard * layout.context
    assert sum(piece.shard for piece in pieces) * ranks >= total_parameters(model)
    assert sorted(layer for piece in pieces for layer in piece.layers) == list(range(6))
    assert pieces[-1].head * layout.tensor >= model.vocab_size * model.hidden
    assert all(piece.shard <= piece.whole for piece in pieces)


@given(layouts())
def test_one_stage_without_splits_holds_every_parameter(layout: Layout) -> None:
    alone = layout.model_copy(update={"pipeline": 1, "tensor": 1, "expert": 1})
    model = shape(experts=EXPERTS, latent=LATENT)
    assert held(model, alone, "megatron")[0].whole == sum(math.prod(size) for _, size in parameter_shapes(model))


def test_a_tied_embedding_is_on_the_first_and_the_last_stage() -> None:
    tied, untied = (held(shape(tied_embeddings=choice), Layout(pipeline=2), "megatron") for choice in (True, False))
    assert [piece.whole for piece in tied] == [piece.whole for piece in untied]
    alone = held(shape(tied_embeddings=True), Layout(), "megatron")[0]
    assert sum(piece.whole for piece in tied) - alone.whole == shape().vocab_size * shape().hidden
    assert [piece.head > 0 for piece in tied] == [False, True]


def test_stages_of_other_software() -> None:
    """torchtitan counts embedding and head as layers; nanotron weighs the head; chunks go round, or there and back."""
    model = shape(layers=14)
    sizes = [len(stage) for stage in stage_layers(model, 4, 1, "1f1b", "torchtitan")]
    assert sizes == [3, 4, 4, 3]
    assert [len(stage) for stage in stage_layers(model, 4, 1, "1f1b", "megatron")] == [4, 4, 3, 3]
    wide = shape(layers=16, vocab_size=10**5)
    weighed = [len(stage) for stage in stage_layers(wide, 2, 1, "1f1b", "nanotron")]
    assert weighed[0] > weighed[1]
    eight = shape(layers=8)
    assert stage_layers(eight, 2, 2, "interleaved", "megatron") == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert stage_layers(eight, 2, 2, "zbv", "megatron") == ((0, 1, 6, 7), (2, 3, 4, 5))
    assert held(eight, Layout(pipeline=2, interleave=2, schedule="zbv"), "megatron")[0].head > 0


def test_key_value_heads_fewer_than_tensor_ranks_are_repeated() -> None:
    model = shape(heads=8, kv_heads=2, hidden=256)
    assert local_size("attention.key.weight", (64, 256), model, 8, 1) == (32, 256)
    assert local_size("attention.query.weight", (256, 256), model, 8, 1) == (32, 256)


@pytest.mark.parametrize(
    ("software", "zero", "bytes_of_one"),
    [
        # Megatron-LM's distributed optimizer: 6 + 12 / d; without it 18.
        ("megatron", 0, 18), ("megatron", 1, 6 + 12 / 4), ("nanotron", 1, 6 + 12 / 4),
        # DeepSpeed: 4 + 16 / n, 18 / n in its third stage.
        ("deepspeed", 1, 4 + 16 / 4), ("deepspeed", 2, 4 + 16 / 4), ("deepspeed", 3, 18 / 4),
        ("accelerate", 3, 16 / 4), ("accelerate", 0, 16), ("torchtitan", 3, 16 / 4),
    ],
)  # fmt: skip
def test_bytes_of_an_element(software: str, zero: int, bytes_of_one: float) -> None:
    model = shape(hidden=256, ffn=1024, vocab_size=1024)
    piece = held(model, Layout(shard=4), software)[0]
    found = states(piece, software, "bf16", zero, Kept())
    total = found.parameters + found.gradients + found.optimizer - 4 * piece.tensors
    assert total == pytest.approx(bytes_of_one * total_parameters(model), rel=1e-6)


def test_low_bit_moments_carry_their_scales() -> None:
    piece = held(shape(), Layout(), "megatron")[0]
    full, half, low = (states(piece, "torchtitan", "bf16", 3, Kept(state_bits=bits)).optimizer for bits in (32, 16, 8))
    assert full - half == 4 * piece.shard
    assert low - 4 * piece.tensors == pytest.approx(piece.shard * (2 + 2 * 4 / 256))
