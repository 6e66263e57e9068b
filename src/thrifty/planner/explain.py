"""What a plan's screen says, as plain data: money and time, memory by term, what a step waits for, what is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.cost.memory import capacity_bytes, usable_bytes
from thrifty.cost.params import total_parameters
from thrifty.cost.profiles import Profile, profile
from thrifty.cost.step import step_seconds
from thrifty.laws import loss as loss_law
from thrifty.planner.reasons import show_layout
from thrifty.planner.search import Search
from thrifty.planner.space import Candidate
from thrifty.spec.figure import Figure
from thrifty.spec.plan import Plan


@dataclass(frozen=True)
class Assumption:
    """A figure of the cluster that the bill used and that nobody measured here."""

    key: str
    shown: str
    value: float
    unit: str
    provenance: str
    date: str
    source: str


@dataclass(frozen=True)
class Way:
    """Another way to run the job, priced with the same evaluations and checkpoints."""

    layout: str
    precision: str
    recompute: str
    micro_sequences: int
    usd: float
    seconds: float
    peak_bytes: float


@dataclass(frozen=True)
class Explanation:
    """All that a plan's screen shows.

    Attributes:
        capacity_bytes: memory of one rank's devices; a plan may fill `usable_bytes` of it.
        profile: constants that it is priced with.
        limits: what a step waits for and its share of the step, largest first.
        no_loss: why there is no predicted loss; empty where there is one.
        tried: recipes priced; `excluded` of them do not fit.
        kept: keys that the user gave.
    """

    plan: Plan
    capacity_bytes: float
    usable_bytes: float
    profile: Profile
    limits: dict[str, float]
    assumptions: tuple[Assumption, ...]
    runners_up: tuple[Way, ...]
    no_loss: str
    tried: int
    excluded: int
    kept: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        rest = {name: getattr(self, name) for name in ("capacity_bytes", "usable_bytes", "limits", "no_loss")}
        return {
            "plan": self.plan.model_dump(mode="json"),
            **rest,
            "profile": profile_as_json(self.plan, self.profile),
            "assumptions": [asdict(one) for one in self.assumptions],
            "runners_up": [asdict(one) for one in self.runners_up],
            "tried": self.tried,
            "excluded": self.excluded,
            "kept": list(self.kept),
        }


def profile_as_json(plan: Plan, how: Profile) -> dict[str, Any]:
    """The constants, and for calibrated ones how many runs they were fitted to and how far off they are."""
    own = plan.cluster.profile
    fit = {"runs": own.runs, "error_before": own.error_before, "error": own.error} if own and how.date else {}
    return asdict(how) | {"calibrated": bool(how.date)} | fit


def explain(found: Search) -> Explanation:
    """Gathers what the screen shows."""
    plan = found.plan
    ranks = plan.recipe.layout.ranks
    step = step_seconds(plan.job, plan.cluster, plan.recipe)
    shares = {what: seconds / step.total for what, seconds in step.limits.items() if seconds > 0}
    return Explanation(
        plan=plan,
        capacity_bytes=capacity_bytes(plan.cluster, ranks),
        usable_bytes=usable_bytes(plan.cluster, ranks),
        profile=profile(plan.recipe.software, plan.cluster),
        limits=dict(sorted(shares.items(), key=lambda item: -item[1])),
        assumptions=tuple(_assumptions(plan)),
        runners_up=tuple(map(_way, found.runners_up)),
        no_loss=loss_law.why_not(plan.job, total_parameters(plan.job.model), plan.predicted.tokens.value),
        tried=found.tried,
        excluded=found.excluded,
        kept=found.kept,
    )


def _way(candidate: Candidate) -> Way:
    recipe, run = candidate.recipe, candidate.run
    micro = recipe.batch.micro_sequences
    layout = show_layout(recipe.layout)
    return Way(layout, recipe.precision, recipe.recompute, micro, run.usd, run.seconds, run.memory.peak)


def _assumptions(plan: Plan) -> Iterator[Assumption]:
    """Figures of the cluster that entered the bill, but for measured ones."""
    for key, figure in _figures_used(plan):
        if figure.provenance != "measured":
            yield Assumption(
                key, str(figure), figure.value, figure.unit, figure.provenance, figure.date, figure.source
            )  # fmt: skip


def _figures_used(plan: Plan) -> Iterator[tuple[str, Figure]]:
    cluster, precision = plan.cluster, plan.recipe.precision
    chip = cluster.accelerator
    for name in ("price", "goodput", "grid", "pue"):
        yield name, getattr(cluster, name)
    yield f"{precision} peak", chip.peak_flops[precision]
    if precision in chip.achievable_flops:
        yield f"{precision} best product", chip.achievable_flops[precision]
    yield "memory bandwidth", chip.memory_bandwidth
    yield "memory", chip.memory
    for link, sent in plan.predicted.link_bytes.items():
        if sent.value:
            name = link.replace("_", "-")
            yield f"{name} link", getattr(cluster, link).bandwidth
            yield f"{name} latency", getattr(cluster, link).latency
    yield "TDP", chip.tdp_watts
    yield "idle", chip.idle_watts
    yield "host", cluster.host_watts
    yield "utilisation", cluster.utilisation
    yield "op overhead", chip.op_overhead
    yield "runtime memory", chip.runtime_memory
