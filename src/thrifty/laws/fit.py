"""Fits a loss law to finished runs: Huber's loss on log residuals, priors on the exponents, bootstrap for the rest.

After Hoffmann et al. 2022 (arXiv:2203.15556, appendix D.3) and Besiroglu et al. 2024 (arXiv:2404.10102): Huber's
corner at 1e-3, constants as logarithms, several starts. What is added: E by dataset under shared exponents; steps that
short runs lose (`laws.law`); and a weak prior on the exponents, for a handful of sizes cannot tell E from alpha.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.laws.law import Constants, Counted, Draw, LossLaw, quantile
from thrifty.laws.minimise import Minimum, Prior, Residuals, Sparse, minimise
from thrifty.spec.errors import ThriftyError

DELTA = 1e-3
RESIDUAL = 0.01  # relative, of one run: seeds, learning rates and evaluation sets differ by about this
# Published exponents: 0.34 and 0.28 (Hoffmann), 0.348 and 0.366 (Besiroglu), 0.353 and 0.353 (Muennighoff et al. 2023,
# arXiv:2305.16264). They scatter by 0.05 within web text; other data may differ by more.
EXPONENT, EXPONENT_SPREAD = 0.35, 0.15
EXPONENTS_APART = 0.05
LOG_LOST_STEPS, LOG_LOST_SPREAD = math.log(400.0), 3.0
DRAWS = 100
# Runs of a size that the fit has not seen scatter more about it than those that shaped it: at 1.3 times, intervals of
# 80% hold 68 to 85% of 95 runs over four cuts by size (docs/laws.md).
NOISE_BEYOND = 1.3
FEWEST_ROWS = 6
# Constants are fitted at the middle of the rows, in units of the geometric mean, so that they hardly depend on each
# other; starts of the two exponents and of E as a share of the lowest loss.
STARTS = ((0.35, 0.35, 0.7), (0.2, 0.3, 0.5), (0.5, 0.4, 0.85))


@dataclass(frozen=True)
class RunRow:
    """A finished run.

    Attributes:
        parameters: all of them.
        without_embedding: parameters less the input embedding; None where unknown.
        batch_tokens: of one optimizer step; None where unknown.
        loss: of the validation set, nats a token.
    """

    id: str
    dataset: str
    parameters: float
    tokens: float
    loss: float
    without_embedding: float | None = None
    batch_tokens: float | None = None

    def counted(self, how: Counted) -> float:
        """Parameters as a law counts them; 0 where that is unknown."""
        return self.parameters if how == "all" else self.without_embedding or 0.0

    @property
    def steps(self) -> float | None:
        """Optimizer steps; None where the batch is unknown."""
        return self.tokens / self.batch_tokens if self.batch_tokens else None


@dataclass(frozen=True)
class Form:
    """What a law counts and which constants differ by dataset."""

    counted: Counted = "all"
    loses_steps: bool = False
    separate: bool = False

    def __str__(self) -> str:
        parameters = "all parameters" if self.counted == "all" else "parameters without embedding"
        steps = ", short runs lose steps" if self.loses_steps else ""
        return parameters + steps + (", E, A and B by dataset" if self.separate else "")


def why_not(rows: Sequence[RunRow]) -> str:
    """Why these rows cannot tell a law; empty where they can, if only with the help of the priors."""
    sizes, tokens = {row.parameters for row in rows}, {row.tokens for row in rows}
    if len(rows) < FEWEST_ROWS:
        return f"{len(rows)} runs cannot tell five constants; {FEWEST_ROWS} and more are needed"
    if len(sizes) < 2:
        return f"all runs have {next(iter(sizes)):.3g} parameters: nothing tells what another size would do"
    if len(tokens) < 2:
        return f"all runs saw {next(iter(tokens)):.3g} tokens: nothing tells what more of them would do"
    ratios = [math.log(row.tokens / row.parameters) for row in rows]
    if max(ratios) - min(ratios) < math.log(1.5):
        return "tokens go with parameters in every run: nothing tells the two terms apart; vary one without the other"
    return ""


def warnings(rows: Sequence[RunRow]) -> tuple[str, ...]:
    """What the rows settle only with the help of the priors."""
    said = []
    sizes = sorted({row.parameters for row in rows})
    if len(sizes) < 3:
        said.append(f"{len(sizes)} sizes cannot tell E from A and alpha: published exponents decide")
    if sizes[-1] < 5 * sizes[0]:
        said.append(f"sizes span only a factor of {sizes[-1] / sizes[0]:.3g}: alpha is weakly settled")
    if len({row.tokens / row.parameters for row in rows}) < 3:
        said.append("two numbers of tokens per parameter: beta is weakly settled")
    return tuple(said)


@dataclass(frozen=True)
class Fitted:
    """A point in the space of constants, with what is needed to read it.

    Attributes:
        vector: log E of each dataset, log A, log B (of each dataset where separate), alpha, beta, log S0.
        unit_parameters: geometric mean of the rows' parameters, which A is fitted at; `unit_tokens` for B.
    """

    form: Form
    datasets: tuple[str, ...]
    vector: tuple[float, ...]
    unit_parameters: float
    unit_tokens: float

    def places(self, dataset: int) -> tuple[int, int, int]:
        """Where log E, log A and log B of a dataset stand in the vector."""
        many = len(self.datasets)
        return (dataset, many + dataset, 2 * many + dataset) if self.form.separate else (dataset, many, many + 1)

    @property
    def alpha_at(self) -> int:
        """Where alpha stands; beta and log S0 follow."""
        return 3 * len(self.datasets) if self.form.separate else len(self.datasets) + 2

    def constants(self) -> dict[str, Constants]:
        """E, A and B by dataset, for N and D in ones."""
        alpha, beta = self.vector[self.alpha_at], self.vector[self.alpha_at + 1]
        found = {}
        for index, name in enumerate(self.datasets):
            e, a, b = (self.vector[place] for place in self.places(index))
            found[name] = Constants(
                E=math.exp(e),
                A=math.exp(a + alpha * math.log(self.unit_parameters)),
                B=math.exp(b + beta * math.log(self.unit_tokens)),
            )
        return found

    @property
    def lost_steps(self) -> float:
        """S0."""
        return math.exp(self.vector[self.alpha_at + 2]) if self.form.loses_steps else 0.0


def fit(rows: Sequence[RunRow], form: Form) -> Fitted:
    """The constants of lowest cost, from several starts.

    Raises:
        ThriftyError: a row lacks what the form counts.
    """
    _check(rows, form)
    best: tuple[float, Fitted] | None = None
    for start in STARTS:
        blank = _start(rows, form, *start)
        found = _refine(rows, blank, [1.0] * len(rows), EXPONENT, tolerance=1e-6)
        if best is None or found.cost < best[0]:
            best = found.cost, _with(blank, found.constants)
    assert best is not None
    return best[1]


def bootstrap(rows: Sequence[RunRow], fitted: Fitted, draws: int = DRAWS, seed: int = 0) -> list[Fitted]:
    """Refits to rows drawn with replacement, under priors whose means are drawn too.

    Drawing the priors' means makes the spread that of the posterior: where rows settle nothing, the prior's own.
    """
    generator = random.Random(seed)
    found = []
    for _ in range(draws):
        times = Counter(generator.choices(range(len(rows)), k=len(rows)))
        drawn = [rows[i] for i in times]
        weights = [float(times[i]) for i in times]
        centre = generator.gauss(EXPONENT, EXPONENT_SPREAD / 2)
        apart = generator.gauss(0.0, EXPONENTS_APART)
        minimum = _refine(drawn, fitted, weights, centre, apart=apart, tolerance=1e-4)
        found.append(_with(fitted, minimum.constants))
    return found


def law_of(rows: Sequence[RunRow], form: Form, source: str, draws: int = DRAWS, seed: int = 0) -> LossLaw:
    """Fits, refits and writes it down as a noun.

    Raises:
        ThriftyError: the rows cannot tell a law, or one lacks what the form counts.
    """
    problem = why_not(rows)
    if problem:
        hint = "add runs of other sizes, and of the same size on other numbers of tokens"
        raise ThriftyError(f"no law can be fitted: {problem}", where=source, hint=hint)
    fitted = fit(rows, form)
    noise = sorted(NOISE_BEYOND * (1 / (1 + off) - 1) for off in relative_errors(fitted, rows))
    counted = [row.counted(form.counted) for row in rows]
    tokens = [row.tokens for row in rows]
    return LossLaw(
        source=source,
        constants=fitted.constants(),
        alpha=fitted.vector[fitted.alpha_at],
        beta=fitted.vector[fitted.alpha_at + 1],
        lost_steps=fitted.lost_steps,
        counted=form.counted,
        rows=len(rows),
        parameters=(min(counted), max(counted)),
        tokens=(min(tokens), max(tokens)),
        noise=tuple(quantile(noise, share / 20) for share in range(1, 20, 2)),
        draws=tuple(
            Draw(
                constants=one.constants(),
                alpha=one.vector[one.alpha_at],
                beta=one.vector[one.alpha_at + 1],
                lost_steps=one.lost_steps,
            )
            for one in (bootstrap(rows, fitted, draws, seed) if draws else ())
        ),
        warnings=warnings(rows),
    )


def relative_errors(fitted: Fitted, rows: Sequence[RunRow]) -> list[float]:
    """Predicted over measured less one, of rows whose datasets the fit knows."""
    found, _ = _residuals(rows, fitted)(fitted.vector)
    return [math.expm1(r) for r in found]


def _check(rows: Sequence[RunRow], form: Form) -> None:
    for row in rows:
        if form.counted == "no_embedding" and row.without_embedding is None:
            raise ThriftyError("the run does not say its parameters without embedding", where=row.id)
        if form.loses_steps and row.batch_tokens is None:
            raise ThriftyError("the run does not say its batch, so its steps are unknown", where=row.id)


def _with(fitted: Fitted, vector: tuple[float, ...]) -> Fitted:
    return Fitted(fitted.form, fitted.datasets, vector, fitted.unit_parameters, fitted.unit_tokens)


def _start(rows: Sequence[RunRow], form: Form, alpha: float, beta: float, floor: float) -> Fitted:
    names = tuple(sorted({row.dataset for row in rows}))
    lowest = {name: min(row.loss for row in rows if row.dataset == name) for name in names}
    middle = sorted(row.loss for row in rows)[len(rows) // 2]
    above = math.log(max(0.1, middle - floor * min(lowest.values())) / 2)
    terms = 2 * len(names) if form.separate else 2
    vector = [math.log(floor * lowest[name]) for name in names] + [above] * terms + [alpha, beta]
    if form.loses_steps:
        vector.append(LOG_LOST_STEPS)
    parameters = [math.log(row.counted(form.counted)) for row in rows]
    tokens = [math.log(row.tokens) for row in rows]
    mean_parameters, mean_tokens = sum(parameters) / len(rows), sum(tokens) / len(rows)
    return Fitted(form, names, tuple(vector), math.exp(mean_parameters), math.exp(mean_tokens))


def _refine(
    rows: Sequence[RunRow], start: Fitted, weights: Sequence[float], centre: float, *, tolerance: float,
    apart: float = 0.0,
) -> Minimum:  # fmt: skip
    at = start.alpha_at
    priors = [
        Prior(((at, 1.0),), centre, EXPONENT_SPREAD),
        Prior(((at + 1, 1.0),), centre, EXPONENT_SPREAD),
        Prior(((at, 1.0), (at + 1, -1.0)), apart, EXPONENTS_APART),
    ]
    if start.form.loses_steps:
        priors.append(Prior(((at + 2, 1.0),), LOG_LOST_STEPS, LOG_LOST_SPREAD))
    return minimise(
        _residuals(rows, start), start.vector, weights=weights, delta=DELTA, scale=RESIDUAL, priors=priors,
        tolerance=tolerance,
    )  # fmt: skip


def _residuals(rows: Sequence[RunRow], layout: Fitted) -> Residuals:
    """log predicted - log measured of every row, and its derivatives by the vector of constants."""
    index = {name: i for i, name in enumerate(layout.datasets)}
    log_n, log_d = math.log(layout.unit_parameters), math.log(layout.unit_tokens)
    form, at = layout.form, layout.alpha_at
    known = [
        (
            *layout.places(index[row.dataset]),
            math.log(row.counted(form.counted)) - log_n,
            math.log(row.tokens) - log_d,
            row.steps or math.inf,
            math.log(row.loss),
        )
        for row in rows
    ]

    def residuals(x: Sequence[float]) -> tuple[list[float], list[Sparse]]:
        alpha, beta = x[at], x[at + 1]
        lost_steps = math.exp(x[at + 2]) if form.loses_steps else 0.0
        found, slopes = [], []
        for e, a, b, n, d, steps, measured in known:
            lost = lost_steps / steps
            data = d - math.log1p(lost)
            floor, size, seen = math.exp(x[e]), math.exp(x[a] - alpha * n), math.exp(x[b] - beta * data)
            total = floor + size + seen
            found.append(math.log(total) - measured)
            share_size, share_seen = size / total, seen / total
            slope = [(e, floor / total), (a, share_size), (b, share_seen), (at, -share_size * n)]
            slope.append((at + 1, -share_seen * data))
            if form.loses_steps:
                slope.append((at + 2, share_seen * beta * lost / (1 + lost)))
            slopes.append(slope)
        return found, slopes

    return residuals
