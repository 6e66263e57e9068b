"""The loss that a model of N parameters reaches on D tokens: L(N, D) = E + A / N^alpha + B / D^beta.

The form is Hoffmann et al. 2022 (arXiv:2203.15556); the constants are the refit of Besiroglu et al. 2024
(arXiv:2404.10102). They describe English web text in tokens of a large BPE vocabulary, seen once, in nats a token;
for bytes, characters, small vocabularies and tiny models they say nothing, and neither does this module.
"""

from __future__ import annotations

import math

from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure, modelled
from thrifty.spec.job import Data, Job

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
SOURCE = "E + A/N^alpha + B/D^beta, Besiroglu et al. 2024 (arXiv:2404.10102), web text"

SMALLEST_VOCABULARY = 16_000
SMALLEST_MODEL = 10e6
FEWEST_TOKENS = 100e6
# Nats below and above the law that hold nine tenths of 95 models of 11M to 0.9B parameters, trained on three web
# corpora and scored on C4 (mlfoundations/scaling, 2024): data and tokenizer move the loss by more than the fit's error.
INTERVAL_NATS = (-0.35, 0.50)


def loss(parameters: float, tokens: float) -> float:
    """Expected loss in nats a token.

    Args:
        parameters: all of them, embeddings included.
        tokens: seen once each.
    """
    return float(E + A / parameters**ALPHA + B / tokens**BETA)


def why_not(job: Job, parameters: float, tokens: float | None = None) -> str:
    """Why the law does not apply to a job; empty where it does. Without tokens: to whatever number of them."""
    kind = job.data.tokenizer.kind
    if job.data != Data() and kind in ("bytes", "chars"):
        return f"the loss law is for BPE tokens, not {kind}"
    if job.model.vocab_size < SMALLEST_VOCABULARY:
        return f"the loss law is for vocabularies of {SMALLEST_VOCABULARY:,} and more, not {job.model.vocab_size:,}"
    if parameters < SMALLEST_MODEL:
        return f"the loss law is for {_count(SMALLEST_MODEL)} parameters and more, not {_count(parameters)}"
    if tokens is not None and tokens < FEWEST_TOKENS:
        return f"the loss law is for {_count(FEWEST_TOKENS)} tokens and more, not {_count(tokens)}"
    return ""


def predicted_loss(job: Job, parameters: float, tokens: float) -> Figure | None:
    """The loss as a figure with an interval; none where the law does not apply (`why_not` says why)."""
    if why_not(job, parameters, tokens):
        return None
    value = loss(parameters, tokens)
    return modelled(value, "nat/token", SOURCE, low=value + INTERVAL_NATS[0], high=value + INTERVAL_NATS[1])


def tokens_for_loss(parameters: float, target: float) -> float:
    """Tokens after which a model of this size reaches the target: (B / (target - E - A/N^alpha))^(1/beta).

    Raises:
        ThriftyError: not reachable at this size, or at any; names the floor and the size that would do.
    """
    floor = E + A / parameters**ALPHA
    if target <= E:
        what = f"target_loss {target:g} is below {E:g} nats per token, which no model reaches on web text"
        raise ThriftyError(what, where="job.target_loss", hint=f"this model's own floor is {floor:.3f}; aim above it")
    if target <= floor:
        # Twice the size whose floor is the target: it gets there with a finite number of tokens.
        enough = 2 * (A / (target - E)) ** (1 / ALPHA)
        what = (
            f"target_loss {target:g} is out of reach for {_count(parameters)} parameters: "
            f"their floor is {floor:.3f}, however many tokens"
        )
        needs = f"{_count(enough)} parameters, which needs {_count(_tokens(enough, target))} tokens"
        hint = f"aim above {floor:.3f}, or take a model of about {needs}"
        raise ThriftyError(what, where="job.target_loss", hint=hint)
    return _tokens(parameters, target)


def _tokens(parameters: float, target: float) -> float:
    return float((B / (target - E - A / parameters**ALPHA)) ** (1 / BETA))


def compute_optimal_tokens(parameters: float) -> float:
    """Tokens at which 6ND FLOPs buy the lowest loss with exactly this N.

    Minimising A/N^alpha + B/D^beta at constant N x D gives alpha A / N^alpha = beta B / D^beta.
    """
    return float((BETA * B / (ALPHA * A) * parameters**ALPHA) ** (1 / BETA))


def _count(number: float) -> str:
    if not math.isfinite(number) or number >= 1e15:
        return f"{number:.2g}"
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{suffix}"
    return f"{number:.0f}"
