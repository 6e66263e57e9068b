"""Times collectives between ranks of this machine, as the trainer starts them: gloo on a CPU, NCCL on GPUs.

The ranks are processes of their own; each runs this module.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from thrifty.cost.calibrate import fit_line
from thrifty.parallel.count import bytes_sent
from thrifty.spec.calibration import CollectiveFit
from thrifty.spec.errors import ThriftyError
from thrifty.trainer.probe import cores

KINDS = ("all_gather", "reduce_scatter", "all_reduce")
SIZES = tuple(2**power for power in (12, 15, 18, 20, 22, 23))  # bytes of the whole tensor
SECONDS = 0.25  # for each kind and size, at the most
LIMIT_SECONDS = 120.0


def measure_collectives(ranks: int, kind: str) -> tuple[tuple[CollectiveFit, ...], tuple[float, ...]]:
    """Latency and bandwidth of each kind of collective between local ranks, and the bytes that a rank sent.

    Args:
        kind: of the devices, `cpu` or `gpu`.

    Raises:
        ThriftyError: the ranks did not come together.
    """
    with tempfile.TemporaryDirectory(prefix="thrifty-") as folder:
        found = _times(ranks, kind, Path(folder))
    fits = []
    for name in KINDS:
        sent = {bytes_sent(name, size / ranks if name == "all_gather" else size, ranks): t for size, t in found[name]}
        fits.append(fit_line(name, ranks, sent))
    return tuple(fits), tuple(size * (ranks - 1) / ranks for size in SIZES)


def _times(ranks: int, kind: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // ranks))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "thrifty.trainer.collectives", str(folder), str(rank), str(ranks), kind],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    told = ""
    try:
        for process in processes:
            told = process.communicate(timeout=LIMIT_SECONDS)[1].strip() or told
    except subprocess.TimeoutExpired:
        told = f"no answer within {LIMIT_SECONDS:.0f} s"
    finally:
        for process in processes:
            process.kill()
    answer = folder / "times.json"
    if not answer.exists():
        last = told.splitlines()[-1] if told else "no reason given"
        raise ThriftyError(
            f"{ranks} ranks could not exchange anything: {last}",
            where="--nproc",
            hint="leave them out with --nproc 1, or see that local processes may connect to each other",
        )
    content: dict[str, list[tuple[int, float]]] = json.loads(answer.read_text())
    return content


def _rank(folder: Path, rank: int, ranks: int, kind: str) -> None:
    """One rank: times every kind and size, and rank 0 writes down the slowest rank's medians."""
    gpu = kind == "gpu"
    torch.set_num_threads(max(1, cores() // ranks))
    if gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=LIMIT_SECONDS),
    )  # fmt: skip
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    found = {name: [(size, _median(name, size, ranks, device)) for size in SIZES] for name in KINDS}
    if rank == 0:
        beside = folder / "times.part"
        beside.write_text(json.dumps(found))
        beside.rename(folder / "times.json")
    dist.destroy_process_group()


def _median(kind: str, size: int, ranks: int, device: torch.device) -> float:
    whole, part = torch.zeros(size // 4, device=device), torch.zeros(size // 4 // ranks, device=device)
    whole = whole[: len(part) * ranks]

    def call() -> None:
        if kind == "all_gather":
            dist.all_gather_into_tensor(whole, part)
        elif kind == "reduce_scatter":
            dist.reduce_scatter_tensor(part, whole)
        else:
            dist.all_reduce(whole)
        if device.type == "cuda":
            torch.cuda.synchronize()

    begin = time.perf_counter()
    call()
    call()
    # All ranks must make as many calls: rank 0 says how many fit.
    count = torch.tensor([max(3, min(30, int(SECONDS / max(1e-6, (time.perf_counter() - begin) / 2))))], device=device)
    dist.broadcast(count, 0)
    times = []
    for _ in range(int(count)):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
