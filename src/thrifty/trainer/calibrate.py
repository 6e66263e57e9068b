"""Measures this machine and this trainer on it, and fits the constants that plans for it are priced with.

rates        matrix products of linear layers, forward and both gradients; memory; dispatch (`probe`)
link         all-gathers, reduce-scatters and all-reduces between local ranks (`collectives`)
levers       one block of the job's shape, with and without each (`levers`)
runs         a few short runs of the trainer itself, on one rank and on several, as `thrifty train` starts them
constants    fitted to these runs and to the errors of earlier ones (`cost.calibrate`)
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from thrifty.cost.calibrate import (
    fit_products,
    fit_runs,
    median_error,
    priced,
    ratio,
    startup_of,
    times_a_gather,
)
from thrifty.cost.predict import predict
from thrifty.cost.profiles import profile
from thrifty.cost.step import step_seconds
from thrifty.cost.work import linear_layers
from thrifty.data.prepare import prepare
from thrifty.planner.emit import read_plan, write_plan
from thrifty.spec.bill import STEP_PARTS
from thrifty.spec.calibration import Calibration, CollectiveFit, PastRun, ProductRate, Residual
from thrifty.spec.cluster import Cluster, Link
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure
from thrifty.spec.job import Data, Job, ModelShape, Tokenizer
from thrifty.spec.load import build
from thrifty.spec.plan import Plan, fingerprint
from thrifty.spec.profile import CalibratedProfile, LeverRatio, block_signature
from thrifty.spec.recipe import Batch, Checkpoint, Evaluation, Layout, Recipe
from thrifty.trainer.collectives import measure_collectives
from thrifty.trainer.history import past_run, read_history
from thrifty.trainer.levers import measure_levers
from thrifty.trainer.local import calibration_path, local_cluster
from thrifty.trainer.probe import cores, load, probe, product_seconds
from thrifty.trainer.run_folder import RunFolder

Notify = Callable[[str], None]
SMALL = {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "ffn": 384, "vocab_size": 272, "max_positions": 256}
WIDER = {"layers": 4, "hidden": 384, "heads": 6, "kv_heads": 2, "ffn": 1024, "vocab_size": 272, "max_positions": 256}
LENGTH = 128
PRODUCT_SECONDS = 0.03
MOST_STEPS, LEAST_STEPS = 24, 6
# A run is stopped, with a bill, once it has lasted so long, start-up included.
DEADLINE_SECONDS = {True: 40.0, False: 90.0}
RUN_LIMIT_SECONDS = 240.0  # where a single step lasts so long that it is never asked
BUSY = 1.0  # processes waiting for each core: from here on, what is measured says more about them than about us


@dataclass(frozen=True)
class Asked:
    """What `calibrate` was asked for.

    Attributes:
        ranks: numbers of local ranks to run on, 1 among them.
        plan: of the user's own job: its shape, length, batch and recipe are run too, and its levers timed.
        quick: fewer and shorter runs.
        levers: time the levers on the job's block.
        measure: else constants are fitted to earlier runs alone, and rates are those of the last calibration.
    """

    ranks: tuple[int, ...]
    plan: Plan | None = None
    quick: bool = False
    levers: bool = False
    measure: bool = True


def calibrate(asked: Asked, notify: Notify) -> Calibration:
    """Measures, fits, and returns what was found; nothing is written but the lines that the runs leave in the history.

    Raises:
        ThriftyError: a run or the exchange between ranks failed, or there is nothing to fit to.
    """
    known = _known(asked, notify)
    others = load()
    if asked.measure and others > BUSY:
        notify(f"other work has this machine ({others:.1f} processes a core): expect constants that are off by as much")
    if asked.measure:
        notify("rates of this machine")
        probe(refresh=True)
    fresh = build(Cluster, local_cluster(calibrated=not asked.measure), "")
    previous = known or fresh  # what a plan would have been priced with until now
    bare = fresh.model_copy(update={"profile": None})
    earlier = read_history(bare.accelerator.name, bare.devices, "thrifty")
    now = _start(bare, previous.profile, f", {others:.1f} processes a core beside" if others > BUSY else "")
    products: tuple[ProductRate, ...] = ()
    collectives: tuple[CollectiveFit, ...] = ()
    runs: list[PastRun] = []
    if asked.measure:
        products = _products(bare, asked, notify)
        now = now.model_copy(update=_product_constants(products, bare))
        if max(asked.ranks) > 1:
            notify(f"collectives between {max(asked.ranks)} ranks")
            collectives, sizes = measure_collectives(max(asked.ranks), bare.accelerator.kind)
            # A GPU's links stay the catalog's: `node_bandwidth` says what of them is reached.
            if bare.accelerator.kind == "cpu":
                link, factors = _link(collectives, sizes)
                now = now.model_copy(update=factors)
                bare = bare.model_copy(update=dict.fromkeys(("intra_node", "inter_node", "inter_island"), link))
        runs = _runs(bare, asked, notify)
    levers = previous.profile.levers if previous.profile is not None else ()
    if asked.levers and asked.plan is not None:
        levers = _levers(asked.plan, levers, bare.accelerator.kind, notify)
    everything = [*earlier, *runs]
    if not everything:
        raise ThriftyError(
            f"no finished run of thrifty on {bare.accelerator.name} is remembered",
            where="--from-history",
            hint="leave --from-history out, so that a few short runs are made",
        )
    notify(f"fit of the constants to {len(everything)} runs")
    error_before = median_error([ratio(run, previous, previous.profile) for run in everything])
    own = _fitted(everything, bare, now.model_copy(update={"error_before": round(error_before, 4), "levers": levers}))
    return Calibration(
        torch=torch.__version__,
        accelerator=bare.accelerator,
        link=bare.intra_node if bare.accelerator.kind == "cpu" else None,
        profile=own,
        products=products,
        collectives=collectives,
        residuals=_residuals(runs or everything, previous, bare, own),
    )


def _known(asked: Asked, notify: Notify) -> Cluster | None:
    """This machine as it was calibrated last; none if it never was, or if that is damaged and about to be replaced."""
    if not calibration_path().exists():
        return None
    try:
        return build(Cluster, local_cluster(), "")
    except ThriftyError as error:
        if not asked.measure:
            raise
        notify(f"replacing {calibration_path()}, which {error.what}")
        return None


def _start(cluster: Cluster, before: CalibratedProfile | None, beside: str) -> CalibratedProfile:
    """A profile with nothing measured yet, or what was measured directly last time."""
    direct = ("gemm_half", "reduce_scatter", "all_reduce")
    kept = {name: getattr(before, name) for name in direct} if before is not None else {}
    shipped = profile("thrifty", cluster)
    return CalibratedProfile(
        name="thrifty-local",
        software="thrifty",
        hardware=cluster.accelerator.name,
        source=f"own runs here, torch {torch.__version__}{beside}",
        date=time.strftime("%Y-%m-%d"),
        low=shipped.low,
        high=shipped.high,
        **kept,
    )


def _fitted(runs: Sequence[PastRun], cluster: Cluster, now: CalibratedProfile) -> CalibratedProfile:
    found = fit_runs(runs, cluster, now, profile("thrifty", cluster))
    rounded = {name: float(f"{value:.4g}") for name, value in (found.constants | startup_of(runs)).items()}
    ends = {"low": round(found.low, 3), "high": round(found.high, 3), "error": round(found.error, 4)}
    return now.model_copy(update=rounded | ends | {"runs": len(runs)})


def _products(cluster: Cluster, asked: Asked, notify: Notify) -> tuple[ProductRate, ...]:
    """Rates of the products of linear layers, of small and of usual size, and of the job's own."""
    chip = cluster.accelerator
    device, tokens = ("cuda", 4096) if chip.kind == "gpu" else ("cpu", 1024)
    shapes = {(128, 128, 128), (tokens, 128, 384), (tokens, 384, 128), (tokens, 512, 1408)}
    if asked.plan is not None:
        job, recipe = asked.plan.job, asked.plan.recipe
        rows = min(4096, recipe.batch.micro_sequences * job.sequence_length)
        shapes |= {(rows, round(m.outputs), round(m.inputs)) for m in linear_layers(job.model)}
    precisions = [name for name in ("fp32", "bf16") if name in chip.peak_flops]
    notify(f"{len(shapes)} matrix products in {' and '.join(precisions)}, three ways each")
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        return tuple(
            ProductRate(
                precision=precision, way=way, m=m, n=n, k=k,
                flops_per_s=2 * m * n * k / product_seconds(device, precision, way, m, n, k, PRODUCT_SECONDS),
            )
            for precision in precisions
            for m, n, k in sorted(shapes)
            for way in ("forward", "input gradient", "weight gradient")
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)


def _product_constants(products: Sequence[ProductRate], cluster: Cluster) -> dict[str, float]:
    """How products of all sizes relate to the rate of large ones; medians over the precisions."""
    chip, found = cluster.accelerator, list[dict[str, float]]()
    devices = cluster.devices if chip.kind == "cpu" else 1
    for precision in sorted({p.precision for p in products}):
        rate = chip.achievable_flops.get(precision, chip.peak_flops[precision]).value * devices
        rows = [(p.m, p.n, p.k, 2 * p.m * p.n * p.k / p.flops_per_s) for p in products if p.precision == precision]
        found.append(fit_products(rows, rate, chip.kind)[0])
    # Of the rate itself, runs know more than products alone: `gemm` is fitted to them, from its shipped value.
    return {"gemm_half": float(f"{statistics.median(f['gemm_half'] for f in found):.3g}")}


def _link(fits: Sequence[CollectiveFit], sizes: Sequence[float]) -> tuple[Link, dict[str, float]]:
    """The link that all-gathers see, and how much longer the other kinds take than a ring would."""
    gather, scatter, reduce = fits

    def figure(value: float, unit: str) -> Figure:
        source = f"all-gathers of {gather.sizes} sizes between {gather.ranks} ranks here"
        return Figure(value=value, unit=unit, provenance="measured", source=source, date=time.strftime("%Y-%m-%d"))

    link = Link(bandwidth=figure(gather.bytes_per_s, "byte/s"), latency=figure(gather.latency_seconds, "s"))
    times = {
        "reduce_scatter": times_a_gather(gather, scatter, sizes),
        "all_reduce": times_a_gather(gather, reduce, sizes),
    }
    return link, {name: float(f"{value:.3g}") for name, value in times.items()}


def _levers(plan: Plan, known: tuple[LeverRatio, ...], kind: str, notify: Notify) -> tuple[LeverRatio, ...]:
    """What levers do to the job's block, over what was measured of other blocks before."""
    notify(f"levers on a block of {plan.job.model.name or plan.job.name}")
    job, micro = plan.job, plan.recipe.batch.micro_sequences
    found = measure_levers(job.model, job.sequence_length, micro, kind, lambda text: notify(f"  {text}"))
    shape = block_signature(job.model, job.sequence_length)
    return (*(one for one in known if one.shape != shape), *found)


# ---- short runs


def short_plans(cluster: Cluster, asked: Asked) -> list[Plan]:
    """The runs to make: a small shape on one rank and on several, and the job's own or a wider one likewise."""
    small, wider = (ModelShape.model_validate(tree) for tree in (SMALL, WIDER))
    data, several = Data(tokenizer=Tokenizer(kind="bytes")), [n for n in asked.ranks if n > 1]
    precisions = [p for p in ("fp32", "bf16") if p in cluster.accelerator.peak_flops]
    seconds = 2.0 if asked.quick else 5.0

    def own(shape: ModelShape, ranks: int, precision: str, micro: int = 4) -> Plan:
        job = Job(name="calibrate", model=shape, data=data, sequence_length=LENGTH, steps=MOST_STEPS)
        batch = Batch(sequences=8 * max(asked.ranks), micro_sequences=micro)
        recipe = Recipe(batch=batch, precision=precision, layout=Layout(shard=ranks))
        return _shortened(job, cluster, recipe, seconds)

    found = [own(small, 1, p) for p in precisions] + [own(small, n, precisions[-1]) for n in several]
    if asked.plan is not None:
        job, recipe = asked.plan.job, asked.plan.recipe
        for ranks in asked.ranks:
            layout = Layout(shard=ranks, reshard_after_forward=recipe.layout.reshard_after_forward)
            each = max(1, min(recipe.batch.micro_sequences, recipe.batch.sequences // ranks))
            batch = Batch(
                sequences=max(1, recipe.batch.sequences // (each * ranks)) * each * ranks, micro_sequences=each
            )
            changed = recipe.model_copy(update={"layout": layout, "batch": batch, "compile": False})
            found.append(_shortened(job, cluster, changed, seconds))
    elif not asked.quick:
        found += [own(wider, n, precisions[-1], 2) for n in asked.ranks]
        found += [own(small, n, precisions[0]) for n in several]
    return found


def _shortened(job: Job, cluster: Cluster, recipe: Recipe, seconds: float) -> Plan:
    """A plan for a few steps, evaluated once on as little as possible, without a checkpoint before its end."""
    evaluated = Evaluation(every_steps=0, sequences=recipe.batch.micro_sequences * recipe.layout.ranks)
    recipe = recipe.model_copy(update={"evaluation": evaluated, "checkpoint": Checkpoint(every_steps=0, keep=1)})
    each = step_seconds(job, cluster, recipe).total
    steps = min(MOST_STEPS, max(LEAST_STEPS, round(seconds / each)))
    job = job.model_copy(update={"steps": steps, "tokens": None, "target_loss": None})
    asked = job, cluster, recipe
    return Plan(job=job, cluster=cluster, recipe=recipe, predicted=predict(*asked), hash=fingerprint(*asked))


def _runs(cluster: Cluster, asked: Asked, notify: Notify) -> list[PastRun]:
    plans = short_plans(cluster, asked)
    for data in {plan.job.data.model_dump_json(): plan.job.data for plan in plans}.values():
        prepare(data, notify=lambda text: notify(f"  {text}"))
    found = []
    with tempfile.TemporaryDirectory(prefix="thrifty-") as folder:
        for number, plan in enumerate(plans, 1):
            notify(f"run {number} of {len(plans)}: {run_name(plan.recipe, plan.job.model)}, {plan.total_steps} steps")
            found.append(_run(plan, Path(folder) / str(number), DEADLINE_SECONDS[asked.quick]))
    return found


def _run(plan: Plan, root: Path, deadline_seconds: float) -> PastRun:
    """One run in processes of its own, so that imports and start-up count as they do for a user."""
    path = root.with_suffix(".yaml")
    write_plan(plan, path)
    command = [sys.executable, "-m", "thrifty", "train", str(path), "--run-dir", str(root), "--json"]
    command += ["--deadline", f"{deadline_seconds:g}s"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ThriftyError(
            f"a run of {plan.total_steps} steps did not end within {RUN_LIMIT_SECONDS:.0f} s",
            where="calibrate", hint="leave the job out, or give a smaller one",
        ) from None  # fmt: skip
    if done.returncode:
        told = done.stderr.strip().splitlines() or ["no reason given"]
        raise ThriftyError(f"a short run failed: {told[0].removeprefix('error: ')}", hint=" ".join(told[1:3]).strip())
    folder = RunFolder(root)
    run = past_run(read_plan(folder.plan), folder.read_bill()["measured"], folder)
    if run is None:
        raise ThriftyError(
            f"a short run made no two steps in {deadline_seconds:.0f} s", where="calibrate",
            hint="give a smaller job, or calibrate when the machine has less other work",
        )  # fmt: skip
    return run


def run_name(recipe: Recipe, shape: ModelShape) -> str:
    """`128 wide, 4 layers, bf16, 2 ranks`."""
    ranks = recipe.layout.ranks
    return f"{shape.hidden} wide, {shape.layers} layers, {recipe.precision}, {ranks} rank{'s' * (ranks > 1)}"


def _residuals(
    runs: Sequence[PastRun], previous: Cluster, cluster: Cluster, own: CalibratedProfile
) -> tuple[Residual, ...]:
    """Every part of every run's step: as a plan would have said until now, as measured, and as it will say."""
    found = []
    for run in runs:
        name = run_name(run.recipe, run.model)
        old, new = priced(run, previous, previous.profile), priced(run, cluster, own)
        seconds = [(part, getattr(old, part), run.measured[part], getattr(new, part)) for part in STEP_PARTS]
        seconds.append(("step", old.total, sum(run.measured.values()), new.total))
        found += [Residual(run=name, part=p, before=b, measured=m, after=a) for p, b, m, a in seconds]
    return tuple(found)
