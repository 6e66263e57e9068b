"""The Plan: job, cluster and recipe with a predicted bill, hashed. The one file that `train` executes."""

from __future__ import annotations

import hashlib
import json
from typing import Self

from pydantic import model_validator

from thrifty.spec.bill import Bill
from thrifty.spec.cluster import Cluster
from thrifty.spec.figure import Noun
from thrifty.spec.job import Job
from thrifty.spec.recipe import Recipe


def fingerprint(job: Job, cluster: Cluster, recipe: Recipe) -> str:
    """SHA-256 of the three nouns in canonical JSON: equal exactly when they are equal."""
    content = {"job": job.model_dump(), "cluster": cluster.model_dump(), "recipe": recipe.model_dump()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Plan(Noun):
    """What will be run, and what it should cost.

    Attributes:
        reasons: why each choice was made, one line each.
        made_with: version of thrifty and date.
        hash: of job, cluster and recipe; a changed file no longer matches it and is refused.
    """

    job: Job
    cluster: Cluster
    recipe: Recipe
    predicted: Bill
    reasons: tuple[str, ...] = ()
    made_with: str = ""
    hash: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hash != fingerprint(self.job, self.cluster, self.recipe):
            raise ValueError("job, cluster or recipe was changed after planning (the hash no longer matches)")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps to the end of the job, from its steps or its tokens; with a ramp, as many as predicted."""
        if self.recipe.batch.ramp is not None:
            return round(self.predicted.steps.value)
        return total_steps(self.job, self.recipe)


def tokens_per_step(job: Job, recipe: Recipe) -> int:
    """Tokens of one optimizer step, padding included."""
    return recipe.batch.sequences * job.sequence_length


def total_steps(job: Job, recipe: Recipe) -> int:
    """`job.steps`, or enough steps for `job.tokens`.

    Raises:
        ValueError: the job has neither; the planner fills in tokens where only a target loss is given.
    """
    if job.steps is not None:
        return job.steps
    if job.tokens is None:
        raise ValueError("the job has neither tokens nor steps")
    return -(-job.tokens // tokens_per_step(job, recipe))
