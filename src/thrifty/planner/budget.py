"""Which model to train, and on how many tokens: for a sum of money, or for a loss at the least money.

Money for a token of training is priced by the planner for a handful of sizes, each with the cheapest recipe that fits,
so that small models pay for their low MFU and large ones for their recomputation; in between it is interpolated in
log N. Over a fine grid of shapes the law then says what loss the money buys. The size chosen is planned again.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from thrifty.cost.params import total_parameters
from thrifty.laws import allocate, law
from thrifty.laws import batch as batch_law
from thrifty.laws import loss as loss_law
from thrifty.laws.law import LossLaw
from thrifty.planner.expected_loss import with_law
from thrifty.planner.family import VOCABULARY, family, nearest
from thrifty.planner.search import Search, search
from thrifty.spec import units
from thrifty.spec.bill import Bill
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data, Job, ModelShape
from thrifty.spec.load import Settings, build, from_dict
from thrifty.spec.recipe import Recipe

SEQUENCE_LENGTH = 4096
PRICED = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)  # sizes that are planned, over the optimum at a guessed MFU
GUESSED_MFU = 0.35
BESIDE = (1 / 4, 1 / 2, 2.0)  # alternatives that the screen shows, over the chosen size
FLAT_NATS = 0.01  # sizes within this of the best loss are as good, as far as any law can tell
TRIES, ENOUGH_SPENT = 4, 0.99  # of fitting tokens to the money, and the share of it that ends them
ROUNDS = 5  # of tokens and the steps that they take
SERVED_BYTES = 2  # of a parameter, bf16


@dataclass(frozen=True)
class Option:
    """A size and what becomes of the money with it.

    Attributes:
        parameters: all of them.
        loss: nats a token on these tokens.
        served_bytes: of the weights in bf16.
        usd: of the run.
        usd_to_match: what it would take this size to reach the best one's loss; None: it never does.
    """

    name: str
    parameters: float
    tokens: float
    loss: float
    served_bytes: float
    usd: float
    usd_to_match: float | None


@dataclass(frozen=True)
class Advice:
    """Which model to train.

    Attributes:
        found: the search for the chosen model; its plan carries the loss of the law.
        question: `budget` or `target_loss`, and `asked` its value.
        chosen: of `options`, which are in order of size.
        flat: smallest and largest size whose loss is within `FLAT_NATS` for the same money.
        law: that the loss comes from.
        planned: sizes that were planned.
    """

    found: Search
    question: str
    asked: float
    chosen: Option
    options: tuple[Option, ...]
    flat: tuple[float, float]
    law: LossLaw
    planned: int

    def as_json(self) -> dict[str, Any]:
        """Everything but the draws of the law, in types that JSON has."""
        return {
            self.question: self.asked,
            "chosen": asdict(self.chosen),
            "options": [asdict(option) for option in self.options],
            "flat": list(self.flat),
            "law": self.law.model_dump(mode="json", exclude={"draws"}),
            "plan": self.found.plan.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Rates:
    """Money for a token, by size: planned for some sizes, interpolated in log N between them.

    Attributes:
        usd_to_start: start-up and compilation, whatever the run's length.
    """

    sizes: tuple[float, ...]
    usd_per_token: tuple[float, ...]
    usd_to_start: float

    def tokens(self, parameters: float, usd: float) -> float:
        """What a sum pays for; not above zero where it does not pay for the start-up."""
        return float((usd - self.usd_to_start) / self.at(parameters))

    def usd(self, parameters: float, tokens: float) -> float:
        """Price of a run."""
        return self.usd_to_start + tokens * self.at(parameters)

    def at(self, parameters: float) -> float:
        """Dollars for a token; beyond the planned sizes along the last slope."""
        if len(self.sizes) == 1:
            return self.usd_per_token[0] * parameters / self.sizes[0]
        upper = min(max(bisect_left(self.sizes, parameters), 1), len(self.sizes) - 1)
        (n0, n1), (r0, r1) = self.sizes[upper - 1 : upper + 1], self.usd_per_token[upper - 1 : upper + 1]
        share = math.log(parameters / n0) / math.log(n1 / n0)
        return float(r0 * (r1 / r0) ** share)

    def also(self, parameters: float, usd_per_token: float) -> Rates:
        """With one more planned size, in the place of what was planned for it before."""
        rates = dict(zip(self.sizes, self.usd_per_token, strict=True)) | {parameters: usd_per_token}
        return Rates(tuple(sorted(rates)), tuple(rates[size] for size in sorted(rates)), self.usd_to_start)


def for_budget(usd: float, cluster: Cluster, given: Settings, by: LossLaw = loss_law.PUBLISHED) -> Advice:
    """The model of lowest loss for a sum of money.

    Args:
        given: keys under `job` and `recipe` to keep: sequence length, vocabulary, data, recipe.

    Raises:
        ThriftyError: the cluster costs nothing, or no size fits it and the law.
    """
    flops = usd / _usd_per_second(cluster) * _guessed_flops_per_s(cluster, given)
    asked = _Question(cluster, given, by, allocate.optimal(by, flops).parameters)
    rates = asked.rates(lambda rate: usd / rate)
    if usd <= rates.usd_to_start:
        what = f"{units.show(usd, 'usd')} does not pay for starting up {cluster.devices} devices"
        hint = f"that takes {units.show(rates.usd_to_start, 'usd')}; use fewer devices"
        raise ThriftyError(what, where="--budget", hint=hint)
    sizes = [n for n in asked.sizes() if not asked.beyond(n, rates.tokens(n, usd))]
    if not sizes:
        what = f"{units.show(usd, 'usd')} buys no run that the law speaks of"
        raise ThriftyError(what, where="--budget", hint=asked.beyond(rates.sizes[0], rates.tokens(rates.sizes[0], usd)))
    losses = {n: asked.loss(n, rates.tokens(n, usd)) for n in sizes}
    best = min(losses, key=losses.__getitem__)
    found = asked.plan_within(best, rates.tokens(best, usd), usd)
    flat = [n for n in sizes if losses[n] <= losses[best] + FLAT_NATS]
    return asked.advice(found, "budget", usd, rates, lambda n: rates.tokens(n, usd), flat)


def for_target(target: float, cluster: Cluster, given: Settings, by: LossLaw = loss_law.PUBLISHED) -> Advice:
    """The model that reaches a loss for the least money; arguments and errors as `for_budget`."""
    asked = _Question(cluster, given, by, allocate.cheapest(by, target).parameters)

    def tokens_for(parameters: float) -> float | None:
        return asked.tokens_to(parameters, target)

    rates = asked.rates(lambda rate: None, tokens_for)
    costs = {
        n: rates.usd(n, tokens)
        for n in asked.sizes()
        if (tokens := tokens_for(n)) is not None and not asked.beyond(n, tokens)
    }
    if not costs:
        raise ThriftyError(f"no size reaches a loss of {target:g} within what the law speaks of", where="--target-loss")
    best = min(costs, key=costs.__getitem__)
    tokens = tokens_for(best)
    assert tokens is not None
    found = asked.plan(best, tokens)
    spent = found.plan.predicted.usd.value
    flat = [n for n in costs if asked.loss(n, rates.tokens(n, spent)) <= target + FLAT_NATS]
    return asked.advice(found, "target_loss", target, rates, lambda n: tokens_for(n) or math.inf, flat)


class _Question:
    """What both questions share: the cluster, the family of shapes, the law."""

    def __init__(self, cluster: Cluster, given: Settings, by: LossLaw, guess: float) -> None:
        self.cluster, self.given, self.by = cluster, given, by
        _refuse_what_is_chosen(given)
        self.length = _count(given, "job.sequence_length", SEQUENCE_LENGTH)
        self.shapes = family(_count(given, "job.model.vocab_size", VOCABULARY), self.length)
        self.unique = build(Data, given, "job.data").unique_tokens if given.at("job.data") else None
        self.guess = guess
        self.planned = 0

    def sizes(self) -> Sequence[float]:
        """Sizes that may be chosen: within the planned ones and a little beyond."""
        low, high = min(PRICED) * self.guess / 2, self.largest * 1.3
        return [n for n, _ in self.shapes if low <= n <= high]

    def shape(self, parameters: float) -> ModelShape:
        return nearest(self.shapes, parameters)[1]

    def counted(self, parameters: float) -> float:
        return loss_law.count_parameters(self.shape(parameters), parameters, self.by.counted)

    def loss(self, parameters: float, tokens: float) -> float:
        size, data = loss_law.worth(self.by, self.counted(parameters), tokens, self.unique)
        return law.loss(self.by, size, data, self.steps(parameters, tokens))

    def steps(self, parameters: float, tokens: float) -> float:
        """Optimizer steps under the batch law, near enough for what short runs lose."""
        batch = batch_law.optimal_batch_tokens(allocate.FLOPS_EACH * parameters * tokens)
        return max(tokens / batch, batch_law.LEAST_STEPS)

    def tokens_to(self, parameters: float, target: float) -> float | None:
        """Tokens after which a size reaches a loss, repeated ones and lost steps counted; None where it never does."""
        least = loss_law.tokens_to_target(self.by, self.counted(parameters), target, self.unique)
        tokens = least
        for _ in range(ROUNDS if least is not None and self.by.lost_steps else 0):
            assert least is not None
            assert tokens is not None
            lost = 1 + self.by.lost_steps / self.steps(parameters, tokens)
            tokens = least * lost if self.unique is None or least <= self.unique else tokens
        return tokens

    def beyond(self, parameters: float, tokens: float) -> str:
        return loss_law.why_not(self.job(self.shape(parameters), tokens), parameters, tokens, self.by)

    def job(self, shape: ModelShape, tokens: float) -> Job:
        size = units.show(total_parameters(shape), "token")
        tree = {"name": f"dense-{size}", "model": shape.model_dump(), "sequence_length": self.length}
        tree["tokens"] = max(1, round(tokens))
        settings = self.given.over(from_dict({"job": tree}, "chosen for the money"))
        return build(Job, settings, "job")

    def price(self, parameters: float, tokens: float) -> Bill:
        """What the nearest shape would cost; only the plan that is shown is compared with other software."""
        recipe = {"software": Recipe.model_fields["software"].default} | (self.given.at("recipe") or {})
        self.planned += 1
        found = search(self.job(self.shape(parameters), tokens), self.cluster, from_dict(recipe, "--set"))
        return found.plan.predicted

    def plan(self, parameters: float, tokens: float) -> Search:
        """The cheapest way to train the nearest shape."""
        self.planned += 1
        recipe = self.given.at("recipe") or {}
        return search(self.job(self.shape(parameters), tokens), self.cluster, from_dict(recipe, "--set"))

    def plan_within(self, parameters: float, tokens: float, usd: float) -> Search:
        """The same on as many tokens as the money pays for, start-up, evaluations and checkpoints included."""
        fits: float | None = None
        spent = 0.0
        for _ in range(TRIES):
            cost = self.price(parameters, tokens).usd.value
            if spent < cost <= usd:
                fits, spent = tokens, cost
            if ENOUGH_SPENT * usd <= cost <= usd:
                break
            tokens *= (1 + ENOUGH_SPENT) / 2 * usd / cost
        if fits is None:
            what = (
                f"a run of {units.show(tokens, 'token')} tokens costs {units.show(cost, 'usd')}, its start-up included"
            )
            raise ThriftyError(what, where=f"--budget {usd:g}usd", hint="use fewer devices, or spend more")
        return self.plan(parameters, fits)

    def rates(self, tokens_at: Any, tokens_for: Any = None) -> Rates:
        """Plans a handful of sizes.

        Args:
            tokens_at: tokens for a rate in dollars, so that the batch law sees the run as it will be.
            tokens_for: tokens for a size; None where the size cannot do it.

        Raises:
            ThriftyError: none of the sizes fits the cluster.
        """
        sizes, rates, to_start = [], [], 0.0
        refused: ThriftyError | None = None
        for factor in PRICED:
            parameters, _ = nearest(self.shapes, factor * self.guess)
            if parameters in sizes:
                continue
            per_token = allocate.FLOPS_EACH * parameters / _guessed_flops_per_s(self.cluster, self.given)
            tokens = tokens_at(per_token * _usd_per_second(self.cluster))
            if tokens_for is not None:
                tokens = tokens_for(parameters) or allocate.optimal_tokens(self.by, self.counted(parameters))
            try:
                bill = self.price(parameters, tokens)
            except ThriftyError as error:
                refused = error
                break  # larger sizes need more memory still
            useful = bill.seconds.value - bill.seconds_by_part["other"].value
            to_start = bill.usd.value * bill.seconds_by_part["startup"].value / useful
            sizes.append(parameters)
            rates.append((bill.usd.value - to_start) / bill.tokens.value)
        if not sizes:
            assert refused is not None
            raise refused
        self.largest = sizes[-1] if refused is not None else 2 * sizes[-1]
        return Rates(tuple(sizes), tuple(rates), to_start)

    def advice(
        self, found: Search, question: str, asked: float, rates: Rates, tokens_at: Any, flat: Sequence[float]
    ) -> Advice:
        plan = with_law(found.plan, self.by)
        bill, parameters = plan.predicted, float(total_parameters(plan.job.model))
        reached = bill.loss.value if bill.loss else self.loss(parameters, bill.tokens.value)
        chosen = self.option(parameters, bill.tokens.value, bill.usd.value, rates, reached)
        chosen = replace(chosen, loss=reached, usd_to_match=chosen.usd)
        others = []
        for factor in BESIDE:
            n, _ = nearest(self.shapes, factor * parameters)
            tokens = tokens_at(n)
            if n == parameters or not math.isfinite(tokens) or n > self.largest * 1.3:
                continue
            try:
                other = self.price(n, tokens)
            except ThriftyError:
                continue  # it does not fit the cluster
            rates = rates.also(n, (other.usd.value - rates.usd_to_start) / other.tokens.value)
            tokens = rates.tokens(n, bill.usd.value) if question == "budget" else tokens
            others.append(self.option(n, tokens, rates.usd(n, tokens), rates, reached))
        options = sorted([*others, chosen], key=lambda option: option.parameters)
        updated = Search(plan, found.runners_up, found.tried, found.excluded, found.kept)
        return Advice(
            updated, question, asked, chosen, tuple(options), (min(flat), max(flat)), self.by, self.planned
        )  # fmt: skip

    def option(self, parameters: float, tokens: float, usd: float, rates: Rates, reached: float) -> Option:
        enough = self.tokens_to(parameters, reached)
        return Option(
            name=self.shape(parameters).name,
            parameters=parameters,
            tokens=tokens,
            loss=self.loss(parameters, tokens),
            served_bytes=SERVED_BYTES * parameters,
            usd=usd,
            usd_to_match=None if enough is None else rates.usd(parameters, enough),
        )


def _refuse_what_is_chosen(given: Settings) -> None:
    """A key that the money decides cannot be given too."""
    model = given.at("job.model") or {}
    keys = [f"job.{key}" for key in ("tokens", "steps", "target_loss") if given.at(f"job.{key}") is not None]
    keys += [f"job.model.{key}" for key in model if key != "vocab_size"]
    if keys:
        hint = "leave it out, or name a JOB and let --budget or --target-loss bound that"
        raise ThriftyError(f"{keys[0]} is what is being asked for", where=given.where(keys[0]), hint=hint)


def _count(given: Settings, key: str, default: int) -> int:
    value = given.at(key)
    try:
        return default if value is None else int(units.parse(value, "count"))
    except ValueError as error:
        raise ThriftyError(str(error), where=f"{given.where(key)}: {key}") from None


def _usd_per_second(cluster: Cluster) -> float:
    rate = cluster.price.value * cluster.devices / 3600
    if rate <= 0:
        hint = "say what a device costs, for example  --set cluster.price=2.5usd/h"
        raise ThriftyError(f"{cluster.name} costs nothing, so money buys no end of it", where="--budget", hint=hint)
    return rate


def _guessed_flops_per_s(cluster: Cluster, given: Settings) -> float:
    peaks = cluster.accelerator.peak_flops
    precision = given.at("recipe.precision") or ("bf16" if "bf16" in peaks else "fp32")
    peak = peaks[precision].value if precision in peaks else max(figure.value for figure in peaks.values())
    return GUESSED_MFU * peak * cluster.devices
