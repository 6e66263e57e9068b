"""A pipeline computes what one process computes, under each schedule, alone and with the other axes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from parity import LLAMA, Case, bound, compare, take_steps
from test_parity import TERMS, named, reference

pytestmark = pytest.mark.dist

SCHEDULES = {
    "gpipe": {"schedule": "gpipe"},
    "1f1b": {"schedule": "1f1b"},
    "interleaved": {"schedule": "interleaved", "interleave": 2},
    "zero_bubble": {"schedule": "zero_bubble"},
    "zbv": {"schedule": "zbv", "interleave": 2},
}


@pytest.mark.parametrize("shape", ["llama", "gpt", "qwen"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_equals_one_process(pool, schedule, shape):
    case = Case(shape=shape, layout={"pipeline": 2} | SCHEDULES[schedule], clip=0.5)
    for result in pool(2).run(take_steps, case):
        assert compare(reference(case), result, bound("float64", TERMS, LLAMA["layers"])) == []
