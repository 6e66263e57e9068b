"""Fits the profiles of the cost model to public measurements, cross-validates them, and writes cost/fitted.py.

    python benchmarks/fit_profiles.py FOLDER [--dry]

Each profile has a few constants (`PARAMETERS`), one set for all of its rows, found by coordinate search on the mean
Huber loss of log(predicted / measured) plus a weak pull towards what the software's design suggests (`PRIOR`): tables
of twenty rows do not tell ten constants apart. Cross-validation leaves out one model size, or one accelerator, at a
time. The 80% interval of a profile is that of its residuals when sizes are left out.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from thrifty.cost import profiles
from thrifty.cost.fit import Bound, Constants, coordinate_search, huber, interval, pull
from thrifty.cost.step import step_seconds
from thrifty.cost.wire import wire_share
from truth import Case, groups
from truth_tables import read

HUBER = 0.05  # log units: beyond it an error counts in proportion, so that outliers do not rule
PULL = 0.003

BOUNDS: dict[str, Bound] = {
    "gemm": Bound(1.0, 1.0, 0.5, 1.6),
    "attention": Bound(0.5, 0.5, 0.1, 1.2),
    "traffic": Bound(1.0, 1.0, 0.1, 3.0),
    "dispatch": Bound(2.0, 2.0, 0.3, 20.0),
    "layer_seconds": Bound(None, 1e-5, 1e-6, 1e-2),
    "node_bandwidth": Bound(1.1, 1.1, 0.3, 1.6),
    "network_bandwidth": Bound(1.0, 1.0, 0.2, 1.6),
    "gather_bandwidth": Bound(None, 0.3, 0.03, 1.0),
    "data_exposed": Bound(0.2, 0.2, 0.01, 1.0),
    "step_seconds": Bound(None, 0.01, 1e-4, 0.1),
    "selective": Bound(0.4, 0.4, 0.05, 1.0),
    "fp8_tensor": Bound(1.0, 1.0, 0.3, 1.6),
    "fp8_row": Bound(0.7, 0.7, 0.2, 1.6),
    "fp8_block": Bound(1.0, 1.0, 0.3, 1.6),
    "fp4": Bound(0.9, 0.9, 0.2, 1.6),
    "cast_bytes": Bound(3.0, 3.0, 0.3, 12.0),
}
COMMON = ("gemm", "traffic", "dispatch", "layer_seconds", "node_bandwidth", "network_bandwidth", "step_seconds")
MODERN = (*COMMON, "attention", "data_exposed")

# What is known of a software without fitting. Megatron-LM of 2021 and Megatron-DeepSpeed reduce gradients after the
# backward pass, and write attention's scores; where stages are cut by cost, or measured times say so, heads are spread.
KNOWN: dict[str, dict[str, Any]] = {
    "megatron": {"fused_attention": False, "balanced": True, "data_exposed": 1.0},
    "megatron-core": {},
    "deepspeed": {"fused_attention": False, "balanced": True, "data_exposed": 1.0},
    "accelerate": {},
    "torchtitan": {},
    "nanotron": {"balanced": True},
}
TABLES = {
    "megatron": ("a1", "a2", "b"),
    "megatron-core": ("c1", "c2", "d2"),
    "deepspeed": ("a2", "d4", "d5", "d7"),
    "accelerate": ("d3",),
    "torchtitan": ("d1",),
    "nanotron": ("d6",),
}
PARAMETERS = {
    "megatron": COMMON,
    "megatron-core": (*MODERN, "fp8_tensor", "fp8_block", "fp4", "cast_bytes"),
    "deepspeed": (*COMMON, "gather_bandwidth"),
    "accelerate": (*MODERN, "fp8_tensor", "cast_bytes"),
    "torchtitan": (*MODERN, "selective", "fp8_tensor", "fp8_row", "fp8_block", "fp4", "cast_bytes"),
    "nanotron": MODERN,
}
SOURCES = {
    "megatron": "Megatron-LM on A100 (arXiv:2104.04473, arXiv:2205.05198)",
    "megatron-core": "Megatron-Core and Megatron-Bridge on H100 to GB300 (2024 to 2026), SimuMax's B200 runs (2026)",
    "deepspeed": "Megatron-DeepSpeed on 1 to 512 A100 (VIA-Research/vTrain, 2024), ZeRO-3 of 2021",
    "accelerate": "PyTorch FSDP, 125M to 70B on A100 and H100 (mosaicml/llm-foundry, 2025-07)",
    "torchtitan": "torchtitan's benchmark pages, H100 to B200 (2024-12 to 2026-08)",
    "nanotron": "best layouts of the Ultra-Scale Playbook, H100 (huggingface/nanotron, 2025)",
}
HEAD = '''"""Constants of the profiles (`profiles.py`). Written by benchmarks/fit_profiles.py from public measurements.

`low` and `high` are the ends of the 80% interval of predicted step times, as factors, from cross-validation by model
size. `thrifty` on a GPU has no run of its own yet: it is priced as PyTorch's FSDP was measured, with wider ends.
"""

from __future__ import annotations

from typing import Any, Final

# Megatron-LM from Hopper on has fused attention and the kernels of Transformer Engine.
ERAS: Final[dict[str, dict[str, str]]] = {
    "megatron": dict.fromkeys(("H100", "H200", "H800", "B200", "B300", "GB200", "GB300"), "core"),
}
'''


def ratio(case: Case) -> float:
    """Predicted over measured time of a step."""
    return step_seconds(case.job, case.cluster, case.recipe).total / case.seconds


def loss(cases: list[Case], name: str, base: profiles.Profile, values: Constants) -> float:
    """Mean Huber loss of the log ratios, and the pull towards the priors."""
    profiles.PROFILES[name] = replace(base, **values)
    total = sum(huber(math.log(ratio(case)), HUBER) for case in cases)
    return total / len(cases) + PULL * pull(values, BOUNDS)


def fit(cases: list[Case], name: str) -> Constants:
    """Constants of a profile, from all of these cases at once."""
    base = replace(profiles.Profile(name=name, source=SOURCES[name]), **KNOWN[name])
    bounds = {key: BOUNDS[key] for key in PARAMETERS[name]}
    values = coordinate_search(lambda tried: loss(cases, name, base, tried), bounds)
    use(name, values)
    return values


def use(name: str, values: Constants) -> None:
    """Prices with these constants from here on."""
    base = replace(profiles.Profile(name=name, source=SOURCES[name]), **KNOWN[name])
    profiles.PROFILES[name] = replace(base, **values)


def cross_validate(cases: list[Case], name: str, by: str) -> dict[str, float]:
    """Predicted over measured of every case, from constants that saw no case of its size (or hardware)."""
    found: dict[str, float] = {}
    for _, held, rest in groups(cases, by):
        if rest:
            fit(rest, name)
            found |= {case.id: ratio(case) for case in held}
    return found


def told(label: str, cases: list[Case], ratios: dict[str, float]) -> None:
    for table in sorted({c.table for c in cases}):
        errors = [ratios[c.id] - 1 for c in cases if c.table == table and c.id in ratios]
        if errors:
            size = statistics.mean(map(abs, errors))
            worst = max(errors, key=abs)
            bias = statistics.median(errors)
            print(f"  {label:28}{table:4}{len(errors):5}{size:9.1%}{bias:+9.1%}{worst:+9.0%}", flush=True)


def written(profile: str, values: Constants, ends: tuple[float, float]) -> str:
    rows: dict[str, Any] = {"source": SOURCES[profile], **KNOWN[profile]}
    rows |= {key: float(f"{value:.3g}") for key, value in values.items()}
    rows |= {"low": round(ends[0], 2), "high": round(ends[1], 2)}
    body = "".join(f'        "{key}": {_literal(value)},\n' for key, value in rows.items())
    return f'    "{profile}": {{\n{body}    }},\n'


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def main(arguments: list[str]) -> int:
    dry = "--dry" in arguments
    folders = [a for a in arguments if a != "--dry"]
    if len(folders) != 1 or not Path(folders[0]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    cases, _ = read(Path(folders[0]))
    text = ""
    print(f"  {'':28}{'':4}{'rows':>5}{'MAPE':>9}{'bias':>9}{'worst':>9}")
    for name, tables in TABLES.items():
        ours = [c for c in cases if c.table in tables and profiles.profile(c.recipe.software, c.cluster).name == name]
        if not ours:
            print(f"NOT FITTED: {name}: none of {', '.join(tables)} is in {folders[0]}", file=sys.stderr)
            return 2
        by_size = cross_validate(ours, name, "size")
        by_hardware = cross_validate(ours, name, "hardware")
        values = fit(ours, name)
        print(name, {key: float(f"{value:.3g}") for key, value in values.items()})
        told("fitted", ours, {c.id: ratio(c) for c in ours})
        told("other sizes only", ours, by_size)
        told("other hardware only", ours, by_hardware)
        text += written(name, values, interval(list(by_size.values())))
        if name == "accelerate":
            kept = {k: v for k, v in values.items() if not k.startswith(("fp8", "cast"))}
            low, high = interval(list(by_size.values()))
            own = written(name, kept, (low - 0.08, high + 0.1)).replace(f'"{name}"', '"thrifty"', 1)
            text += own.replace(SOURCES[name], "not measured yet, as accelerate")
    text += '    "thrifty-cpu": {\n        "source": "own runs on two AVX-512 cores, torch 2.13 (2026-11)",\n'
    text += '        "attention": 0.65,\n        "reduce_scatter": 2.8,\n'
    text += f'        "network_bandwidth": {1 / wire_share():.3g},\n'  # packets have headers
    text += '        "low": 0.7,\n        "high": 1.5,\n    },\n'
    if not dry:
        path = Path(profiles.__file__).with_name("fitted.py")
        path.write_text(f"{HEAD}PROFILES: Final[dict[str, dict[str, Any]]] = {{\n{text}}}\n")
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
