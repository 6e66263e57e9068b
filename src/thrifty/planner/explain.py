"""What a plan's screen says, as plain data: money and time, memory by term, what a step waits for, what is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.cost.memory import capacity_bytes, usable_bytes
from thrifty.cost.params import total_parameters
from thrifty.cost.profiles import Profile, profile
from thrifty.cost.run import with_experiments
from thrifty.cost.step import StepSeconds, step_seconds
from thrifty.laws import loss as loss_law
from thrifty.planner import assumptions
from thrifty.planner.reasons import show_layout
from thrifty.planner.search import NEAR, Search
from thrifty.planner.space import Candidate
from thrifty.spec import units
from thrifty.spec.figure import Figure
from thrifty.spec.plan import Plan

MOST_DIFFERENCES, LEAST_DIFFERENCE = 3, 0.002  # parts named of a runner-up's step, and share of a step to be named


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
    """Another way to run the job, priced with the same evaluations and checkpoints.

    Attributes:
        why: what it costs beside the plan, and which parts of a step and of the memory make the difference.
    """

    layout: str
    precision: str
    recompute: str
    micro_sequences: int
    usd: float
    seconds: float
    peak_bytes: float
    why: str


@dataclass(frozen=True)
class Explanation:
    """All that a plan's screen shows.

    Attributes:
        capacity_bytes: memory of one rank's devices; a plan may fill `usable_bytes` of it.
        profile: constants that it is priced with.
        limits: what a step waits for and its share of the step, largest first.
        no_loss: why there is no predicted loss; empty where there is one.
        tried: recipes considered; `excluded` of them do not fit.
        kept: keys that the user gave.
        excluded_by: of those tried, how many were not priced in full, by reason.
        illegal: ways to divide the devices that cannot run, by reason.
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
    excluded_by: dict[str, int]
    illegal: dict[str, int]

    @property
    def programme(self) -> dict[str, Figure]:
        """Dollars, energy and CO2 of the run with its development runs; empty where the job names none."""
        job, bill = self.plan.job, self.plan.predicted
        costs = {"usd": bill.usd, "energy": bill.energy, "co2": bill.co2}
        return {name: with_experiments(job, figure) for name, figure in costs.items()} if job.experiments else {}

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        rest = {name: getattr(self, name) for name in ("capacity_bytes", "usable_bytes", "limits", "no_loss")}
        return {
            "plan": self.plan.model_dump(mode="json"),
            **rest,
            "programme": {name: figure.model_dump(mode="json") for name, figure in self.programme.items()},
            "profile": profile_as_json(self.plan, self.profile),
            "assumptions": [asdict(one) for one in self.assumptions],
            "runners_up": [asdict(one) for one in self.runners_up],
            "tried": self.tried,
            "excluded": self.excluded,
            "kept": list(self.kept),
            "excluded_by": self.excluded_by,
            "illegal": self.illegal,
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
        runners_up=tuple(_way(one, plan, step) for one in found.runners_up),
        no_loss=loss_law.why_not(plan.job, total_parameters(plan.job.model), plan.predicted.tokens.value),
        tried=found.tried,
        excluded=found.excluded,
        kept=found.kept,
        excluded_by=found.excluded_by,
        illegal=found.illegal,
    )


def _way(candidate: Candidate, plan: Plan, step: StepSeconds) -> Way:
    recipe, run = candidate.recipe, candidate.run
    micro = recipe.batch.micro_sequences
    layout = show_layout(recipe.layout)
    why = _why_lost(candidate, plan, step)
    return Way(layout, recipe.precision, recipe.recompute, micro, run.usd, run.seconds, run.memory.peak, why)


def _why_lost(other: Candidate, plan: Plan, step: StepSeconds) -> str:
    """What a runner-up costs beside the plan, and the parts of a step and of the memory that differ."""
    more = other.run.usd / plan.predicted.usd.value - 1
    room = other.run.memory.peak - plan.predicted.peak_memory.value
    memory = f"{units.show(abs(room), 'byte')} {'more' if room > 0 else 'less'} memory"
    parts = ", ".join(_differences(step, other.run.step))
    if more < -NEAR:
        head = f"costs {-more:.1%} less, under what it must save to depart from the plain way"
    elif abs(more) <= NEAR:
        head = f"costs the same within {NEAR:.0%}"
    else:
        head = f"costs {more:.1%} more"
    return f"{head}{': ' + parts if parts else ''}; takes {memory}"


def _differences(ours: StepSeconds, theirs: StepSeconds) -> Iterator[str]:
    """What a step waits for longer or shorter than the plan's, the largest differences first."""
    names = dict.fromkeys((*ours.limits, *theirs.limits))
    seconds = {name: theirs.limits.get(name, 0.0) - ours.limits.get(name, 0.0) for name in names}
    largest = sorted(seconds, key=lambda name: -abs(seconds[name]))
    for name in largest[:MOST_DIFFERENCES]:
        if abs(seconds[name]) > LEAST_DIFFERENCE * ours.total:
            sign = "+" if seconds[name] > 0 else "-"
            yield f"{name} {sign}{units.show(abs(seconds[name]), 's')} a step"


def _assumptions(plan: Plan) -> Iterator[Assumption]:
    """Figures of the cluster that entered the bill, but for measured ones."""
    for name, _, figure in assumptions.used(plan):
        if figure.provenance != "measured":
            yield Assumption(
                name, str(figure), figure.value, figure.unit, figure.provenance, figure.date, figure.source
            )  # fmt: skip
