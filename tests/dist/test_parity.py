"""Every layout computes what one process computes: loss, gradient norm and all gradients, within rounding."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partialmethod

import pytest
from parity import LLAMA, SEQUENCE, Case, Result, bound, compare, take_steps
from torch import nn

pytestmark = pytest.mark.dist

TERMS = 8 * SEQUENCE + LLAMA["ffn"]  # the longest sum: of a weight's gradient over the tokens of a step
LAYOUTS = [
    {"shard": 2},
    {"island": 2},
    {"shard": 2, "reshard_after_forward": False},
    {"shard": 4},
    {"island": 2, "shard": 2},
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": False},
    {"tensor": 4},
    {"tensor": 4, "sequence_parallel": False},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "tensor": 2, "sequence_parallel": False},
    {"island": 2, "tensor": 2},
    {"island": 2, "shard": 2, "tensor": 2},
    {"context": 2},
    {"context": 4},
    {"shard": 2, "context": 2},
    {"island": 2, "context": 2},
    {"context": 2, "tensor": 2},
    {"context": 2, "tensor": 2, "sequence_parallel": False},
    {"pipeline": 2, "context": 2},
    {"pipeline": 2, "context": 2, "schedule": "zbv", "interleave": 2},
    {"pipeline": 2, "tensor": 2},
    {"pipeline": 2, "tensor": 2, "sequence_parallel": False, "schedule": "zbv", "interleave": 2},
    {"pipeline": 2, "shard": 2, "tensor": 2, "schedule": "zero_bubble"},
]


@lru_cache(maxsize=64)
def alone(case: Case) -> Result:
    """One process, all sequences in one microbatch."""
    return take_steps(case)


def reference(case: Case) -> Result:
    return alone(_Hashable(**vars(replace(case, layout={}, micro=case.sequences, stages=None))))


class _Hashable(Case):
    def __hash__(self) -> int:
        return hash(str(vars(self)))


def named(layout: dict[str, object]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in layout.items())


def in_two(case: Case) -> Case:
    """Two microbatches a step: gradients add up, and messages are few."""
    return replace(case, micro=case.sequences // case.recipe.layout.data_ranks // 2)


@pytest.mark.parametrize("shape", ["llama", "gpt", "qwen"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_loss_and_gradients_equal_one_process(pool, layout, shape):
    case = in_two(Case(shape=shape, layout=layout, clip=0.5))
    ranks = case.recipe.layout.ranks
    for result in pool(ranks).run(take_steps, case):
        assert compare(reference(case), result, bound("float64", TERMS, LLAMA["layers"])) == []


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_in_fp32_they_differ_by_rounding(pool, layout):
    case = in_two(Case(layout=layout, dtype="float32", clip=0.5))
    for result in pool(case.recipe.layout.ranks).run(take_steps, case):
        assert compare(reference(case), result, bound("float32", TERMS, LLAMA["layers"])) == []


@pytest.mark.parametrize("layout", [*LAYOUTS[:3], {"tensor": 2}, {"shard": 2, "tensor": 2}, {"context": 4}], ids=named)
def test_in_bf16_they_differ_by_its_rounding(pool, layout):
    """Weights' gradients are rounded to bf16 for each rank's tokens apart before they are summed in fp32."""
    case = in_two(Case(layout=layout, dtype="float32", precision="bf16"))
    for result in pool(case.recipe.layout.ranks).run(take_steps, case):
        assert compare(reference(case), result, 8 * 2.0**-8) == []


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ({"shard": 2}, "llama"),
        ({"island": 2, "shard": 2}, "gpt"),
        ({"tensor": 2}, "qwen"),
        ({"shard": 2, "tensor": 2}, "gpt"),
        ({"shard": 2, "tensor": 2, "sequence_parallel": False}, "odd"),
        ({"island": 2, "shard": 2, "tensor": 2}, "qwen"),
        ({"context": 2}, "gpt"),
        ({"shard": 2, "context": 2}, "odd"),
    ],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_twenty_steps_with_clipping_and_accumulation(pool, layout, shape):
    """Rounding grows with each step; twenty times one step's bound is generous in fp64 and still far below any bug."""
    case = in_two(Case(shape=shape, layout=layout, clip=0.3, steps=20, recompute="full"))
    for result in pool(case.recipe.layout.ranks).run(take_steps, case):
        assert compare(reference(case), result, 1e3 * bound("float64", TERMS, LLAMA["layers"])) == []


def compiled_without_a_backend(case: Case) -> Result:
    """`take_steps` with blocks that are traced and run as traced, which needs no C++ compiler."""
    compile_module = nn.Module.compile
    nn.Module.compile = partialmethod(compile_module, backend="aot_eager")
    try:
        return take_steps(case)
    finally:
        nn.Module.compile = compile_module


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_compiled_blocks_call_the_ring(pool, recompute):
    case = in_two(Case(shape="qwen", layout={"context": 2}, clip=0.5, compile=True, recompute=recompute))
    for result in pool(2).run(compiled_without_a_backend, case):
        assert compare(reference(replace(case, compile=False)), result, bound("float64", TERMS, LLAMA["layers"])) == []


def test_a_wrong_gradient_would_be_seen():
    """One step with other targets: far outside the bound that layouts must keep."""
    case = Case()
    other = take_steps(replace(case, sequences=7, micro=7))
    assert compare(reference(case), other, bound("float32", TERMS, LLAMA["layers"])) != []
