"""The training loop: executes a Plan on this rank, step by step, and bills it."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.cost.stages import stage_layers
from thrifty.cost.timeline import most_kept, order
from thrifty.data.loader import Samples
from thrifty.data.tokenizer import Tokenizer
from thrifty.optim.schedule import learning_rate
from thrifty.parallel.count import TrafficCounter
from thrifty.parallel.mesh import coordinates
from thrifty.parallel.pipeline import Around, Pipeline
from thrifty.parallel.shard import release_gathered
from thrifty.spec.bill import MEMORY_TERMS, Bill
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan
from thrifty.trainer import checkpoint, memory
from thrifty.trainer.build import Built, build, passes
from thrifty.trainer.checkpoint import Checkpoints
from thrifty.trainer.clip import clip_gradients
from thrifty.trainer.export import export_ranks
from thrifty.trainer.islands import Islands, best_codecs
from thrifty.trainer.limits import Limits
from thrifty.trainer.meter import Meter
from thrifty.trainer.optimizers import groups_of
from thrifty.trainer.record import Record
from thrifty.trainer.spent import usd_per_second
from thrifty.trainer.start import prepare_data, restore, samples
from thrifty.trainer.timeline import LATEST, Step, write_timeline
from thrifty.trainer.world import World

IGNORED = -100  # target of a position that no loss is taken from


@dataclass
class Run:
    """A run in progress on one rank: its parts, and what has been seen so far."""

    plan: Plan
    world: World
    built: Built
    train: Samples
    val: Samples
    meter: Meter
    checkpoints: Checkpoints
    record: Record
    limits: Limits
    peak: memory.Peak
    islands: Islands | None = None
    step: int = 0
    tokens: int = 0  # fed, padding included
    evaluated_tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)
    checkpoint_seconds: float = 0.0
    loss: float | None = None  # last validation loss
    tokens_in_loss: int = 0
    memory: dict[str, float] = field(default_factory=dict)
    timelines: deque[Step] = field(default_factory=lambda: deque(maxlen=LATEST))


def execute(
    plan: Plan, world: World, record: Record, *, resume: bool, limits: Limits, began: float, export: Path | None = None
) -> tuple[Bill, str | None]:
    """Trains until the job is done or a limit is met, and bills it.

    Args:
        record: writes the run folder and the progress line; silent on all ranks but 0.
        began: when the run was started, seconds since the epoch.
        export: folder for the trained model, once the job is done.

    Returns:
        The measured bill, and why the run stopped early (None when it is complete).

    Raises:
        ThriftyError: the data does not fit the plan, a loss is not finite, or a checkpoint cannot be written or read;
            the bill is written all the same where it is the export that fails.
    """
    with TrafficCounter(world.link_of, ignore=(world.control, world.writer, world.near)) as traffic, limits:
        prepared = prepare_data(plan, world, record.note)
        train, val = samples(plan, prepared)
        memory.reset_peak(world.device)
        stages = stage_layers(plan.job, plan.cluster, plan.recipe) if plan.recipe.layout.pipeline > 1 else None
        built = build(plan.job, plan.recipe, world, stages)
        for group in groups_of(built.model, plan.recipe.optimizer):
            record.note(str(group))
        checkpoints = Checkpoints(record.folder.checkpoints, world, keep=plan.recipe.checkpoint.keep)
        islands = None
        if plan.recipe.exchange.between_islands and plan.recipe.layout.island > 1:
            islands = Islands(built, plan.recipe, partial(best_codecs, plan), record.note)
        base, start = restore(world, built, islands, checkpoints, record) if resume else (None, 0)
        record.begin(plan, world, prepared, resumed_from=start if resume else None)
        meter = Meter(plan, world, began, traffic, base, world.share(record.spent and record.spent.before))
        if record.spent is not None:
            record.spent.now = meter.spent
        run = Run(
            plan,
            world,
            built,
            train,
            val,
            meter,
            checkpoints,
            record,
            limits,
            memory.Peak(world.device),
            islands,
            step=start,
        )
        if base is not None:
            for name in ("tokens", "evaluated_tokens", "loss", "tokens_in_loss"):
                setattr(run, name, base[name])
            run.step_seconds = record.step_seconds()
        # What exists by now stays; the collector need not walk it again and again between steps.
        gc.collect()
        gc.freeze()
        state_bytes = sum(p.numel() * 12 for p in built.model.parameters()) / world.size
        run.checkpoint_seconds = 0.2 + state_bytes / 500e6  # until one is measured
        stopped = _train(run)
        write_timeline(record.folder, world, plan.recipe.layout, run.timelines)
        peak_bytes = memory.peak_bytes(world.device)
        problem = None if export is None else _export(run, export, prepared.tokenizer, stopped)
        bill = _bill(run, peak_bytes)
        record.finish(plan.predicted, bill)
        if problem is not None:
            raise problem
        return bill, stopped


def _train(run: Run) -> str | None:
    """All steps that are left; returns why it stopped early, or None."""
    plan, recipe = run.plan, run.plan.recipe
    total = plan.total_steps
    stopped: str | None = None
    while run.step < total:
        with run.meter.part("data"):
            batches = _fetch(run)
        reason = _wants_to_stop(run)
        local_count = sum(int((targets != IGNORED).sum()) for _, targets, _ in batches) * run.world.counts_targets
        with run.meter.part("communication"):
            targets_in_step, stop, busy = _agree(run, local_count, reason is not None)
        if stop:
            stopped = next(r for r in run.world.gather(reason) if r is not None)
            break
        if run.checkpoints.unfinished and not busy:
            with run.meter.part("checkpoint"):
                run.checkpoints.finish()
        _step(run, batches, int(targets_in_step))
        last = run.step == total
        if last and run.islands is not None:
            run.islands.finish()
        if last or (recipe.evaluation.every_steps and run.step % recipe.evaluation.every_steps == 0):
            evaluate(run)
            target = plan.job.target_loss
            if target is not None and run.loss is not None and run.loss <= target and not last:
                stopped = f"target loss {target} reached"
                if run.islands is not None:
                    run.islands.settle()  # the parameters that reached it
                break
        if not last and recipe.checkpoint.every_steps and run.step % recipe.checkpoint.every_steps == 0:
            save(run, asynchronous=recipe.checkpoint.asynchronous)
    if run.checkpoints.unfinished:
        with run.meter.part("checkpoint"):
            run.checkpoints.finish()
    if run.step not in run.world.share(run.checkpoints.steps()):
        save(run, asynchronous=False)
    return stopped


def _agree(run: Run, local_count: int, stop: bool) -> tuple[float, float, float]:
    """Targets of the step, whether any rank wants to stop, and whether any still writes a checkpoint.

    Islands that train apart ask each other when they meet, not in every step.
    """
    world, mine = run.world, (stop, run.checkpoints.busy)
    if not world.apart:
        targets, stops, busy = world.sum(local_count, *mine)
        return targets, stops, busy
    (targets,) = world.sum_of_step(local_count)
    stops, busy = world.sum(*mine) if run.step % run.plan.recipe.exchange.local_steps == 0 else (0.0, 1.0)
    return targets, stops, busy


def _wants_to_stop(run: Run) -> str | None:
    """This rank's reason to stop; money and time are rank 0's, so that one clock decides."""
    if run.world.rank != 0:
        return run.limits.signal_name
    step_seconds = run.step_seconds[-1] if run.step_seconds else 0.0
    return run.limits.reason(
        usd=run.meter.spent().usd,
        usd_per_second=usd_per_second(run.plan.cluster),
        seconds=run.meter.seconds_now(),
        # The next step, the last checkpoint and the bill, with room for a disk that is slower this time.
        ahead_seconds=1.0 + 1.5 * (step_seconds + run.checkpoint_seconds),
    )


def _fetch(run: Run) -> list[tuple[Tensor, Tensor, int]]:
    """This rank's microbatches of the step: tokens, targets (micro, seq / context), and the first sequence's index."""
    batch, world = run.plan.recipe.batch, run.world
    found = []
    for i in range(run.plan.recipe.accumulation):
        first = run.step * batch.sequences + (i * world.data_ranks + world.data_rank) * batch.micro_sequences
        tokens, targets = run.train.batch(first, batch.micro_sequences)
        found.append((_own(tokens, world), _own(targets, world), first))
    return found


def _own(array: Any, world: World) -> Tensor:
    tensor = world.own_tokens(torch.from_numpy(array))
    return tensor if world.device.type == "cpu" else tensor.pin_memory().to(world.device, non_blocking=True)


def _step(run: Run, batches: list[tuple[Tensor, Tensor, int]], targets_in_step: int) -> None:
    """One optimizer step. The loss is normalised by the targets of all ranks and microbatches together."""
    begin = time.perf_counter()
    recipe, model, optimizer = run.plan.recipe, run.built.model, run.built.optimizer
    # FSDP averages gradients over data and context ranks, so each one's sum is scaled up by their number.
    scale = run.world.averaged_ranks / max(1, targets_in_step)
    with run.meter.part("compute"):
        losses = _passes(run, batches, scale)
        for finish in run.built.finish:
            finish()
        values = torch.stack(losses).tolist() if losses else []  # the one place where a GPU is waited for
    with run.meter.part("communication"):
        if run.islands is not None:
            run.islands.average_gradients()
        counted = sum(values) if run.world.counts_loss else 0.0
        loss_sum, joules = run.world.sum_of_step(counted, run.meter.joules_of_rank())
    # Islands that train apart take each other to spend alike; the bill asks all.
    run.meter.set_joules(joules * (recipe.layout.island if run.world.apart else 1))
    if not math.isfinite(loss_sum):
        _stop_on_non_finite(
            run, [first for value, (_, _, first) in zip(values, batches, strict=False) if not math.isfinite(value)]
        )
    lr = learning_rate(recipe.schedule, recipe.optimizer.lr, run.step, run.plan.total_steps)
    with run.meter.part("optimizer"):
        parameters, elsewhere = list(model.parameters()), run.built.counted_elsewhere
        norm = clip_gradients(parameters, recipe.optimizer.clip_norm, run.built.norm_groups, elsewhere)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        if run.built.tied is not None:
            run.built.tied.follow()
        if "gradients" not in run.memory:
            run.memory["gradients"] = memory.gradient_bytes(model)
        optimizer.zero_grad(set_to_none=True)
    if run.islands is not None:
        with run.meter.part("communication"):
            run.islands.after_step()
    run.step += 1
    run.tokens += recipe.batch.sequences * run.plan.job.sequence_length
    seconds = time.perf_counter() - begin
    run.step_seconds.append(seconds)
    if run.built.pipeline is not None:
        run.timelines.append((run.step, seconds, run.built.pipeline.events))
    _log(run, loss_sum / max(1, targets_in_step), lr, float(norm), seconds)


def _passes(run: Run, batches: list[tuple[Tensor, Tensor, int]], scale: float) -> list[Tensor]:
    """Forward and backward passes of all microbatches; their losses, on the ranks that know them."""
    pairs = [(tokens, targets) for tokens, targets, _ in batches]
    before_last = run.islands.expect_last if run.islands is not None else lambda: None
    losses = passes(
        run.built, pairs, scale, forward=partial(_forward, run), around=_count_first(run), before_last=before_last
    )
    if run.built.pipeline is not None:
        _remember_first(run, run.built.pipeline)
    return losses


def _forward(run: Run, tokens: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropy over targets; the first one also counts what it keeps for the backward pass."""
    if "activations" in run.memory:
        return run.built.model(tokens, targets)
    model = run.built.model
    with memory.count_forward(model, run.plan.recipe.compile) as saved:
        loss = model(tokens, targets)
    _remember(run, saved.activation_bytes, saved.logit_bytes, saved.gathered_bytes)
    return loss


def _remember(run: Run, activations: float, logits: float, gathered: float) -> None:
    run.memory["activations"], run.memory["logits"] = activations, logits
    run.memory["communication"] = gathered


def _count_first(run: Run) -> Around | None:
    """What the first forward pass of each part of a pipeline is wrapped in, until it has been counted."""
    if "activations" in run.memory:
        return None
    return lambda part: memory.count_forward(part, run.plan.recipe.compile)


def _remember_first(run: Run, pipeline: Pipeline) -> None:
    """Several microbatches are kept at once, as many as the schedule has under way."""
    if not pipeline.first_passes:
        return
    layout = run.plan.recipe.layout
    mine = order(layout, run.plan.recipe.accumulation)[coordinates(layout, run.world.rank)["pipeline"]]
    kept = most_kept(mine, {part: saved.activation_bytes for part, saved in pipeline.first_passes.items()})
    passes = pipeline.first_passes.values()
    _remember(run, kept, max(s.logit_bytes for s in passes), sum(s.gathered_bytes for s in passes))


def _stop_on_non_finite(run: Run, bad: list[int]) -> None:
    sequences = [first for firsts in run.world.gather_of_step(bad) for first in firsts]
    steps = run.checkpoints.steps()
    last = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    raise ThriftyError(
        f"the loss is not finite at step {run.step + 1}, "
        f"in the microbatch that begins at sequence {min(sequences)} of the sample order",
        where=str(run.record.folder.root),
        hint=f"{last}; continue from it with --resume and a lower --set recipe.optimizer.lr=..., or look at that batch",
    )


def _log(run: Run, loss: float, lr: float, norm: float, seconds: float) -> None:
    if run.world.rank != 0:
        return
    rate = run.plan.recipe.batch.sequences * run.plan.job.sequence_length / seconds
    row = {
        "step": run.step, "split": "train", "loss": loss, "tokens": run.tokens, **run.meter.spent()._asdict(),
        "step_seconds": seconds, "lr": lr, "grad_norm": norm, "tokens_per_second": rate, "mfu": run.meter.mfu(rate),
        "memory_bytes": run.peak.bytes(),
        **{f"{part}_seconds": took for part, took in run.meter.lap().items()},
    }  # fmt: skip
    run.record.add(row)
    run.record.show(row, (run.plan.total_steps - run.step) * _recent(run.step_seconds))


def _recent(seconds: list[float]) -> float:
    return sum(seconds[-20:]) / len(seconds[-20:])


@torch.no_grad()
def evaluate(run: Run) -> None:
    """Mean cross-entropy over the first validation sequences, the same ones on any layout."""
    batch, world = run.plan.recipe.batch.micro_sequences, run.world
    model = run.built.pipeline.evaluate if run.built.pipeline is not None else run.built.model
    count = min(run.plan.recipe.evaluation.sequences, len(run.val))
    loss_sum, targets_seen = 0.0, 0
    weights = run.islands.common_weights() if run.islands is not None else nullcontext()
    with run.meter.part("evaluation"), weights:
        for first in range(0, count, batch * world.data_ranks):
            mine = first + world.data_rank * batch
            here = max(0, min(batch, count - mine))
            # Every rank runs every pass at full size, else sharded parameters could not be gathered; what is beyond
            # the end is masked.
            tokens, targets = run.val.batch(min(mine, count - 1), max(1, here))
            padded = torch.zeros(batch, tokens.shape[1], dtype=torch.int64)
            masked = torch.full_like(padded, IGNORED)
            padded[: len(tokens)] = torch.from_numpy(tokens)
            masked[:here] = torch.from_numpy(targets[:here])
            padded, masked = world.own_tokens(padded), world.own_tokens(masked)
            loss = model(padded.to(world.device), masked.to(world.device))
            loss_sum += loss.item() if loss is not None else 0.0
            targets_seen += int((masked != IGNORED).sum())
        release_gathered(run.built.model)
        loss_sum, counted = world.sum(loss_sum * world.counts_loss, targets_seen * world.counts_targets)
    run.loss, run.tokens_in_loss = loss_sum / counted, int(counted)
    run.evaluated_tokens += count * run.plan.job.sequence_length
    if world.rank == 0:
        run.record.add({
            "step": run.step, "split": "val", "loss": run.loss, "tokens": run.tokens, **run.meter.spent()._asdict(),
        })  # fmt: skip
        run.record.note(
            f"step {run.step} validation loss {run.loss:.4f} nats/token ({run.loss / math.log(2):.3f} bits)"
        )


def save(run: Run, *, asynchronous: bool) -> None:
    """Checkpoints this step, with the ledger so far."""
    begin = time.perf_counter()
    with run.meter.part("checkpoint"):
        progress = run.meter.ledger() | {
            "step": run.step, "tokens": run.tokens, "evaluated_tokens": run.evaluated_tokens, "loss": run.loss,
            "tokens_in_loss": run.tokens_in_loss, "plan": run.plan.hash,
        }  # fmt: skip
        if not run.built.optimizer.state:
            checkpoint.allocate_state(run.built.optimizer)
        tensors = checkpoint.state(run.built.model, run.built.optimizer)
        if run.islands is not None:
            tensors, progress["islands"] = run.islands.saved(tensors)
        run.checkpoints.save(run.step, tensors, progress, asynchronous=asynchronous)
    run.checkpoint_seconds = time.perf_counter() - begin


def _export(run: Run, folder: Path, tokenizer: Tokenizer, stopped: str | None) -> ThriftyError | None:
    """What went wrong in writing the trained model for others; the run itself is good all the same."""
    target = run.plan.job.target_loss
    if stopped is not None and (target is None or run.loss is None or run.loss > target):
        run.record.note(f"not exported, as the job is not done: thrifty export {run.record.folder.root} {folder}")
        return None
    try:
        with run.meter.part("checkpoint"):
            export_ranks(run.built.model, run.plan.job.model, folder, run.world, tokenizer=tokenizer)
    except ThriftyError as error:
        way = f"{error.hint}; " * bool(error.hint) + "the run is good, export its checkpoint: thrifty export RUN DIR"
        return ThriftyError(error.what, where=error.where, hint=way)
    return None


def _bill(run: Run, peak: float) -> Bill:
    """The measured bill, the same on every rank.

    Args:
        peak: bytes at the fullest moment of training, on this rank.
    """
    model, world = run.built.model, run.world
    run.memory["parameters"] = memory.parameter_bytes(model)
    run.memory["optimizer"] = memory.optimizer_bytes(run.built.optimizer)
    run.memory["communication"] = run.memory.get("communication", 0) + run.meter.traffic.largest_buffer_bytes
    if run.islands is not None:
        run.memory["communication"] += run.islands.kept_bytes()
    # The rest of the peak: interpreter, libraries, temporaries of single operations, and what the allocator keeps.
    run.memory["runtime"] = max(0.0, peak - sum(run.memory.values()))
    (joules,) = world.sum(run.meter.joules_of_rank())
    run.meter.set_joules(joules)
    *largest, peak_bytes, reserved_bytes = world.max(
        *(run.memory.get(name, 0.0) for name in MEMORY_TERMS), peak, memory.reserved_bytes(world.device)
    )
    return run.meter.bill(
        steps=max(1, run.step),
        tokens=run.tokens,
        step_seconds=run.step_seconds,
        evaluated_tokens=run.evaluated_tokens,
        memory=dict(zip(MEMORY_TERMS, largest, strict=True)),
        peak_bytes=peak_bytes,
        reserved_bytes=reserved_bytes,
        loss=run.loss,
        tokens_in_loss=run.tokens_in_loss,
    )
