"""What a loss law says of a job or a plan: the loss to expect, tokens for a target, repeated data, the batch."""

from __future__ import annotations

import math

from thrifty.cost.params import total_parameters
from thrifty.cost.predict import worth_tokens
from thrifty.laws import critical_batch, repetition
from thrifty.laws import loss as loss_law
from thrifty.laws.law import LossLaw
from thrifty.spec import units
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.plan import Plan


def job_for_target(job: Job, target: float, by: LossLaw = loss_law.PUBLISHED) -> Job:
    """A job that trains until a law says the loss is reached.

    Raises:
        ThriftyError: out of reach for the model, or for any.
    """
    total = total_parameters(job.model)
    problem = loss_law.why_not(job, total, by=by)
    if problem:
        raise ThriftyError(f"the loss cannot be planned for: {problem}", where="--target-loss", hint="say tokens")
    size = loss_law.count_parameters(job.model, total, by.counted)
    once = loss_law.tokens_for_loss(size, target, by)
    tokens = loss_law.tokens_to_target(by, size, target, job.data.unique_tokens)
    if tokens is None:
        unique = units.show(job.data.unique_tokens or 0, "token")
        what = f"loss {target:g} is out of reach on {unique} unique tokens, however often they repeat"
        raise ThriftyError(what, where="--target-loss", hint=f"new ones would do: {units.show(once, 'token')} of them")
    return job.model_copy(update={"tokens": math.ceil(tokens), "steps": None, "target_loss": target})


def with_law(plan: Plan, by: LossLaw = loss_law.PUBLISHED) -> Plan:
    """The plan with the loss that a law expects of it, and what the law says of its data and batch as reasons."""
    tokens, total = plan.predicted.tokens.value, total_parameters(plan.job.model)
    worth = worth_tokens(plan.job, plan.recipe, tokens)
    expected = loss_law.predicted_loss(plan.job, total, worth, by, plan.predicted.steps.value)
    bill = plan.predicted.model_copy(update={"loss": expected})
    return plan.model_copy(update={"predicted": bill, "reasons": (*plan.reasons, *law_reasons(plan, by))})


def law_reasons(plan: Plan, by: LossLaw) -> list[str]:
    """What a law says of a plan's data and batch."""
    job, tokens, said = plan.job, plan.predicted.tokens.value, []
    total = total_parameters(job.model)
    problem = loss_law.why_not(job, total, tokens, by)
    if by is not loss_law.PUBLISHED:
        said.append(f"no loss: {problem}" if problem else f"loss by {by.source}")
        said += [f"the law: {warning}" for warning in by.warnings]
    unique = job.data.unique_tokens
    if unique is not None and unique < tokens:
        worth = units.show(repetition.effective_tokens(unique, tokens), "token")
        said.append(f"data repeats {tokens / unique:.1f} times: worth {worth} new tokens ({repetition.SOURCE})")
    if not problem:
        batch, critical = (
            plan.recipe.batch.sequences * job.sequence_length,
            critical_batch.critical_batch_tokens(tokens),
        )
        more = critical_batch.overhead(batch, critical) - 1
        said.append(
            f"batch {units.show(batch, 'token')} tokens: {batch / critical:.2g} critical ones, {more:.0%} more tokens "
            f"than small steps ({critical_batch.SOURCE.partition('(')[2].partition(')')[0]})"
        )
    return said
