"""Fitting: constants come back, scatter makes intervals, and rows that cannot tell a law are refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_examples import RATIOS, TRUE, rows

from thrifty.laws.fit import Form, RunRow, fit, law_of, relative_errors, warnings, why_not
from thrifty.laws.law import Constants, LossLaw, interval, loss, only, pooled, quantile
from thrifty.spec.errors import ThriftyError


def shifted(alpha: float, beta: float, floor: float) -> LossLaw:
    constants = {"web": Constants(E=floor, A=1.0 * 2e8**alpha, B=0.8 * 4e9**beta)}
    return LossLaw(source="made up", constants=constants, alpha=alpha, beta=beta)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.25, 0.45), st.floats(-0.04, 0.04), st.floats(1.2, 2.2))
def test_it_recovers_the_law_that_made_the_rows(alpha: float, apart: float, floor: float) -> None:
    """To within what the priors pull where rows fit exactly."""
    law = shifted(alpha, alpha + apart, floor)
    fitted = fit(rows(law, datasets=("web",)), Form())
    assert fitted.vector[fitted.alpha_at] == pytest.approx(alpha, abs=0.02)
    found = fitted.constants()["web"].E
    assert found == pytest.approx(floor, rel=0.05)
    ahead = rows(law, sizes=(6e9,), datasets=("web",))
    assert max(map(abs, relative_errors(fitted, ahead))) < 0.01


def test_datasets_have_their_own_floor() -> None:
    constants = fit(rows(scatter=0.002), Form()).constants()
    apart = constants["web"].E - constants["code"].E
    assert apart == pytest.approx(0.6, abs=0.05)
    assert constants["web"].A == constants["code"].A


def test_datasets_may_have_all_constants_of_their_own() -> None:
    other = {"code": Constants(E=1.2, A=800.0, B=1000.0)}
    law = TRUE.model_copy(update={"constants": TRUE.constants | other})
    shared, separate = (fit(rows(law), Form(separate=apart)) for apart in (False, True))
    ahead = rows(law, sizes=(6e9,))
    worst = [max(map(abs, relative_errors(fitted, ahead))) for fitted in (shared, separate)]
    assert worst[1] < worst[0] / 2
    assert separate.constants()["code"].A > separate.constants()["web"].A


def test_lost_steps_are_found() -> None:
    law = TRUE.model_copy(update={"lost_steps": 500.0})
    fitted = fit(rows(law), Form(loses_steps=True))
    assert fitted.lost_steps == pytest.approx(500, rel=0.25)
    plain = fit(rows(law), Form())
    assert max(map(abs, relative_errors(fitted, rows(law)))) < max(map(abs, relative_errors(plain, rows(law)))) / 3


def test_failed_runs_hardly_move_it() -> None:
    """Four runs of 32 that ended 20% too high move predictions by well under 1%."""
    good = rows(scatter=0.003)
    bad = [dataclasses.replace(row, loss=row.loss * 1.2) if i % 8 == 0 else row for i, row in enumerate(good)]
    ahead = rows(sizes=(2e9,))
    assert max(map(abs, relative_errors(fit(bad, Form()), ahead))) < 0.015


def test_intervals_hold_about_what_they_say() -> None:
    """80% intervals over runs of a size three times the largest in the fit, over a few seeds."""
    held = total = 0
    for seed in range(4):
        law = law_of(rows(scatter=0.01, seed=seed), Form(), "made up", draws=40)
        for row in rows(sizes=(2e9,), scatter=0.01, seed=100 + seed):
            bounds = interval(law, row.parameters, row.tokens, dataset=row.dataset)
            assert bounds is not None
            held += bounds[0] <= row.loss <= bounds[1]
            total += 1
    assert 0.65 < held / total <= 1.0


def test_the_same_rows_give_the_same_law() -> None:
    assert law_of(rows(scatter=0.01), Form(), "x", draws=3) == law_of(rows(scatter=0.01), Form(), "x", draws=3)


def test_a_law_survives_its_file_form() -> None:
    law = law_of(rows(scatter=0.01), Form(loses_steps=True), "x", draws=5)
    assert LossLaw.model_validate(law.model_dump(mode="json")) == law
    alone = only(law, "code")
    assert loss(alone, 1e9, 2e10) == loss(law, 1e9, 2e10, dataset="code")
    assert interval(alone, 1e9, 2e10) == interval(law, 1e9, 2e10, dataset="code")


def test_a_dataset_must_be_named_and_known() -> None:
    with pytest.raises(ThriftyError, match="several datasets"):
        loss(TRUE, 1e9, 2e10)
    with pytest.raises(ThriftyError, match="does not know"):
        loss(TRUE, 1e9, 2e10, dataset="webb")
    assert 1.2 < pooled(TRUE).E < 1.8


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (rows(sizes=(1e8,)), "nothing tells what another size would do"),
        (rows(ratios=(20.0,)), "tokens go with parameters"),
        ([dataclasses.replace(row, tokens=1e9) for row in rows()], "nothing tells what more of them would do"),
        (rows()[:4], "4 runs cannot tell"),
    ],
)
def test_rows_that_cannot_tell_are_refused(bad: list[RunRow], says: str) -> None:
    assert says in why_not(bad)
    with pytest.raises(ThriftyError, match="no law can be fitted") as error:
        law_of(bad, Form(), "runs.csv")
    assert "add runs" in error.value.hint


def test_what_only_the_priors_settle_is_told() -> None:
    assert warnings(rows()) == ()
    assert any("2 sizes" in said for said in warnings(rows(sizes=(1e8, 2e8))))
    assert any("factor of 2" in said for said in warnings(rows(sizes=(1e8, 2e8))))
    assert any("beta" in said for said in warnings(rows(ratios=RATIOS[:2])))


def test_a_row_must_have_what_the_form_counts() -> None:
    with pytest.raises(ThriftyError, match="without embedding"):
        fit(rows(), Form("no_embedding"))
    with pytest.raises(ThriftyError, match="steps are unknown"):
        fit(rows(batch_tokens=None), Form(loses_steps=True))


@given(st.floats(1e6, 1e13), st.floats(1e6, 1e14), st.floats(1.01, 100))
def test_more_parameters_or_tokens_never_hurt(n: float, d: float, factor: float) -> None:
    before = loss(TRUE, n, d, dataset="web")
    assert loss(TRUE, n * factor, d, dataset="web") <= before
    assert loss(TRUE, n, d * factor, dataset="web") <= before
    assert before > 1.8


def test_short_runs_are_worth_fewer_tokens() -> None:
    law = TRUE.model_copy(update={"lost_steps": 1000.0})
    assert loss(law, 1e9, 2e10, 1000, "web") == pytest.approx(loss(law, 1e9, 1e10, None, "web"))


def test_quantiles_are_interpolated() -> None:
    assert [quantile([0.0, 1.0, 2.0], share) for share in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 2]
