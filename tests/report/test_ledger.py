"""What a run folder says, whole, half written or damaged; and the cost of reaching a loss."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.report.ledger import Row, cost_to_target, read_ledger, thinned
from thrifty.spec import ThriftyError

ROWS = [
    Row(10, 4.0, 100.0, 10.0, 1.0, 50.0),
    Row(20, 3.0, 200.0, 30.0, 3.0, 90.0),
    Row(30, 2.0, 300.0, 40.0, 4.0, 95.0),
]


def test_cost_lies_between_the_evaluations_around_the_target() -> None:
    cost = cost_to_target(ROWS, 2.75, flops_per_token=6.0)
    assert cost.reached
    assert (cost.tokens, cost.seconds, cost.usd, cost.joules) == (225.0, 32.5, 3.25, 91.25)
    assert cost.flops == 225.0 * 6.0
    assert cost.reason == ""


def test_cost_at_an_evaluation_is_what_that_evaluation_says() -> None:
    assert cost_to_target(ROWS, 3.0, 6.0).seconds == 30.0


def test_first_crossing_counts_even_when_the_loss_rises_again() -> None:
    rows = [*ROWS, Row(40, 5.0, 400.0, 50.0), Row(50, 1.0, 500.0, 60.0)]
    assert cost_to_target(rows, 2.5, 1.0).tokens == 250.0


def test_a_target_below_every_loss_is_never_reached() -> None:
    cost = cost_to_target(ROWS, 1.5, 6.0)
    assert not cost.reached
    assert cost.tokens is None
    assert "never reached" in cost.reason
    assert "2 at step 30" in cost.reason


def test_a_target_above_the_first_loss_is_an_upper_bound() -> None:
    cost = cost_to_target(ROWS, 9.0, 6.0)
    assert cost.tokens == 100.0
    assert "upper bound" in cost.reason


def test_without_evaluations_there_is_a_reason() -> None:
    assert "no evaluation" in cost_to_target([], 2.0, 6.0).reason


def test_unknown_money_stays_unknown() -> None:
    cost = cost_to_target([Row(1, 4.0, 10.0, 1.0), Row(2, 2.0, 20.0, 2.0)], 3.0, 6.0)
    assert cost.tokens == 15.0
    assert cost.usd is None


@given(
    drops=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=12),
    shares=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
)
def test_a_lower_target_never_costs_less(drops: list[float], shares: tuple[float, float]) -> None:
    losses = [10.0 - math.fsum(drops[:i]) for i in range(len(drops) + 1)]
    rows = [Row(i, loss, 100.0 * (i + 1), 1.0 * (i + 1)) for i, loss in enumerate(losses)]
    low, high = sorted(losses[-1] + share * (losses[0] - losses[-1]) for share in shares)
    dear, cheap = cost_to_target(rows, low, 1.0), cost_to_target(rows, high, 1.0)
    assert dear.reached
    assert rows[0].tokens <= cheap.tokens <= dear.tokens * (1 + 1e-12)
    assert dear.tokens <= rows[-1].tokens * (1 + 1e-12)


def test_a_whole_run(make_run) -> None:
    ledger = read_ledger(make_run(steps=100, every=20))
    assert ledger.measured is not None
    assert ledger.unbilled == ""
    assert [row.step for row in ledger.val] == [20, 40, 60, 80, 100]
    assert len(ledger.train) == 100
    assert ledger.final_loss == pytest.approx(ledger.measured.loss.value)
    assert ledger.flops_per_token == pytest.approx(3.0e6)
    assert ledger.manifest["runs"][0]["threads"] == 2
    assert not ledger.stopped_early


def test_a_killed_run_has_no_measured_bill_and_says_so(make_run) -> None:
    root = make_run(steps=100, run_steps=37, billed=False)
    with (root / "metrics.jsonl").open("a") as file:
        file.write('{"step": 38, "split": "tra')  # the kill cut this line short
    ledger = read_ledger(root)
    assert ledger.measured is None
    assert "killed" in ledger.unbilled
    assert ledger.bill is ledger.predicted
    assert ledger.last.step == 37


def test_a_run_that_stopped_early(make_run) -> None:
    assert read_ledger(make_run(steps=100, run_steps=60)).stopped_early


def test_losses_that_are_not_finite_are_counted_and_left_out(make_run) -> None:
    root = make_run(steps=20)
    with (root / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "split": "train", "loss": NaN, "tokens": 1, "seconds": 1}\n')
        file.write('{"step": 22, "split": "train", "loss": null, "tokens": 1, "seconds": 1}\n')
    ledger = read_ledger(root)
    assert ledger.dropped == 2
    assert len(ledger.train) == 20


def test_a_folder_that_does_not_exist_names_the_nearest(make_run) -> None:
    root = make_run("baseline")
    with pytest.raises(ThriftyError, match="no such run folder") as caught:
        read_ledger(root.with_name("baselin"))
    assert "'baseline'" in caught.value.hint


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ThriftyError, match=r"no plan\.yaml"):
        read_ledger(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("bill.json", "{", "the bill cannot be read"),
        ("bill.json", '{"predicted": {"maker": "predicted"}}', "the bill cannot be read"),
        ("bill.json", "[1]", "the bill cannot be read"),
        ("manifest.json", "nothing", "the manifest cannot be read"),
        ("metrics.jsonl", '{"step": 1, "split": "train", "loss": 2.0}\n', "without tokens, seconds"),
        ("metrics.jsonl", "7\n", "a row of metrics without"),
        (
            "metrics.jsonl",
            '{"step": 1, "split": "test", "loss": 2, "tokens": 1, "seconds": 1}\n',
            "neither train nor val",
        ),
        ("metrics.jsonl", '{"step": 1, "split": "val", "loss": "x", "tokens": 1, "seconds": 1}\n', "cannot be read"),
    ],
)
def test_damaged_files_are_named(make_run, file: str, content: str, what: str) -> None:
    root = make_run()
    (root / file).write_text(content)
    with pytest.raises(ThriftyError, match=what) as caught:
        read_ledger(root)
    assert file in caught.value.where


def test_a_run_without_metrics_or_manifest_is_still_read(make_run) -> None:
    root = make_run(billed=False)
    (root / "metrics.jsonl").unlink()
    (root / "manifest.json").unlink()
    ledger = read_ledger(root)
    assert ledger.last is None
    assert ledger.final_loss is None
    assert ledger.manifest == {}


@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=60), st.integers(1, 40))
def test_thinning_keeps_the_end_and_the_mean(losses: list[float], most: int) -> None:
    rows = [Row(i, loss, 10.0 * i, 1.0 * i) for i, loss in enumerate(losses)]
    thin = thinned(rows, most)
    assert len(thin) == min(most, len(rows))
    assert thin[-1].tokens == rows[-1].tokens
    assert min(losses) <= min(row.loss for row in thin) * (1 + 1e-12)
    if len(rows) % len(thin) == 0:
        assert math.fsum(row.loss for row in thin) / len(thin) == pytest.approx(math.fsum(losses) / len(losses))


def test_rows_written_by_another_order_of_keys(make_run) -> None:
    root = make_run(steps=3)
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    (root / "metrics.jsonl").write_text("".join(json.dumps(dict(reversed(row.items()))) + "\n" for row in rows))
    assert len(read_ledger(root).train) == 3
