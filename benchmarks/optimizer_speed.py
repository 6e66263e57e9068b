"""Milliseconds of an optimizer step per 100 million parameters, on tensors shaped as GPT-2's.

    pip install --no-deps --target peers bitsandbytes torchao
    PYTHONPATH=peers python benchmarks/optimizer_speed.py [--layers 12] [--repeats 9] [--threads 2] [--only Muon ...]

All optimizers step the same parameters in turn, so that a busy machine slows all; medians over repeats, and of each
repeat's ratio to `torch.optim.AdamW(fused=True)`, or for Muon to `torch.optim.Muon`. With one thread the clock is CPU
time, which others on the machine disturb less; with more it is wall time. Compiled before the clock starts; what the
first step took is told too. bitsandbytes and torchao run in the same rounds where they can be imported, and it is said
where they cannot; for they take long, `--peer-repeats` rounds are enough of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from thrifty import optim

RESULTS = Path(__file__).parent / "results" / "optimizer_speed.json"
WIDTH, WORDS, PLACES = 768, 50257, 1024
FUSED, MUON = "torch AdamW fused", "torch Muon"
MATRICES: dict[str, Callable] = {
    FUSED: lambda ps: torch.optim.AdamW(ps, fused=True),
    "torch AdamW foreach": lambda ps: torch.optim.AdamW(ps, foreach=True),
    "AdamW": optim.AdamW,
    "AdamW, 16-bit moments": lambda ps: optim.AdamW(ps, state_bits=16),
    "AdamW8bit": optim.AdamW8bit,
    "AdamW4bit": optim.AdamW4bit,
    "Lion8bit": optim.Lion8bit,
}
# Weights and gradients in bfloat16, rounded by chance; beside them torch's in fp32.
NARROW: dict[str, Callable] = {
    "AdamW, bf16 weights": optim.AdamW,
    "AdamW8bit, bf16 weights": optim.AdamW8bit,
}
HIDDEN: dict[str, Callable] = {  # they take the blocks' matrices alone
    MUON: torch.optim.Muon,
    "Muon": optim.Muon,
    "Muon, 8 bits": lambda ps: optim.Muon(ps, bits=8),
}


def peers() -> dict[str, Callable]:
    """Optimizers of others that can be imported here."""
    found: dict[str, Callable] = {}
    for module, names in (("bitsandbytes.optim", ("AdamW8bit",)), ("torchao.optim", ("AdamW8bit", "AdamW4bit"))):
        package = module.partition(".")[0]
        try:
            home = importlib.import_module(module)
        except ImportError as error:
            print(f"NOT MEASURED: {package} cannot be imported ({error})", file=sys.stderr)
            continue
        found.update({f"{package} {name}": getattr(home, name) for name in names})
    return found


def tensors(layers: int) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """All parameters of GPT-2 with so many layers, gradients beside them; and the matrices of its blocks."""
    generator = torch.Generator().manual_seed(0)
    d = WIDTH
    block = [(3 * d, d), (3 * d,), (d, d), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,), (d,), (d,), (d,), (d,)]
    shapes = [(WORDS, d), (PLACES, d), *(block * layers), (d,), (d,)]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * 1e-3
    return params, [p for p in params[2:] if p.ndim == 2]


def narrowed(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """The same in bfloat16."""
    made = [torch.nn.Parameter(p.detach().bfloat16()) for p in params]
    for p, q in zip(made, params, strict=True):
        p.grad = q.grad.bfloat16()
    return made


def held_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of the tensors that one of a kind of its own is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(held_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all state tensors."""
    return sum(
        held_bytes(value)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def measure(arms: dict[str, tuple[Callable, list]], base: str, repeats: int, slow: dict, clock: Callable) -> dict:
    """Milliseconds per 100 million parameters, bytes of state a parameter, and the ratio to `base`.

    Args:
        arms: how each optimizer is made, and of which parameters.
        slow: rounds of those that take part in the first ones only.
    """
    optimizers, first, counts = {}, {}, {}
    for name, (make, params) in arms.items():
        counts[name] = sum(p.numel() for p in params)
        optimizers[name] = make(params)
        start = time.perf_counter()
        optimizers[name].step()
        first[name] = time.perf_counter() - start
    taken: dict[str, list[float]] = {name: [] for name in optimizers}
    for repeat in range(repeats):
        for name, optimizer in optimizers.items():
            if repeat < slow.get(name, repeats):
                start = clock()
                optimizer.step()
                taken[name].append((clock() - start) * 1e11 / counts[name])
    return {
        name: {
            "ms_per_100m_parameters": round(statistics.median(times), 1),
            "ms_smallest": round(min(times), 1),
            "ratio": round(statistics.median(t / b for t, b in zip(times, taken[base], strict=False)), 3),
            "ratio_to": base,
            "repeats": len(times),
            "state_bytes_per_parameter": round(state_bytes(optimizers[name]) / counts[name], 4),
            "first_step_s": round(first[name], 2),
        }
        for name, times in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peer-repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of rows; what they are compared with runs too")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.threads == 1 else time.perf_counter
    load = os.getloadavg()[0]
    others = peers()
    known = [*MATRICES, *NARROW, *others, *HIDDEN]
    for name in asked.only or []:
        if name not in known:
            parser.error(f"no row {name!r}; rows: {', '.join(known)}")
    params, hidden = tensors(asked.layers)
    rows = {}
    slow = dict.fromkeys(others, asked.peer_repeats)
    for made, base in (({**MATRICES, **NARROW, **others}, FUSED), (HIDDEN, MUON)):
        chosen = {name: make for name, make in made.items() if name == base or not asked.only or name in asked.only}
        if len(chosen) > 1:
            low = narrowed(params) if any(name in NARROW for name in chosen) else []
            some = hidden if made is HIDDEN else params
            arms = {name: (make, low if name in NARROW else some) for name, make in chosen.items()}
            rows.update(measure(arms, base, asked.repeats, slow, clock))
    print(f"{'per 100 million parameters':28}{'ms':>9}{'least':>9}{'ratio':>8}{'bytes each':>12}{'first, s':>10}")
    for name, row in rows.items():
        print(
            f"{name:28}{row['ms_per_100m_parameters']:9.1f}{row['ms_smallest']:9.1f}{row['ratio']:8.2f}"
            f"{row['state_bytes_per_parameter']:12.4f}{row['first_step_s']:10.2f}"
        )
    told = {
        "layers": asked.layers,
        "parameters": sum(p.numel() for p in params),
        "repeats": asked.repeats,
        "threads": asked.threads,
        "clock": "CPU time" if asked.threads == 1 else "wall time",
        "torch": torch.__version__,
        "load_average": round(load, 2),
    }
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    before[f"{asked.threads} threads"] = {**told, "optimizers": rows}
    RESULTS.write_text(json.dumps(before, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
