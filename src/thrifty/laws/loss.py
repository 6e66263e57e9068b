"""The loss that a job should reach: the published law, or one that was fitted to own runs, and where neither applies.

The form is Hoffmann et al. 2022 (arXiv:2203.15556); the constants are the refit of Besiroglu et al. 2024
(arXiv:2404.10102). They describe English web text in tokens of a large BPE vocabulary, seen once, in nats a token;
for bytes, characters, small vocabularies and tiny models they say nothing, and neither does this module. A law fitted
to own runs holds for their data, and says how far its rows reached.
"""

from __future__ import annotations

import math

from thrifty.laws import allocate, law, repetition
from thrifty.laws.law import Constants, Counted, LossLaw
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure, modelled
from thrifty.spec.job import Data, Job, ModelShape

PUBLISHED = LossLaw(
    source="E + A/N^alpha + B/D^beta, Besiroglu et al. 2024 (arXiv:2404.10102), web text",
    constants={"web text": Constants(E=1.8172, A=482.01, B=2085.43)},
    alpha=0.3478,
    beta=0.3658,
)

SMALLEST_VOCABULARY = 16_000
SMALLEST_MODEL = 10e6
FEWEST_TOKENS = 100e6
# Nats below and above the law that hold nine tenths of 95 models of 11M to 0.9B parameters, trained on three web
# corpora and scored on C4 (mlfoundations/scaling, 2024): data and tokenizer move the loss by more than the fit's error.
INTERVAL_NATS = (-0.35, 0.50)
# A fitted law is trusted this many times beyond its rows; held-out tests reach about as far.
FURTHEST_REACH = 30.0


def loss(parameters: float, tokens: float) -> float:
    """Expected loss in nats a token, by the published law.

    Args:
        parameters: all of them, embeddings included.
        tokens: seen once each.
    """
    return law.loss(PUBLISHED, parameters, tokens)


def count_parameters(shape: ModelShape, total: float, counted: Counted) -> float:
    """Parameters as a law counts them: all, or without an input embedding that is not the head too."""
    if counted == "all" or shape.tied_embeddings:
        return total
    return total - shape.vocab_size * shape.hidden


def why_not(job: Job, parameters: float, tokens: float | None = None, by: LossLaw = PUBLISHED) -> str:
    """Why a law does not apply to a job; empty where it does. Without tokens: to whatever number of them."""
    if by.parameters is not None and by.tokens is not None:
        return _beyond(by, count_parameters(job.model, parameters, by.counted), tokens)
    kind = job.data.tokenizer.kind
    if job.data.path != Data().path and kind in ("bytes", "chars"):
        return f"the loss law is for BPE tokens, not {kind}"
    if job.model.vocab_size < SMALLEST_VOCABULARY:
        return f"the loss law is for vocabularies of {SMALLEST_VOCABULARY:,} and more, not {job.model.vocab_size:,}"
    if parameters < SMALLEST_MODEL:
        return f"the loss law is for {_count(SMALLEST_MODEL)} parameters and more, not {_count(parameters)}"
    if tokens is not None and tokens < FEWEST_TOKENS:
        return f"the loss law is for {_count(FEWEST_TOKENS)} tokens and more, not {_count(tokens)}"
    return ""


def _beyond(by: LossLaw, parameters: float, tokens: float | None) -> str:
    """Why a fitted law is too far from its rows."""
    assert by.parameters is not None
    assert by.tokens is not None
    for what, number, (low, high) in (("parameters", parameters, by.parameters), ("tokens", tokens, by.tokens)):
        if number is not None and not low / FURTHEST_REACH <= number <= high * FURTHEST_REACH:
            rows = f"{_count(low)} to {_count(high)} {what}"
            return f"the law was fitted on {rows}; {_count(number)} are over {FURTHEST_REACH:g} times beyond"
    return ""


def predicted_loss(
    job: Job, parameters: float, tokens: float, by: LossLaw = PUBLISHED, steps: float | None = None
) -> Figure | None:
    """The loss as a figure with an interval; none where the law does not apply (`why_not` says why).

    Args:
        parameters: all of the model's.
        tokens: seen; those beyond `job.data.unique_tokens` count for less.
        steps: of the optimizer, for laws in which short runs lose; None: none are lost.
    """
    if why_not(job, parameters, tokens, by):
        return None
    unique = job.data.unique_tokens
    size, data = worth(by, count_parameters(job.model, parameters, by.counted), tokens, unique)
    source = by.source if data == tokens else f"{by.source}; {repetition.SOURCE}"
    value = law.loss(by, size, data, steps)
    low, high = law.interval(by, size, data, steps) or (value + INTERVAL_NATS[0], value + INTERVAL_NATS[1])
    return modelled(value, "nat/token", source, low=min(low, value), high=max(high, value))


def worth(by: LossLaw, size: float, tokens: float, unique: float | None) -> tuple[float, float]:
    """Parameters and tokens that count, where only `unique` tokens are new; both whole where none repeat."""
    if unique is None or unique >= tokens:
        return size, tokens
    enough = allocate.optimal_parameters(by, unique)
    return repetition.effective_parameters(size, enough), repetition.effective_tokens(unique, tokens)


def tokens_to_target(by: LossLaw, size: float, target: float, unique: float | None = None) -> float | None:
    """Tokens to see until a loss is reached, none lost to short runs; None where it never is.

    Args:
        size: parameters as the law counts them.
        unique: tokens that are new; those beyond repeat.
    """
    tokens = allocate.tokens_to_reach(by, size, target)
    if tokens is None or unique is None or tokens <= unique:
        return tokens
    counted = repetition.effective_parameters(size, allocate.optimal_parameters(by, unique))
    needed = allocate.tokens_to_reach(by, counted, target)
    return None if needed is None else repetition.seen_for(unique, needed)


def tokens_for_loss(parameters: float, target: float, by: LossLaw = PUBLISHED) -> float:
    """Tokens after which a model of this size reaches the target: (B / (target - E - A/N^alpha))^(1/beta).

    Raises:
        ThriftyError: not reachable at this size, or at any; names the floor and the size that would do.
    """
    c = by.of(None)
    floor = c.E + c.A / parameters**by.alpha
    if target <= c.E:
        what = f"target_loss {target:g} is below {c.E:g} nats per token, which no model reaches on web text"
        raise ThriftyError(what, where="job.target_loss", hint=f"this model's own floor is {floor:.3f}; aim above it")
    tokens = allocate.tokens_to_reach(by, parameters, target)
    if tokens is None:
        # Twice the size whose floor is the target: it gets there with a finite number of tokens.
        enough = 2 * (c.A / (target - c.E)) ** (1 / by.alpha)
        what = (
            f"target_loss {target:g} is out of reach for {_count(parameters)} parameters: "
            f"their floor is {floor:.3f}, however many tokens"
        )
        needed = allocate.tokens_to_reach(by, enough, target)
        needs = f"{_count(enough)} parameters, which needs {_count(needed or math.inf)} tokens"
        hint = f"aim above {floor:.3f}, or take a model of about {needs}"
        raise ThriftyError(what, where="job.target_loss", hint=hint)
    return tokens


def compute_optimal_tokens(parameters: float) -> float:
    """Tokens at which 6ND FLOPs buy the lowest loss with exactly this N, by the published law."""
    return allocate.optimal_tokens(PUBLISHED, parameters)


def _count(number: float) -> str:
    if not math.isfinite(number) or number >= 1e15:
        return f"{number:.2g}"
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{suffix}"
    return f"{number:.0f}"
