"""A loss law as a noun: constants, where they came from, how far they hold, and what they leave uncertain.

    L(N, D) = E + A / N^alpha + B / D'^beta,   D' = D / (1 + S0 / S)

N parameters, D tokens seen, S optimizer steps. E, A and B may differ by dataset; the exponents are shared. S0 is what
short runs lose: McCandlish et al. 2018 (arXiv:1812.06162) give (S / S0 - 1)(D / D' - 1) = 1, so a run of S steps is
worth D (1 - S0 / S) tokens of a run with many small steps; warm-up costs the same way. The form here equals that to
first order and stays positive for the shortest runs. S0 = 0 is the law of Hoffmann et al. 2022 (arXiv:2203.15556).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.figure import Noun

Counted = Literal["all", "no_embedding"]


class Constants(Noun):
    """E in nats a token, A and B in nats x parameters^alpha and nats x tokens^beta."""

    E: float
    A: float
    B: float


class Draw(Noun):
    """One refit of a bootstrap, for the same dataset as its law's."""

    constants: dict[str, Constants]
    alpha: float
    beta: float
    lost_steps: float = 0.0


class LossLaw(Noun):
    """A law of loss over parameters and tokens.

    Attributes:
        source: the paper, or the table and date of a fit.
        constants: by dataset; a law of one dataset has one entry.
        lost_steps: S0, optimizer steps; 0 where short runs lose nothing beyond their tokens.
        counted: whether N is all parameters or those without the input embedding.
        rows: that it was fitted on; `parameters` and `tokens` are their range, N counted as `counted` says.
        noise: relative residuals of those rows at 5%, 15%, ... 95%.
        draws: bootstrap refits; with `noise` they make intervals.
        warnings: what the rows could not settle.
    """

    source: str
    constants: dict[str, Constants]
    alpha: float
    beta: float
    lost_steps: float = 0.0
    counted: Counted = "all"
    rows: int = 0
    parameters: tuple[float, float] | None = None
    tokens: tuple[float, float] | None = None
    noise: tuple[float, ...] = ()
    draws: tuple[Draw, ...] = ()
    warnings: tuple[str, ...] = ()

    def of(self, dataset: str | None) -> Constants:
        """Constants of a dataset; None where there is only one.

        Raises:
            ThriftyError: no such dataset, or several and none named.
        """
        if dataset is None and len(self.constants) == 1:
            return next(iter(self.constants.values()))
        if dataset not in self.constants:
            hint = (
                did_you_mean(dataset or "", self.constants) if dataset else f"name one of {', '.join(self.constants)}"
            )
            raise ThriftyError("the law does not know the dataset" if dataset else "the law has several datasets",
                               where=dataset or self.source, hint=hint)  # fmt: skip
        return self.constants[dataset]


def value(
    constants: Constants, alpha: float, beta: float, parameters: float, tokens: float, lost: float = 0.0
) -> float:
    """E + A / N^alpha + B / (D / (1 + lost))^beta, nats a token; `lost` is S0 / S."""
    data = constants.B * ((1 + lost) / tokens) ** beta
    return float(constants.E + constants.A / parameters**alpha + data)


def loss(
    law: LossLaw, parameters: float, tokens: float, steps: float | None = None, dataset: str | None = None
) -> float:
    """Expected loss in nats a token.

    Args:
        parameters: counted as `law.counted` says.
        tokens: seen, each once.
        steps: of the optimizer; None: so many that none are lost.
        dataset: one of the law's; None where it has one.
    """
    lost = law.lost_steps / steps if steps else 0.0
    return value(law.of(dataset), law.alpha, law.beta, parameters, tokens, lost)


def interval(
    law: LossLaw,
    parameters: float,
    tokens: float,
    steps: float | None = None,
    dataset: str | None = None,
    share: float = 0.8,
) -> tuple[float, float] | None:
    """Nats between which a run ends with a chance of `share`; None for a law without draws.

    Each refit of the bootstrap, times each decile of the residuals: what is not known of the law, and what one run
    differs from another.
    """
    if not law.draws or not law.noise:
        return None
    name = dataset or next(iter(law.constants))
    law.of(dataset)
    spread = sorted(
        expected * (1 + noise) for expected in _drawn(law, name, parameters, tokens, steps) for noise in law.noise
    )
    return quantile(spread, (1 - share) / 2), quantile(spread, (1 + share) / 2)


def _drawn(law: LossLaw, name: str, parameters: float, tokens: float, steps: float | None) -> Iterator[float]:
    for draw in law.draws:
        lost = draw.lost_steps / steps if steps else 0.0
        yield value(draw.constants[name], draw.alpha, draw.beta, parameters, tokens, lost)


def quantile(ordered: list[float], share: float) -> float:
    """Of sorted values, interpolated."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def pooled(law: LossLaw) -> Constants:
    """Constants for a dataset that no row was of: the geometric means."""
    every = list(law.constants.values())

    def mean(values: list[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    return Constants(E=mean([c.E for c in every]), A=mean([c.A for c in every]), B=mean([c.B for c in every]))


def only(law: LossLaw, dataset: str) -> LossLaw:
    """The same law for one of its datasets."""
    law.of(dataset)
    draws = tuple(draw.model_copy(update={"constants": {dataset: draw.constants[dataset]}}) for draw in law.draws)
    return law.model_copy(update={"constants": {dataset: law.constants[dataset]}, "draws": draws})
