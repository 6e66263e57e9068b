"""How well a law reaches beyond its rows: fitted on the smaller models, tested on larger ones than any in the fit.

The same test chooses the form of a law: which parameters count, whether short runs lose steps, and whether datasets
share A and B. Nothing is chosen by how well it fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thrifty.laws.fit import FEWEST_ROWS, Form, RunRow, fit, relative_errors

# A form with more constants must beat a plainer one by this share of its error: four sizes are a small sample.
MUST_GAIN = 0.10


@dataclass(frozen=True)
class Check:
    """Errors on models larger than any in the fit.

    Attributes:
        form: of the law.
        rows: tested, over all folds.
        mape: mean |predicted / measured - 1|; `worst` the largest of them, `bias` the mean with sign.
        largest_fitted: parameters of the largest model in the last fold's fit.
        largest_tested: of the largest model tested.
    """

    form: Form
    rows: int
    mape: float
    worst: float
    bias: float
    largest_fitted: float
    largest_tested: float

    @property
    def reach(self) -> float:
        """How many times larger than the fit the test went."""
        return self.largest_tested / self.largest_fitted


def folds(rows: Sequence[RunRow]) -> Iterator[tuple[list[RunRow], list[RunRow]]]:
    """Smaller models and larger ones, for every cut with two sizes below it and enough rows."""
    sizes = sorted({row.parameters for row in rows})
    for cut in sizes[2:]:
        small = [row for row in rows if row.parameters < cut]
        known = {row.dataset for row in small}
        large = [row for row in rows if row.parameters >= cut and row.dataset in known]
        if len(small) >= FEWEST_ROWS and large:
            yield small, large


def held_out(rows: Sequence[RunRow], form: Form) -> Check | None:
    """Tests a form on every fold, each fold counting alike; None where the rows have fewer than three sizes."""
    means, worst, tested, biases = [], 0.0, 0, []
    fitted_up_to = 0.0
    for small, large in folds(rows):
        errors = relative_errors(fit(small, form), large)
        means.append(sum(map(abs, errors)) / len(errors))
        biases.append(sum(errors) / len(errors))
        worst = max(worst, *map(abs, errors))
        tested += len(errors)
        fitted_up_to = max(fitted_up_to, *(row.parameters for row in small))
    if not means:
        return None
    largest = max(row.parameters for row in rows)
    return Check(form, tested, sum(means) / len(means), worst, sum(biases) / len(biases), fitted_up_to, largest)


def forms(rows: Sequence[RunRow]) -> list[Form]:
    """Forms that the rows have the inputs for, plainest first."""
    counts = ["no_embedding", "all"] if all(row.without_embedding for row in rows) else ["all"]
    steps = [False, True] if all(row.batch_tokens for row in rows) else [False]
    sharing = [False, True] if len({row.dataset for row in rows}) > 1 else [False]
    return [
        Form(counted, loses_steps, separate)  # type: ignore[arg-type]
        for separate in sharing
        for loses_steps in steps
        for counted in counts
    ]


def choose(rows: Sequence[RunRow]) -> tuple[Form, list[Check]]:
    """The form that predicts larger models best, and the test of every form, best first.

    With fewer than three sizes nothing can be held out: the fullest form with shared A and B is taken, its further
    constants being held by priors.
    """
    possible = forms(rows)
    checks = [check for form in possible if (check := held_out(rows, form)) is not None]
    if not checks:
        return next(f for f in reversed(possible) if not f.separate and f.counted == possible[0].counted), []
    best = checks[0]
    for check in checks[1:]:
        same_size = _constants(check.form) == _constants(best.form)
        if check.mape < best.mape * (1.0 if same_size else 1 - MUST_GAIN):
            best = check
    return best.form, sorted(checks, key=lambda check: check.mape)


def _constants(form: Form) -> int:
    """Rank by number of constants."""
    return int(form.loses_steps) + 2 * int(form.separate)
