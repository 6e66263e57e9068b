"""Predicted beside measured, and run beside run."""

import pytest
from synthetic_runs import bill

from thrifty.report import summary, words
from thrifty.report.compare import bill_lines, compare_runs
from thrifty.report.ledger import COSTS, read_ledger
from thrifty.spec import Bill, ThriftyError
from thrifty.spec.figure import measured, modelled


def one(bill_left: Bill, bill_right: Bill | None, term: str):
    return next(line for line in bill_lines(bill_left, bill_right) if line.term == term)


def test_every_term_of_both_bills_has_a_line() -> None:
    left, right = (
        bill("predicted", steps=10, step_seconds=1.0, loss=None),
        bill("measured", steps=10, step_seconds=1.0, loss=2.0),
    )
    terms = [line.term for line in bill_lines(left, right)]
    assert set(terms) == {name for name, _ in left.terms()} | {name for name, _ in right.terms()}
    assert len(terms) == len(set(terms))


def test_difference_ratio_and_interval() -> None:
    left = bill("predicted", steps=10, step_seconds=1.0, loss=None)
    right = bill("measured", steps=10, step_seconds=1.1, loss=None)
    line = one(left, right, "step_seconds")
    assert line.difference == pytest.approx(0.1)
    assert line.ratio == pytest.approx(1.1)
    assert line.inside is True
    slow = bill("measured", steps=10, step_seconds=1.2, loss=None)
    assert one(left, slow, "step_seconds").inside is False
    assert (line.left.provenance, line.right.provenance) == ("modelled", "measured")


def test_a_side_that_lacks_the_term_leaves_the_rest_open() -> None:
    left = bill("predicted", steps=10, step_seconds=1.0, loss=None)
    right = bill("measured", steps=10, step_seconds=1.0, loss=2.0)
    line = one(left, right, "loss")
    assert line.left is None
    assert (line.difference, line.ratio, line.inside) == (None, None, None)
    assert one(left, None, "usd").right is None


def test_nothing_predicted_has_no_ratio_and_no_interval_no_verdict() -> None:
    left = bill("predicted", steps=10, step_seconds=1.0, loss=None)
    left = left.model_copy(update={"link_bytes": {"intra_node": modelled(0.0, "byte")}})
    right = left.model_copy(
        update={"link_bytes": {"intra_node": measured(8.0, "byte"), "inter_node": measured(5.0, "byte")}}
    )
    line = one(left, right, "link_bytes.intra_node")
    assert (line.difference, line.ratio, line.inside) == (8.0, None, None)
    names = [line.term for line in bill_lines(left, right)]
    assert names.index("link_bytes.inter_node") == names.index("link_bytes.intra_node") + 1


def test_two_runs_at_the_worse_of_their_final_losses(make_run) -> None:
    a, b = read_ledger(make_run("a")), read_ledger(make_run("b", speed=1.5, step_seconds=0.5, lr=2e-3))
    compared = compare_runs(a, b)
    assert compared.target == a.final_loss > b.final_loss
    assert compared.cost_a.tokens == a.val[-1].tokens
    assert compared.cost_b.tokens < b.val[-1].tokens
    for cost in COSTS:
        assert compared.ratios[cost] == pytest.approx(getattr(compared.cost_b, cost) / getattr(compared.cost_a, cost))
    assert [(d.key, d.a, d.b) for d in compared.differences] == [
        ("job.name", "a", "b"),
        ("recipe.optimizer.lr", "0.001", "0.002"),
    ]
    assert compared.warnings == ()
    assert "less money" in summary.compare_headline(compared)


def test_a_target_that_one_run_never_reached(make_run) -> None:
    a, b = read_ledger(make_run("a")), read_ledger(make_run("b", speed=3.0))
    compared = compare_runs(a, b, target=1.7)
    assert not compared.cost_a.reached
    assert compared.cost_b.reached
    assert set(compared.ratios.values()) == {None}
    assert summary.compare_headline(compared) == "Only B reached a validation loss of 1.7."
    assert "never reached" in summary.compare_subline(compared)


def test_unlike_data_is_a_warning(make_run) -> None:
    a = read_ledger(make_run("a"))
    b = read_ledger(make_run("b", data={"tokenizer": {"kind": "bpe"}}))
    assert "job.data.tokenizer.kind" in compare_runs(a, b).warnings[0]


def test_a_run_without_a_bill_is_compared_by_its_metrics(make_run) -> None:
    a, b = read_ledger(make_run("a")), read_ledger(make_run("b", run_steps=150, billed=False))
    compared = compare_runs(a, b)
    assert compared.target == b.final_loss
    assert compared.cost_a.reached
    assert compared.cost_b.reached
    assert any("B has no measured bill" in warning for warning in compared.warnings)


def test_no_evaluation_anywhere_asks_for_a_target(make_run) -> None:
    roots = [make_run(name, run_steps=10, every=50, billed=False) for name in "ab"]
    for root in roots:
        rows = (root / "metrics.jsonl").read_text().splitlines(keepends=True)
        (root / "metrics.jsonl").write_text("".join(row for row in rows if '"train"' in row))
    a, b = map(read_ledger, roots)
    with pytest.raises(ThriftyError, match="neither run has a validation loss"):
        compare_runs(a, b)
    assert "no evaluation" in compare_runs(a, b, target=2.0).cost_a.reason


def test_headlines(make_run) -> None:
    whole = read_ledger(make_run("whole"))
    assert summary.headline(whole).startswith(
        f"{whole.measured.usd} and {whole.measured.seconds} to a validation loss of"
    )
    assert "over" in summary.subline(whole)
    killed = read_ledger(make_run("killed", run_steps=120, billed=False))
    assert "so far" in summary.headline(killed)
    assert "step 120 of 400" in summary.headline(killed)
    assert any("killed" in note for note in summary.notes(killed))
    short = read_ledger(make_run("short", run_steps=120))
    assert any("120 of 400 steps" in note for note in summary.notes(short))
    assert "Measured" not in summary.subline(short)


def test_b_by_the_measure_of_a_in_words() -> None:
    assert words.needs([(0.87, "money"), (1.0, "time")]) == "13% less money and no more time than A"
    assert words.needs([(1.24, "money"), (0.001, "time")]) == "24% more money and 99.90% less time than A"
    assert words.needs([(5.24, "money"), (0.9, "time")]) == "5.24x the money and 0.9x the time of A"


def test_intervals_name_a_shared_unit_once() -> None:
    assert words.interval(modelled(3.0, "s", low=2.5, high=30.0)) == "2.5 to 30 s"
    assert words.interval(modelled(100.0, "s", low=90.0, high=150.0)) == "90 s to 2.5 min"
    assert words.interval(modelled(1.0, "usd", low=0.5, high=2.0)) == "$0.50 to $2.00"
    assert words.interval(modelled(0.4, "1", low=0.3, high=0.5), "mfu") == "30% to 50%"
    assert words.interval(modelled(3.0, "s")) == ""


def test_ratios_in_words() -> None:
    assert words.against(1.07) == "7% over"
    assert words.against(0.88) == "12% under"
    assert words.against(1.001) == "as predicted"
    assert words.against(3.0) == "3x of predicted"
    assert words.against(None) == ""
