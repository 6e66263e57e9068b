"""Learning-rate schedules at their corners."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.optim.schedule import learning_rate, multiplier
from thrifty.spec.schedule import Schedule


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


def test_linear_falls_evenly_to_the_floor() -> None:
    schedule = Schedule(name="linear", warmup_steps=10, final_ratio=0.2)
    assert [learning_rate(schedule, 1.0, step, 110) for step in (10, 60, 110)] == pytest.approx([1.0, 0.6, 0.2])


def test_inverse_sqrt_halves_when_steps_are_four_times_as_many() -> None:
    schedule = Schedule(name="inverse_sqrt", warmup_steps=25)
    assert learning_rate(schedule, 3.0, 24, 10_000) == 3.0
    assert learning_rate(schedule, 3.0, 99, 10_000) == pytest.approx(1.5)
    assert learning_rate(schedule, 3.0, 2499, 10_000) == pytest.approx(0.3)
    assert learning_rate(schedule.model_copy(update={"warmup_steps": 0}), 3.0, 0, 10) == 3.0


def test_a_multiplier_drives_torch_s_own_scheduler() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier("linear", 10, warmup_steps=2, final_ratio=0.0))
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == [
        learning_rate(Schedule(name="linear", warmup_steps=2, final_ratio=0.0), 2.0, i, 10) for i in range(10)
    ]


def test_constant() -> None:
    assert learning_rate(Schedule(name="constant", warmup_steps=0), 0.3, 77, 100) == 0.3


@given(
    name=st.sampled_from(["cosine", "wsd", "linear", "inverse_sqrt", "constant"]),
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
