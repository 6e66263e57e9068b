"""What a lever was measured to do to the job's own block shapes on this cluster; it goes over what is modelled."""

from __future__ import annotations

from thrifty.planner.space import Candidate
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.profile import block_signature

PLAIN = {"precision": "fp32", "compile": "off", "recompute": "none", "micro_sequences": "1"}
"""The values that ratios are against; a lever that is measured later enters with one line here."""


def named(value: object) -> str:
    """A lever's value as profiles spell it."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def measured_ratio(cluster: Cluster, job: Job, lever: str, value: object) -> float | None:
    """Time of one of the job's blocks with a lever over without it, as measured here; none where it was not."""
    if cluster.profile is None or lever not in PLAIN:
        return None
    shape = block_signature(job.model, job.sequence_length)
    found = {r.value: r.ratio for r in cluster.profile.levers if (r.shape, r.lever) == (shape, lever)}
    return 1.0 if found and named(value) == PLAIN[lever] else found.get(named(value))


def measured_saving(cluster: Cluster, job: Job, lever: str, on: Candidate, off: Candidate) -> float | None:
    """Share of the time that a lever was measured to save: of the steps, or of the whole run for compiling.

    Of a step only computation changes as the block did; what is sent and updated stays.
    """
    if lever not in PLAIN:
        return None
    values = (measured_ratio(cluster, job, lever, getattr(one.recipe, lever)) for one in (on, off))
    ratio_on, ratio_off = values
    if ratio_on is None or ratio_off is None:
        return None
    gained = (1 - ratio_on / ratio_off) * off.run.step.compute
    if lever != "compile":
        return gained / off.run.step.total
    starting = on.run.parts["startup"] - off.run.parts["startup"]
    return (off.run.steps * gained - starting) / off.run.seconds


def told_measured(cluster: Cluster, job: Job, lever: str, value: object) -> str:
    """`; measured here: bf16 0.82x` behind a reason; empty where nothing was measured."""
    ratio = measured_ratio(cluster, job, lever, value)
    return "" if ratio is None or named(value) == PLAIN[lever] else f"; measured here: {named(value)} {ratio:.2f}x"
