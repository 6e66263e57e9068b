"""The bubble of each pipeline schedule, measured beside the one that the cost model's clock predicts.

    python benchmarks/pipeline_bubble.py [--compute]

Without --compute, four ranks whose stages sleep instead of computing, so that any machine can play four: this measures
the schedule itself, as torch executes it over gloo. Forward, input-gradient and weight-gradient passes of a part take
FORWARD, BY_INPUT and BY_WEIGHT seconds, and the last part SLOWER times that, as one with a head would.

With --compute, two ranks on two idle cores train a small decoder; prediction there takes the mean measured time of each
part's passes, so that what is compared is the waiting alone.

Medians of several steps; results/pipeline_bubble.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from thrifty.cost.stages import placement
from thrifty.cost.timeline import PartSeconds, draw, order, run, use
from thrifty.parallel.pipeline import Pipeline, parts_of
from thrifty.report.timeline import part_means
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Batch, Evaluation, Layout, Recipe
from thrifty.trainer.build import build
from thrifty.trainer.world import World

FORWARD, BY_INPUT, BY_WEIGHT, SLOWER = 0.100, 0.110, 0.090, 1.5  # seconds
STEPS = 3
SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 1, "zbv": 2}
RESULTS = Path(__file__).parent / "results" / "pipeline_bubble.json"
SHAPE = {"layers": 8, "hidden": 384, "heads": 6, "ffn": 1024, "vocab_size": 512, "max_positions": 256}


class _Inputs(torch.autograd.Function):
    """The way to the inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        time.sleep(forward)
        ctx.backward_seconds = backward
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.backward_seconds)
        return grad.contiguous(), None, None


class _Weights(torch.autograd.Function):
    """The way to the weights, which joins the other one in a sum."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, backward: float) -> Tensor:
        ctx.backward_seconds = backward
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.backward_seconds)
        return grad, None


class Sleepy(nn.Module):
    """A part of a model that takes its time and computes nothing."""

    def __init__(self, seconds: PartSeconds, hidden: int, first: bool, last: bool) -> None:
        super().__init__()
        self.seconds, self.first, self.last = seconds, first, last
        self.weight = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        forward, by_input, by_weight = self.seconds
        if self.first:  # no gradient goes to token ids: the weights' pass does all
            x, by_weight = x.float().unsqueeze(-1).expand(*x.shape, self.weight.numel()), by_input + by_weight
        y = _Inputs.apply(x, forward, by_input) + _Weights.apply(self.weight, by_weight)
        return y.sum() if self.last else y


def sleeping(layout: Layout) -> list[PartSeconds]:
    """What each part takes; parts of a rank share its time."""
    parts, v = layout.pipeline * layout.interleave, layout.interleave
    usual = PartSeconds(FORWARD / v, BY_INPUT / v, BY_WEIGHT / v)
    return [usual] * (parts - 1) + [PartSeconds(*(SLOWER * seconds for seconds in usual))]


def measure(pipeline: Pipeline, tokens: Tensor, ranks: int) -> list[list[Any]] | None:
    """The timeline of the median step, on rank 0."""
    steps = []
    for step in range(STEPS + 1):
        dist.barrier()
        pipeline.step(tokens, tokens, 1.0)
        gathered: list[Any] = [None] * ranks
        dist.all_gather_object(gathered, pipeline.events)
        if step:  # the first one also sets up buffers and connections
            steps.append(gathered)
    return sorted(steps, key=lambda one: use(one).seconds)[len(steps) // 2] if dist.get_rank() == 0 else None


def sleep_rank(rank: int, store: str, out: str) -> None:
    _join(rank, 4, store)
    found = []
    for schedule, v in SCHEDULES.items():
        layout = Layout(pipeline=4, schedule=schedule, interleave=v)
        seconds = sleeping(layout)
        parts = [
            (part, Sleepy(seconds[part.index], 8, part.first, part.last)) for part in parts_of(4 * v, layout, rank)
        ]
        pipeline = Pipeline(
            parts, layout, microbatches=8, tokens=(1, 4), handed=(1, 4, 8), dtype=torch.float32,
            group=dist.group.WORLD, device=torch.device("cpu"),
        )  # fmt: skip
        spans = measure(pipeline, torch.zeros(8, 4, dtype=torch.int64), 4)
        if spans is not None:
            found.append(_row("sleeping stages", layout, 8, spans, run(order(layout, 8), seconds)))
    _leave(rank, out, found)


def compute_rank(rank: int, store: str, out: str) -> None:
    _join(rank, 2, store)
    job = Job(model=ModelShape(**SHAPE), steps=1, sequence_length=256)
    found = []
    for schedule, v in SCHEDULES.items():
        layout = Layout(pipeline=2, schedule=schedule, interleave=v)
        recipe = Recipe(
            layout=layout, batch=Batch(sequences=16, micro_sequences=2), precision="fp32",
            evaluation=Evaluation(every_steps=0),
        )  # fmt: skip
        built = build(job, recipe, World(rank, 2, rank, 2, torch.device("cpu"), layout=layout))
        assert built.pipeline is not None
        tokens = torch.randint(0, 512, (16, 256), generator=torch.Generator().manual_seed(1))
        spans = measure(built.pipeline, tokens, 2)
        if spans is not None:
            found.append(_row("computing stages", layout, 8, spans, run(order(layout, 8), part_means(spans))))
    _leave(rank, out, found)


def _row(kind: str, layout: Layout, microbatches: int, spans: Any, predicted: Any) -> dict[str, Any]:
    print(f"{kind}, {layout.schedule}: predicted {use(predicted).bubble:.1%}, measured {use(spans).bubble:.1%}")
    print(draw(predicted), draw(spans), sep="\n\n", end="\n\n")
    return {
        "stages": kind, "schedule": layout.schedule, "ranks": layout.pipeline, "parts_a_rank": layout.interleave,
        "microbatches": microbatches, "parts": [list(held) for held in placement(layout)],
        "predicted_seconds": use(predicted).seconds, "measured_seconds": use(spans).seconds,
        "predicted_bubble": use(predicted).bubble, "measured_bubble": use(spans).bubble,
    }  # fmt: skip


def _join(rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)


def _leave(rank: int, out: str, found: list[dict[str, Any]]) -> None:
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    compute = "--compute" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        mp.spawn(compute_rank if compute else sleep_rank, (f"{folder}/store", str(out)), 2 if compute else 4)
        rows = json.loads(out.read_text())
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    kept = [row for row in before["rows"] if row["stages"] != rows[0]["stages"]]
    errors = [abs(row["measured_bubble"] / row["predicted_bubble"] - 1) for row in rows]
    print(f"median error of the bubble {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    load = {f"load_{'compute' if compute else 'sleep'}": os.getloadavg()[0]}
    machine = before.get("machine", {}) | {"cores": os.cpu_count(), "torch": torch.__version__} | load
    RESULTS.write_text(json.dumps({"machine": machine, "rows": kept + rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
