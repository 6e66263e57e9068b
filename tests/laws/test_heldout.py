"""The form of a law is chosen by larger models, not by the fit."""

from __future__ import annotations

import dataclasses

from law_examples import TRUE, rows

from thrifty.laws.fit import Form
from thrifty.laws.heldout import choose, folds, forms, held_out


def test_folds_test_on_larger_models_only() -> None:
    cuts = list(folds(rows()))
    assert [len(small) for small, _ in cuts] == [16, 24]
    for small, large in cuts:
        assert max(row.parameters for row in small) < min(row.parameters for row in large)


def test_a_dataset_that_only_large_models_have_is_not_tested() -> None:
    runs = rows(sizes=(2e7, 6e7), datasets=("web",)) + rows(sizes=(2e8,))
    ((_, large),) = folds(runs)
    assert {row.dataset for row in large} == {"web"}


def test_a_law_without_scatter_passes() -> None:
    check = held_out(rows(), Form())
    assert check is not None
    assert check.mape < 0.01
    assert check.reach == 3


def test_lost_steps_are_chosen_where_they_predict() -> None:
    law = TRUE.model_copy(update={"lost_steps": 800.0})
    assert choose(rows(law, scatter=0.002))[0].loses_steps


def test_the_plainer_form_is_taken_where_more_constants_gain_nothing() -> None:
    form, checks = choose(rows(scatter=0.005))
    assert form == Form()
    assert len(checks) == 4
    assert checks == sorted(checks, key=lambda check: check.mape)


def test_the_count_that_predicts_is_chosen() -> None:
    """Runs made by a law of fewer parameters than all: the embedding is most of the smallest."""
    with_embedding = [
        dataclasses.replace(row, parameters=row.parameters + 3e7 * (row.parameters / 2e7) ** 0.4,
                            without_embedding=row.parameters)
        for row in rows(scatter=0.001)
    ]  # fmt: skip
    assert choose(with_embedding)[0].counted == "no_embedding"


def test_forms_need_their_inputs() -> None:
    assert forms(rows(datasets=("web",), batch_tokens=None)) == [Form()]
    assert Form("all", True, True) in forms(rows())


def test_two_sizes_leave_nothing_to_hold_out() -> None:
    form, checks = choose(rows(sizes=(2e7, 6e7)))
    assert (form, checks) == (Form("all", loses_steps=True), [])
