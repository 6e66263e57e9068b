"""Batches that grow: their stages, their rates, and that they never fall."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from thrifty.laws import ramp
from thrifty.spec import Job, Recipe

LENGTH = 64
MODEL = {"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": 257}


def job(**changes: Any) -> Job:
    return Job.model_validate({"model": MODEL, "steps": 2000, "sequence_length": LENGTH, **changes})


def recipe(name: str, most: int = 96, micro: int = 12, ranks: int = 1, **changes: Any) -> Recipe:
    more = {"linear": {"to_tokens": 10**6}}
    batch = {"sequences": 12 * ranks, "micro_sequences": micro}
    batch["ramp"] = {"name": name, "most_sequences": most, **more.get(name, {}), **changes.pop("ramp", {})}
    return Recipe.model_validate({"batch": batch, "layout": {"shard": ranks}, **changes})


def walk(asked: Job, how: Recipe) -> list[int]:
    """Batches step by step, as a run takes them."""
    total, done, found = ramp.total_sequences(asked, how), 0, []
    while done < total:
        found.append(ramp.next_batch(how, how.batch.sequences, done, total, LENGTH))
        done += found[-1]
    assert done == total
    return found


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["linear", "seesaw"]),
    shape=st.sampled_from(["cosine", "linear", "wsd", "inverse_sqrt"]),
    floor=st.sampled_from([0.0, 0.1, 0.5]),
    micro=st.sampled_from([1, 2, 3, 12]),
    ranks=st.integers(1, 3),
    most=st.integers(80, 400),
    count=st.integers(1, 1500),
    warmup=st.integers(0, 100),
)
def test_stages_are_the_steps_of_a_run(
    name: str, shape: str, floor: float, micro: int, ranks: int, most: int, count: int, warmup: int
) -> None:
    how = recipe(
        name, most, micro, ranks, schedule={"name": shape, "final_ratio": floor, "warmup_steps": warmup},
        ramp={"from_tokens": 1000},
    )  # fmt: skip
    asked = job(steps=count)
    batches = walk(asked, how)
    told = [stage.sequences for stage in ramp.stages(asked, how) for _ in range(stage.steps)]
    assert told[:-1] == batches[:-1], "the last step takes what is left"
    assert batches[-1] <= told[-1]
    assert all(batch % (micro * ranks) == 0 for batch in batches)
    assert batches[:-1] == sorted(batches[:-1])
    assert max(batches) <= most


def test_seesaw_cuts_the_rate_by_the_root_and_the_batch_makes_up_for_it() -> None:
    how = recipe("seesaw", most=10**6, micro=1, schedule={"name": "cosine", "warmup_steps": 0, "final_ratio": 0.1})
    total = ramp.total_sequences(job(), how)
    for done in (0, total // 3, total // 2, total - 400):
        batch = ramp.next_batch(how, 12, done, total, LENGTH)
        share = ramp.learning_rate(how, 12, done, total) / how.optimizer.lr
        assert batch == pytest.approx(12 / share, abs=1)
        assert ramp.learning_rate(how, batch, done, total) == pytest.approx(how.optimizer.lr * share**0.5, rel=0.05)


def test_once_the_batch_may_not_grow_the_schedule_goes_on() -> None:
    how = recipe("seesaw", most=24, schedule={"name": "linear", "warmup_steps": 0, "final_ratio": 0.0})
    total = ramp.total_sequences(job(), how)
    late = [ramp.learning_rate(how, 24, done, total) for done in (total * 3 // 4, total * 7 // 8)]
    assert late[0] / late[1] == pytest.approx(2)


def test_linear_ends_when_it_says() -> None:
    how = recipe("linear", most=96, micro=1, ramp={"from_tokens": 64_000, "to_tokens": 128_000})
    at = [ramp.next_batch(how, 12, done, 10**6, LENGTH) for done in (0, 1000, 1500, 2000, 10**5)]
    assert at == [12, 12, 54, 96, 96]


@pytest.mark.parametrize(("noise", "batch"), [(0, 12), (119, 12), (120.1, 24), (1e9, 24)])
def test_a_measurement_doubles_the_batch_at_most(noise: float, batch: int) -> None:
    assert ramp.doubled(recipe("noise_scale"), 12, noise) == batch
    assert ramp.doubled(recipe("noise_scale", most=23, micro=1), 12, 1e9) == 12, "not beyond the most"


def test_what_is_measured_is_expected_by_the_law() -> None:
    found = ramp.stages(
        job(), recipe("noise_scale", most=24), critical=lambda tokens: 12 * LENGTH * (1 + tokens / 500_000)
    )
    assert [stage.sequences for stage in found] == [12, 24]
    assert found[1].first * LENGTH == pytest.approx(500_000, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "exponent"),
    [({}, 0.5), ({"follows": "linear"}, 1.0), ({"follows": "none"}, 0.0), ({"follows": "sqrt"}, 0.5)],
)
def test_the_rate_follows_the_batch(changes: dict[str, str], exponent: float) -> None:
    how = recipe("linear", ramp=changes)
    rates = [ramp.learning_rate(how, batch, 5000, 24_000) for batch in (12, 48)]
    assert rates[1] / rates[0] == pytest.approx(4**exponent)


def test_tokens_and_steps_are_two_ways_to_say_the_length() -> None:
    how = recipe("seesaw")
    assert ramp.total_sequences(job(), how) == 24_000
    assert ramp.total_sequences(job(steps=None, tokens=24_000 * LENGTH), how) == 24_000
    assert ramp.total_sequences(job(steps=None, tokens=24_000 * LENGTH + 1), how) == 24_012
    saved = 1 - ramp.steps(job(), how) / 2000
    assert 0.25 < saved < 0.45


@pytest.mark.parametrize(
    ("name", "most", "changes", "said"),
    [
        ("seesaw", 12, {}, "leaves no room to grow"),
        ("seesaw", 24, {"schedule": {"name": "constant"}}, "constant never does"),
        ("linear", 24, {"ramp": {"to_tokens": 5, "from_tokens": 5}}, "ends later than it begins"),
    ],
)
def test_ramps_that_cannot_be(name: str, most: int, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(name, most, **changes)
