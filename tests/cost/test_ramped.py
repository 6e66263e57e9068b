"""Runs whose batch grows, priced: phases by hand, time as their sum, tokens that are not wasted."""

from __future__ import annotations

import pytest
from cost_examples import gpus, job, recipe

from thrifty.cost.memory import memory
from thrifty.cost.predict import predict
from thrifty.cost.ramped import Phase, at_batch, phases, useful_tokens
from thrifty.cost.run import estimate
from thrifty.cost.step import step_seconds
from thrifty.spec import Recipe
from thrifty.spec.schedule import Ramp, Schedule

LENGTH = 128


def ramped(sequences: int = 8, most: int = 16, **changes: object) -> Recipe:
    """One rank, microbatches of 2; linear from the start over 64 sequences unless told otherwise."""
    asked = {"name": "linear", "most_sequences": most, "to_tokens": 64 * LENGTH} | changes
    plain = recipe(micro=2, accumulation=sequences // 2)
    return plain.model_copy(update={"batch": plain.batch.model_copy(update={"ramp": Ramp(**asked)})})


def test_phases_by_hand() -> None:
    """8 + 8 x done / 64 in steps of 2: 8 until 16 sequences are done, then 10 (at 16), 10 (26: 11.25), 12 (36), ..."""
    found = phases(job(tokens=200 * LENGTH, steps=None), ramped())
    # After 8, 16, 26, 36, 48, 62, 78 sequences: 8 + done / 8 = 9, 10, 11.25, 12.5, 14, 15.75, 16 at most.
    assert found[:5] == (Phase(2, 8), Phase(2, 10), Phase(1, 12), Phase(2, 14), Phase(8, 16))
    assert sum(phase.steps * phase.sequences for phase in found) >= 200


def test_time_is_that_of_the_phases() -> None:
    wanted, how = job(tokens=200 * LENGTH, steps=None), ramped()
    run, found = estimate(wanted, gpus(1), how), phases(wanted, how)
    by_hand = sum(
        phase.steps * step_seconds(wanted, gpus(1), at_batch(how, phase.sequences)).total for phase in found
    )  # fmt: skip
    assert run.steps == sum(phase.steps for phase in found)
    assert run.steps * run.step.total == pytest.approx(by_hand)
    assert sum(run.step.limits.values()) == pytest.approx(run.step.total)
    bill = predict(wanted, gpus(1), how)
    assert bill.tokens.value == 200 * LENGTH
    assert bill.steps.value == run.steps


def test_many_batches_are_priced_between_a_few() -> None:
    """A step is a straight line of its microbatches, so that nothing is lost."""
    wanted, how = job(tokens=20_000 * LENGTH, steps=None), ramped(4, 400, to_tokens=15_000 * LENGTH)
    found = phases(wanted, how)
    assert len({phase.sequences for phase in found}) > 50
    by_hand = sum(
        phase.steps * step_seconds(wanted, gpus(1), at_batch(how, phase.sequences)).total for phase in found
    )  # fmt: skip
    run = estimate(wanted, gpus(1), how)
    assert run.steps * run.step.total == pytest.approx(by_hand, rel=1e-3)


def test_a_batch_that_stays_is_priced_as_before() -> None:
    wanted = job(tokens=1600 * LENGTH, steps=None)
    plain, grown = at_batch(ramped(), 8), ramped(8, 16, to_tokens=10**12, from_tokens=10**11)
    one, two = estimate(wanted, gpus(1), plain), estimate(wanted, gpus(1), grown)
    assert two.steps == one.steps == 200
    assert two.seconds == pytest.approx(one.seconds)


def test_fewer_steps_on_many_ranks_take_less_time() -> None:
    """Seesaw grows the batch as the rate falls: as many tokens, and gradients cross between ranks less often."""
    plain = recipe(shard=8, micro=1, accumulation=1, schedule=Schedule(warmup_steps=10, final_ratio=0.1))
    ramp = Ramp(name="seesaw", most_sequences=64)
    grown = plain.model_copy(update={"batch": plain.batch.model_copy(update={"ramp": ramp})})
    wanted = job(tokens=100_000 * LENGTH, steps=None)
    one, two = (estimate(wanted, gpus(8), how) for how in (plain, grown))
    assert two.steps < 0.75 * one.steps
    assert two.seconds < one.seconds
    assert predict(wanted, gpus(8), grown).tokens.value == predict(wanted, gpus(8), plain).tokens.value


def test_memory_is_of_the_largest_batch() -> None:
    """A second microbatch needs gradients of the first, which a run that begins with one has too once it grows."""
    plain = recipe(shard=4, micro=2)
    grown = plain.model_copy(update={"batch": plain.batch.model_copy(
        update={"ramp": Ramp(name="linear", most_sequences=32, to_tokens=10**6)})})  # fmt: skip
    several = recipe(shard=4, micro=2, accumulation=4)
    assert memory(job(), gpus(4), grown) == memory(job(), gpus(4), several)
    assert memory(job(), gpus(4), plain).peak <= memory(job(), gpus(4), grown).peak


def test_useful_tokens_by_hand() -> None:
    """At its critical batch a run wastes a sixth of its tokens; at half of it a tenth of what is useful."""
    wanted = job(tokens=1600 * LENGTH, steps=None)
    plain = at_batch(ramped(), 8)
    total = 1600 * LENGTH
    assert useful_tokens(wanted, plain, lambda _: 8 * LENGTH) == pytest.approx(total / 1.2)
    assert useful_tokens(wanted, plain, lambda _: 16 * LENGTH) == pytest.approx(total / 1.1)
    grown = useful_tokens(wanted, ramped(), lambda _: 8 * LENGTH)
    assert total / 1.4 < grown < total / 1.2
