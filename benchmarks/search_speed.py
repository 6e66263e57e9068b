"""How fast the planner searches: recipes considered and priced in a second on one core, plans and start-up.

    python benchmarks/search_speed.py [--json FILE] [--repeat 3]

Two rates are told apart. *Priced* is the cost model alone: time and memory of recipes it has not seen, each in full.
*Considered* is the search: most recipes are ruled out by a bound on their memory or time without being priced. Seconds
are of one process's CPU, medians of `--repeat` fresh processes, so that no cache is warm and other load counts little.
Start-up and plan are the CPU seconds of the whole command, a fresh process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = [
    ("llama-3-8b", "64xh100", "thrifty"), ("llama-3-70b", "1024xh100", "thrifty"),
    ("llama-3-70b", "1024xh100", "megatron"), ("llama-3-70b", "1024xh100", "torchtitan"),
    ("llama-3-70b", "12500x8xh100", "thrifty"), ("llama-3-70b", "12500x8xh100", "megatron"),
]  # fmt: skip
PRICED = 5000


def job_and_cluster(model: str, on: str) -> tuple[Any, Any]:
    from thrifty.catalog import lookup
    from thrifty.spec import Cluster, Job, ModelShape
    from thrifty.spec.load import build

    shape = build(ModelShape, lookup.model(model), "")
    return Job(model=shape, tokens=10**12, sequence_length=8192), build(Cluster, lookup.cluster(on), "")


def search_once(model: str, on: str, software: str) -> dict[str, Any]:
    """One search in this process, which should be fresh."""
    from thrifty.planner import defaults, pool
    from thrifty.spec.load import from_dict

    job, cluster = job_and_cluster(model, on)
    settings = from_dict({"software": software}, "benchmark")
    base = defaults.complete(job, cluster, settings, [])
    begin = time.process_time()
    found = pool.fill(job, cluster, base, settings.tree)
    seconds = time.process_time() - begin
    return {"seconds": seconds, "considered": found.tried, "priced": len(found.fitting)}


def price_once(model: str, on: str, software: str) -> dict[str, Any]:
    """Time and memory of many recipes, legal ones of all layouts, none seen before; whether they fit does not count."""
    from thrifty.cost.run import estimate
    from thrifty.planner import defaults, space
    from thrifty.spec import legal
    from thrifty.spec.load import from_dict
    from thrifty.spec.recipe import Batch

    job, cluster = job_and_cluster(model, on)
    settings = from_dict({"software": software}, "benchmark")
    base = defaults.complete(job, cluster, settings, [])
    sequences = base.batch.sequences
    layouts = [one for one in space.layouts(job, cluster, settings.tree) if sequences % one.data_ranks == 0]
    # All recipes of a layout stand together, as in a search; layouts are spread over the whole space.
    each = [
        base.model_copy(
            update={
                "layout": layout, "batch": Batch(sequences=sequences, micro_sequences=micro), "recompute": again,
                "compile": setting.compile, "precision": setting.precision,
            }
        )
        for layout in layouts[:: 1 + len(layouts) // 1000]
        for micro in space.divisors(sequences // layout.data_ranks)
        for setting in space.levers(base, cluster, settings.tree)
        for again in space.recomputations(base, settings.tree)
        if not legal.by_batch(layout, sequences // layout.data_ranks // micro, base.software)
    ]  # fmt: skip
    recipes = list(itertools.islice(each, PRICED))
    begin = time.process_time()
    for recipe in recipes:
        estimate(job, cluster, recipe)
    return {"seconds": time.process_time() - begin, "priced": len(recipes)}


def fresh(what: str, case: tuple[str, str, str]) -> dict[str, Any]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", what, *case], capture_output=True, text=True, check=True, env=os.environ
    )
    return dict(json.loads(done.stdout))


def command_seconds(words: list[str]) -> float:
    """CPU seconds of a thrifty command, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "thrifty", *words], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures")
    parser.add_argument("--repeat", type=int, default=3, help="fresh processes for each figure")
    parser.add_argument("--one", nargs=4, metavar=("WHAT", "MODEL", "ON", "SOFTWARE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        what, *case = asked.one
        print(json.dumps({"search": search_once, "price": price_once}[what](*case)))
        return
    rows = []
    print(f"{'model':12} {'devices':>12} {'software':11} {'considered':>10} {'priced':>7} {'CPU s':>6} "
          f"{'considered/s':>12} {'priced/s':>9} {'plan s':>7}")  # fmt: skip
    for case in CASES:
        model, on, software = case
        searches = [fresh("search", case) for _ in range(asked.repeat)]
        prices = [fresh("price", case) for _ in range(asked.repeat)]
        with tempfile.TemporaryDirectory() as folder:
            words = ["plan", model, "--on", on, "--out", f"{folder}/plan.yaml"]
            words += ["--software", software] if software != "thrifty" else []
            plan = statistics.median(command_seconds(words) for _ in range(asked.repeat))
        seconds = statistics.median(one["seconds"] for one in searches)
        rate = statistics.median(one["priced"] / one["seconds"] for one in prices)
        row = {
            "model": model, "on": on, "software": software, "considered": searches[0]["considered"],
            "priced_in_search": searches[0]["priced"], "search_cpu_seconds": seconds,
            "considered_per_second": searches[0]["considered"] / seconds, "priced_per_second": rate,
            "plan_cpu_seconds": plan,
        }  # fmt: skip
        rows.append(row)
        print(f"{model:12} {on:>12} {software:11} {row['considered']:10,} {row['priced_in_search']:7,} {seconds:6.2f} "
              f"{row['considered_per_second']:12,.0f} {rate:9,.0f} {plan:7.2f}", flush=True)  # fmt: skip
    start = statistics.median(command_seconds(["plan", "--help"]) for _ in range(asked.repeat))
    print(f"start-up (thrifty plan --help): {start:.2f} s")
    if asked.json:
        content = {"start_up_cpu_seconds": start, "load_average": os.getloadavg()[0], "searches": rows}
        asked.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
