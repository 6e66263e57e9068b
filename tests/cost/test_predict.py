"""The predicted Bill: every field, parts that add up, and what scales with what."""

from __future__ import annotations

import pytest
from cost_examples import cores, gpt, gpus, job, recipe, recipes, shape, shapes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost.flops import forward_flops_per_token
from thrifty.cost.predict import predict
from thrifty.cost.run import checkpoints, evaluations
from thrifty.spec import ModelShape, Recipe
from thrifty.spec.bill import MEMORY_TERMS, TIME_PARTS
from thrifty.spec.recipe import Checkpoint, Evaluation


@given(shapes(), recipes(), st.booleans())
def test_every_field_is_filled_and_parts_add_up(model: ModelShape, how: Recipe, laptop: bool) -> None:
    bill = predict(job(model), cores(4) if laptop else gpus(16), how)
    assert tuple(bill.seconds_by_part) == TIME_PARTS
    assert set(bill.memory) == set(MEMORY_TERMS)
    assert set(bill.link_bytes) == {"intra_node", "inter_node", "inter_island"}
    assert sum(f.value for f in bill.seconds_by_part.values()) == pytest.approx(bill.seconds.value)
    for name, figure in bill.terms():
        assert figure.value >= 0, name
        assert figure.provenance == "modelled"
        assert figure.source, name
        if figure.low is not None and figure.high is not None:
            assert figure.low <= figure.value <= figure.high, name
    assert 0 < bill.mfu.value < 1
    assert bill.loss is None


@given(recipes(), st.integers(1, 50), st.integers(2, 5))
def test_steps_cost_in_proportion(how: Recipe, steps: int, times: int) -> None:
    bill, longer = (predict(job(steps=n), gpus(16), how) for n in (steps, steps * times))
    for part in ("compute", "communication", "optimizer", "data"):
        assert longer.seconds_by_part[part].value == pytest.approx(times * bill.seconds_by_part[part].value)
    assert longer.tokens.value == times * bill.tokens.value
    assert longer.model_flops.value == pytest.approx(times * bill.model_flops.value)
    assert longer.memory == bill.memory


def test_tokens_give_the_steps() -> None:
    bill = predict(job(steps=None, tokens=1000), gpus(), recipe(micro=2))
    assert bill.steps.value == 4  # of 2 x 128 tokens
    assert bill.tokens.value == 1024


@given(st.floats(0.01, 100), st.floats(1, 1000), st.floats(1, 3))
def test_money_and_emissions_are_linear_in_their_prices(price: float, grid: float, pue: float) -> None:
    base, other = predict(job(), gpus(), recipe()), predict(job(), gpus(price=price, grid=grid, pue=pue), recipe())
    assert other.seconds == base.seconds
    assert other.usd.value == pytest.approx(base.usd.value * price / 2.0)
    assert other.energy.value == pytest.approx(base.energy.value * pue / 1.25)
    assert other.co2.value == pytest.approx(base.co2.value * grid / 400 * pue / 1.25)


def test_every_device_is_paid_for() -> None:
    """8 devices at $2: two of them in use or all, the hour costs $16; a busy one draws 100 + 500 x 0.8 + 100 W."""
    for how in (recipe(shard=2), recipe(shard=8)):
        bill = predict(job(), gpus(), how)
        hours = bill.seconds.value / 3600
        assert bill.usd.value == pytest.approx(16 * hours)
        assert bill.energy.value / 3.6e6 == pytest.approx(8 * 0.6 * 1.25 * hours)
        assert bill.co2.value == pytest.approx(bill.energy.value / 3.6e6 * 400)


def test_goodput_adds_lost_time() -> None:
    bill = predict(job(), gpus(goodput=0.8), recipe())
    assert bill.seconds_by_part["other"].value == pytest.approx(0.2 * bill.seconds.value)
    assert predict(job(), gpus(goodput=1), recipe()).seconds_by_part["other"].value == 0


@pytest.mark.parametrize(
    ("every", "steps", "times"), [(0, 100, 1), (10, 100, 10), (30, 100, 4), (100, 100, 1), (7, 100, 15)]
)
def test_evaluations_and_checkpoints_come_at_the_end_too(every: int, steps: int, times: int) -> None:
    how = recipe(evaluation=Evaluation(every_steps=every), checkpoint=Checkpoint(every_steps=every))
    assert evaluations(how, steps) == checkpoints(how, steps) == times


def test_hardware_flops_hold_recomputation_and_evaluation() -> None:
    how = recipe(recompute="full", evaluation=Evaluation(every_steps=50, sequences=10))
    bill = predict(job(gpt()), gpus(), how)
    evaluated = 2 * 10 * 128 * forward_flops_per_token(gpt(), 128)
    assert bill.hardware_flops.value > bill.model_flops.value + evaluated
    none = predict(job(gpt()), gpus(), recipe(evaluation=Evaluation(every_steps=50, sequences=10)))
    assert none.hardware_flops.value == pytest.approx(none.model_flops.value + evaluated)


def test_an_asynchronous_checkpoint_only_copies() -> None:
    plain, aside = (
        predict(job(), gpus(), recipe(checkpoint=Checkpoint(every_steps=10, asynchronous=a))) for a in (False, True)
    )
    assert aside.seconds_by_part["checkpoint"].value < plain.seconds_by_part["checkpoint"].value


def test_the_loss_is_there_where_the_law_applies() -> None:
    large = shape(layers=12, hidden=768, heads=12, kv_heads=12, ffn=2048, vocab_size=32000)
    bill = predict(job(large, steps=100_000, sequence_length=1024), gpus(), recipe(shard=8, micro=8))
    assert bill.loss is not None
    assert bill.loss.low < bill.loss.value < bill.loss.high
    assert "2404.10102" in bill.loss.source


def test_a_tiny_model_on_two_cores_takes_tens_of_milliseconds() -> None:
    """nanoGPT's CPU shape. Products alone take 19 ms at these rates; overheads must neither vanish nor dominate."""
    model = gpt(hidden=128, ffn=512, vocab_size=65, max_positions=64, bias="none")
    bill = predict(job(model, sequence_length=64), cores(2), recipe(micro=12, precision="fp32"))
    assert 0.019 < bill.step_seconds.value < 0.060
