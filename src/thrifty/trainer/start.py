"""What a run begins with: its data, and the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from thrifty.data.loader import Samples
from thrifty.data.prepare import Prepared, prepare
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan
from thrifty.trainer import checkpoint
from thrifty.trainer.build import Built
from thrifty.trainer.checkpoint import Checkpoints
from thrifty.trainer.islands import Islands
from thrifty.trainer.record import Record
from thrifty.trainer.world import World


def prepare_data(plan: Plan, world: World, notify: Callable[[str], None]) -> Prepared:
    """Tokenises once a node; the other ranks find the result in the cache."""
    problem: ThriftyError | None = None
    prepared = None
    if world.local_rank == 0:
        try:
            prepared = prepare(plan.job.data, notify=notify)
        except ThriftyError as error:
            problem = error
    problems = [p for p in world.gather(problem) if p is not None]
    if problems:
        raise problems[0]
    return prepared or prepare(plan.job.data, notify=lambda _: None)


def samples(plan: Plan, prepared: Prepared) -> tuple[Samples, Samples]:
    """Those to train on and those to validate with.

    Raises:
        ThriftyError: they do not fit the job.
    """
    job, batch = plan.job, plan.recipe.batch
    vocabulary = prepared.tokenizer.vocab_size
    if vocabulary > job.model.vocab_size:
        raise ThriftyError(
            f"the tokenizer has {vocabulary} ids, the model's vocab_size is {job.model.vocab_size}",
            where="job.model.vocab_size",
            hint=f"plan again with --set job.model.vocab_size={vocabulary} (or auto)",
        )
    train = Samples(prepared, "train", job.sequence_length, job.seed)
    train.require(batch.sequences)
    return train, Samples(prepared, "val", job.sequence_length, job.seed)


def restore(
    world: World, built: Built, islands: Islands | None, checkpoints: Checkpoints, record: Record
) -> tuple[dict[str, Any] | None, int]:
    """Loads the newest good checkpoint; returns its ledger and its step."""
    found = checkpoints.latest(record.note)
    if found is None:
        record.note("no checkpoint yet: starting from step 0")
        record.truncate(0)
        return None, 0
    step, progress = found
    checkpoint.allocate_state(built.optimizer)
    stored = checkpoints.stored(step)
    tensors = checkpoint.without_foreign_scales(checkpoint.state(built.model, built.optimizer), stored)
    if islands is None:
        checkpoints.load(step, tensors)
    else:
        anew = islands.load(tensors, progress.get("islands", {}), stored, partial(checkpoints.load, step))
        if anew is not None:
            record.note(anew)
    checkpoint.take_over(built.model, built.optimizer, tensors)
    if built.tied is not None:
        built.tied.follow()
    record.truncate(step)
    record.note(f"resumed from step {step}")
    return progress, step
