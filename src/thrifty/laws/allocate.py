"""How to split compute between parameters and tokens, for the lowest loss or the least compute.

With C = 6 N D, minimising A/N^alpha + B/D^beta gives alpha A / N^alpha = beta B / D^beta (Hoffmann et al. 2022,
arXiv:2203.15556, equation 4). Everything here is closed or a bisection on a monotone function. Compute is counted as
6 N D; where money is counted, with an MFU for each size, `planner.budget` searches instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.laws.law import Constants, LossLaw, value
from thrifty.spec.errors import ThriftyError

FLOPS_EACH = 6.0  # of a parameter and a token, forward and backward


@dataclass(frozen=True)
class Split:
    """Parameters, tokens, and the loss that they reach in nats a token."""

    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        """6 N D."""
        return FLOPS_EACH * self.parameters * self.tokens

    @property
    def tokens_per_parameter(self) -> float:
        """D / N; about 20 is compute-optimal, more is over-trained."""
        return self.tokens / self.parameters


def split(law: LossLaw, parameters: float, tokens: float, dataset: str | None = None) -> Split:
    """A split and its loss."""
    return Split(parameters, tokens, value(law.of(dataset), law.alpha, law.beta, parameters, tokens))


def optimal(law: LossLaw, flops: float, dataset: str | None = None) -> Split:
    """The lowest loss that so many FLOPs buy: N = (alpha A / beta B)^(1/(alpha+beta)) (C/6)^(beta/(alpha+beta))."""
    c, both = law.of(dataset), law.alpha + law.beta
    product = flops / FLOPS_EACH
    parameters = (law.alpha * c.A / (law.beta * c.B)) ** (1 / both) * product ** (law.beta / both)
    return split(law, parameters, product / parameters, dataset)


def given_parameters(law: LossLaw, flops: float, parameters: float, dataset: str | None = None) -> Split:
    """All the tokens that so many FLOPs buy for a model of this size."""
    return split(law, parameters, flops / FLOPS_EACH / parameters, dataset)


def given_tokens(law: LossLaw, flops: float, tokens: float, dataset: str | None = None) -> Split:
    """The largest model that so many FLOPs train on these tokens."""
    return split(law, flops / FLOPS_EACH / tokens, tokens, dataset)


def optimal_tokens(law: LossLaw, parameters: float, dataset: str | None = None) -> float:
    """Tokens at which exactly this size is compute-optimal: beta B / D^beta = alpha A / N^alpha."""
    c = law.of(dataset)
    return float((law.beta * c.B / (law.alpha * c.A) * parameters**law.alpha) ** (1 / law.beta))


def optimal_parameters(law: LossLaw, tokens: float, dataset: str | None = None) -> float:
    """The size for which exactly these tokens are compute-optimal; inverse of `optimal_tokens`."""
    c = law.of(dataset)
    return float((law.alpha * c.A / (law.beta * c.B) * tokens**law.beta) ** (1 / law.alpha))


def cheapest(law: LossLaw, target: float, dataset: str | None = None) -> Split:
    """The fewest FLOPs that reach a loss; inverse of `optimal`.

    At the optimum the data term is alpha/beta of the size term, so (1 + alpha/beta) A / N^alpha = target - E.

    Raises:
        ThriftyError: the target is at or below E.
    """
    c = law.of(dataset)
    above = _above(c, target)
    parameters = (c.A * (1 + law.alpha / law.beta) / above) ** (1 / law.alpha)
    return split(law, parameters, optimal_tokens(law, parameters, dataset), dataset)


def tokens_to_reach(law: LossLaw, parameters: float, target: float, dataset: str | None = None) -> float | None:
    """Tokens after which this size reaches a loss; None where it never does."""
    c = law.of(dataset)
    above = target - c.E - c.A / parameters**law.alpha
    return float((c.B / above) ** (1 / law.beta)) if above > 0 else None


def overtrained(law: LossLaw, best: Split, smaller: float, dataset: str | None = None) -> Split | None:
    """The model `smaller` times smaller that ends at the same loss, on more tokens; None where none does."""
    parameters = best.parameters / smaller
    tokens = tokens_to_reach(law, parameters, best.loss, dataset)
    return None if tokens is None else split(law, parameters, tokens, dataset)


def penalty(law: LossLaw, best: Split, smaller: float, dataset: str | None = None) -> float | None:
    """FLOPs of the `smaller` times smaller model at equal loss, over those of the best split; None: out of reach."""
    other = overtrained(law, best, smaller, dataset)
    return None if other is None else other.flops / best.flops


def smallest_factor(law: LossLaw, best: Split, dataset: str | None = None) -> float:
    """How many times smaller a model could be and still reach the loss, given endless tokens."""
    c = law.of(dataset)
    floor = (c.A / (best.loss - c.E)) ** (1 / law.alpha)
    return float(best.parameters / floor)


def _above(constants: Constants, target: float) -> float:
    if target <= constants.E:
        what = f"target_loss {target:g} is not above {constants.E:.4g} nats a token, which no model goes below"
        raise ThriftyError(what, where="target_loss", hint="aim higher, or fit a law to your own data")
    return target - constants.E
