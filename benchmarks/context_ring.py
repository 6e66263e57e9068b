"""What attention around a ring costs beside attention in one process: processor time, forward and backward.

    python benchmarks/context_ring.py [--rounds 7] [--json FILE]

Two ranks over gloo, one thread each, share a sequence; in turn with that, rank 0 computes all of it alone by torch's
`scaled_dot_product_attention`. Both use the same kernels. Half of the one process's time would be no overhead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from thrifty.parallel.context import own_part
from thrifty.parallel.ring import ring_attention

RANKS = 2
WIDTH = 64
CASES = [  # tokens, heads, key heads, dtype
    (1024, 8, 8, "float32"),
    (4096, 8, 8, "float32"),
    (4096, 8, 2, "float32"),
    (4096, 8, 2, "bfloat16"),
    (8192, 4, 4, "float32"),
]


def cpu_seconds(attention: Any, *inputs: torch.Tensor) -> float:
    begin = time.process_time()
    attention(*inputs).sum().backward()
    return time.process_time() - begin


def rank_main(rank: int, store: str, rounds: int, result: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    found = []
    for tokens, heads, kv_heads, dtype in CASES:
        generator = torch.Generator().manual_seed(0)
        whole = [
            torch.randn(1, number, tokens, WIDTH, generator=generator).to(getattr(torch, dtype)).requires_grad_()
            for number in (heads, kv_heads, kv_heads)
        ]
        mine = [own_part(x.detach(), rank, RANKS, dim=2).requires_grad_() for x in whole]
        ring, alone = [], []
        for _ in range(rounds + 1):
            ring.append(cpu_seconds(lambda *x: ring_attention(*x, dist.group.WORLD), *mine))
            if rank == 0:
                plain = {"is_causal": True, "enable_gqa": heads != kv_heads}
                alone.append(cpu_seconds(lambda *x, how=plain: F.scaled_dot_product_attention(*x, **how), *whole))
            dist.barrier()
        if rank == 0:
            ratios = [RANKS * a / b for a, b in zip(ring[1:], alone[1:], strict=True)]
            found.append({
                "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": WIDTH, "dtype": dtype,
                "rounds": rounds, "ring_cpu_seconds_of_a_rank": statistics.median(ring[1:]),
                "alone_cpu_seconds": statistics.median(alone[1:]), "overhead_median": statistics.median(ratios) - 1,
                "overhead_quartiles": [q - 1 for q in statistics.quantiles(ratios, n=4)],
            })  # fmt: skip
    if rank == 0:
        result.put(found)
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the result here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        result = context.SimpleQueue()
        arguments = (str(Path(folder) / "store"), asked.rounds, result)
        ranks = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise SystemExit("a rank failed")
        found = {"torch": torch.__version__, "ranks": RANKS, "cases": result.get()}
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
