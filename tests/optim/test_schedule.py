"""Learning-rate schedules at their corners."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.optim.schedule import learning_rate
from thrifty.spec.recipe import Schedule


def test_warm_up_moves_from_the_first_step() -> None:
    schedule = Schedule(warmup_steps=4)
    assert [learning_rate(schedule, 8.0, step, 100) for step in range(4)] == [2.0, 4.0, 6.0, 8.0]


def test_cosine_falls_to_the_floor() -> None:
    schedule = Schedule(name="cosine", warmup_steps=10, final_ratio=0.1)
    assert learning_rate(schedule, 1.0, 10, 110) == 1.0
    assert learning_rate(schedule, 1.0, 60, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert learning_rate(schedule, 1.0, 110, 110) == pytest.approx(0.1)


def test_wsd_holds_then_falls_linearly() -> None:
    schedule = Schedule(name="wsd", warmup_steps=0, final_ratio=0.0, decay_fraction=0.2)
    assert learning_rate(schedule, 1.0, 79, 100) == 1.0
    assert learning_rate(schedule, 1.0, 89, 100) == pytest.approx(0.5)
    assert learning_rate(schedule, 1.0, 99, 100) == pytest.approx(0.0)


def test_constant() -> None:
    assert learning_rate(Schedule(name="constant", warmup_steps=0), 0.3, 77, 100) == 0.3


@given(
    name=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.integers(0, 50),
    total=st.integers(51, 500),
    data=st.data(),
)
def test_never_above_the_peak_and_never_rising_after_warm_up(
    name: str, warmup: int, total: int, data: st.DataObject
) -> None:
    schedule = Schedule.model_validate({"name": name, "warmup_steps": warmup})
    step = data.draw(st.integers(warmup, total - 1))
    now, later = (learning_rate(schedule, 2.0, s, total) for s in (step, step + 1))
    assert 0 <= later <= now <= 2.0
