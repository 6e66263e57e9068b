"""Fits the constants of the serving model to public measurements and writes them into the package.

    python benchmarks/fit_serving.py FOLDER [--dry]

FOLDER holds `g1_inference_throughput.csv` (TensorRT-LLM at full load) and `g2_mlenergy_inference_energy.csv` (vLLM,
batch by batch, with power). Two dozen constants, all positive, are fitted as logarithms: Huber's loss on the logarithm
of predicted over measured, and a Gaussian prior on each constant about what data sheets and micro-benchmarks say.
Constants of the device are shared by both engines. Intervals are the 10th and 90th percentile of the errors on models
that were left out. Writes `src/thrifty/cost/serving_fit.py` unless --dry.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serving_rows import Case, cases
from thrifty.cost import serving, serving_step
from thrifty.cost.serving import Traffic
from thrifty.cost.serving_engines import Engine, Power
from thrifty.spec.errors import ThriftyError

TARGET = Path(__file__).resolve().parents[1] / "src" / "thrifty" / "cost" / "serving_fit.py"
ENGINES = ("vllm", "tensorrt-llm")

# Name: (where the fit starts and what the prior is centred on, prior's spread as a logarithm).
START: dict[str, tuple[float, float]] = {
    "weight_read": (0.85, 0.08), "kv_read": (0.8, 0.12), "matmul.bf16": (0.8, 0.1), "matmul.fp8": (0.75, 0.1),
    "matmul.fp4": (0.5, 0.2), "prefill_attention": (0.6, 0.3),
    "expert_variety": (0.6, 0.3), "expert_read": (1.5, 0.4), "expert_math": (2.0, 0.5),
    "stream_passes": (8.0, 0.4), "inner_passes": (2.0, 0.4), "sampling_bytes": (16.0, 0.5),
    "quantised_layer_seconds": (3e-5, 0.7), "routed_layer_seconds": (4e-5, 0.7), "all_reduce_seconds": (9e-6, 0.4),
    "vllm.layer_seconds": (5e-5, 0.7), "vllm.host_step_seconds": (2e-3, 1.0), "vllm.host_sequence_seconds": (4e-5, 1.0),
    "tensorrt-llm.layer_seconds": (5e-5, 0.7), "tensorrt-llm.host_sequence_seconds": (3e-6, 1.0),
    "chat_prompt_tokens": (250.0, 0.3),
    "awake": (0.25, 0.5), "busy": (0.5, 0.7), "joules_per_byte": (1.2e-10, 0.4), "joules_per_flop": (1.5e-12, 0.5),
}  # fmt: skip
SHARES = ("weight_read", "kv_read", "matmul.bf16", "matmul.fp8", "matmul.fp4", "prefill_attention", "expert_variety")
LARGEST_SHARE = 0.95
# Not fitted: TensorRT-LLM quantises inside its kernels, so that part cannot be told from its layers; its scheduler's
# step and the sequences that it takes hardly show at full load. vLLM takes 1,024 on large GPUs unless told otherwise.
FIXED = {
    "vllm": {"most_sequences": 1024, "reserved_output": 0.5},
    "tensorrt-llm": {
        "most_sequences": 8192, "reserved_output": 1.0, "quantised_layer_seconds": 0.0, "host_step_seconds": 1e-3,
    },
}  # fmt: skip
# Standard deviation that a measured logarithm is taken to have, and where its loss turns from square to straight.
NOISE = {"tokens_per_second": 0.1, "watts": 0.1, "itl_seconds": 0.15}
CORNER = 2.0  # in those deviations
# Beyond, most steps read several prompts, and the median gap between tokens depends on how an engine cuts them up.
ITL_MOST_ARRIVALS = 1.0


@dataclass(frozen=True)
class Constants:
    """What a fit decides."""

    engines: dict[str, Engine]
    power: Power
    chat_prompt_tokens: float


def constants_of(values: dict[str, float]) -> Constants:
    """Engines and power from the fitted numbers."""
    values = {name: min(value, LARGEST_SHARE) if name in SHARES else value for name, value in values.items()}
    power = Power(*(values[name] for name in ("awake", "busy", "joules_per_byte", "joules_per_flop")))
    own = sorted(name for name in values if name not in Power.__slots__ and name != "chat_prompt_tokens")
    shared = {name: values[name] for name in own if "." not in name}
    matmul = {name.removeprefix("matmul."): values[name] for name in own if name.startswith("matmul.")}
    engines = {}
    for engine in ENGINES:
        mine = {n.removeprefix(f"{engine}."): values[n] for n in own if n.startswith(f"{engine}.")}
        engines[engine] = Engine(**{"name": engine, "matmul": matmul, **shared, **mine, **FIXED[engine]})
    return Constants(engines, power, values["chat_prompt_tokens"])


def predict(case: Case, constants: Constants) -> dict[str, float]:
    """What the model says of a case, for each quantity that was measured.

    Raises:
        ThriftyError: the case does not fit.
    """
    if case.any_split:
        return max((_predict(one, constants) for one in _splits(case)), key=lambda found: found["tokens_per_second"])
    return _predict(case, constants)


def _splits(case: Case) -> list[Case]:
    """The same devices as ever fewer, larger replicas; only those that fit."""
    devices = case.deployment.tensor
    found = []
    for tensor in (n for n in range(1, devices + 1) if devices % n == 0):
        split = replace(case.deployment, tensor=tensor, replicas=devices // tensor)
        one = replace(case, any_split=False, deployment=split)
        try:
            serving.most_sequences(one.shape, one.cluster, one.deployment, FITTED.engines[one.engine], Traffic(1, 1))
        except ThriftyError:
            continue  # these devices are too few for one copy
        found.append(one)
    return found


def _predict(case: Case, constants: Constants) -> dict[str, float]:
    engine = constants.engines[case.engine]
    incoming = constants.chat_prompt_tokens if case.input_tokens is None else case.input_tokens
    place = (case.shape, case.cluster, case.deployment, engine)
    serving.check(*place[:3])
    if case.phase == "prefill":
        return {"seconds": serving.prefill_seconds(*place, incoming, case.batch or 1)}
    batch = case.batch
    if batch is None:
        batch, _ = serving.most_sequences(*place, Traffic(incoming, case.output_tokens))
    each = batch / case.deployment.replicas
    context = incoming + case.output_tokens / 2
    load = {"sequences": each, "context": context, "prompt": incoming}
    if case.phase == "decode":
        return {"seconds": case.output_tokens * serving_step.step(*place, prompt_tokens=0.0, **load).total}
    one = serving_step.step(*place, prompt_tokens=each * incoming / case.output_tokens, **load)
    watts = serving_step.watts(case.cluster, constants.power, one) * case.deployment.devices
    rate = batch / one.total
    found = {"tokens_per_second": rate, "watts": watts, "joules_per_token": watts / rate}
    if "itl_seconds" in case.measured:
        # The median step sees the median number of arrivals, about 0.7 below their mean where they come by chance.
        arrivals = max(0.0, each / case.output_tokens - 0.7)
        found["itl_seconds"] = serving_step.step(*place, prompt_tokens=arrivals * incoming, **load).total
    return found


def fit(rows: Sequence[Case], steps: int = 25) -> dict[str, float]:
    """Levenberg-Marquardt on the logarithms of the constants, Huber's loss by reweighting."""
    names = list(START)
    centre = [math.log(START[name][0]) for name in names]
    spread = [START[name][1] for name in names]

    def residuals(x: Sequence[float]) -> list[float]:
        constants = constants_of({name: math.exp(value) for name, value in zip(names, x, strict=True)})
        found = [error for case in rows for error in _errors(case, constants)]
        return found + [(value - mean) / width for value, mean, width in zip(x, centre, spread, strict=True)]

    x, damping = list(centre), 1e-2
    here = residuals(x)
    for _ in range(steps):
        weights = [min(1.0, CORNER / abs(r)) if r else 1.0 for r in here[: -len(names)]] + [1.0] * len(names)
        gradient, normal = _normal_equations(residuals, x, here, weights)
        before = _cost(here)
        for _ in range(8):
            damped = [[v * (1 + damping) if i == j else v for j, v in enumerate(row)] for i, row in enumerate(normal)]
            moved = [a - b for a, b in zip(x, solve(damped, gradient), strict=True)]
            there = residuals(moved)
            if _cost(there) < before:
                break
            damping *= 4
        else:
            break
        x, here, damping = moved, there, damping / 3
        if before - _cost(here) < 1e-3 * before / 100:
            break
    return {name: math.exp(value) for name, value in zip(names, x, strict=True)}


def _errors(case: Case, constants: Constants) -> list[float]:
    found = predict(case, constants)
    used = [name for name in NOISE if name in case.measured]
    if "itl_seconds" in used and (case.batch or 0) / case.output_tokens > ITL_MOST_ARRIVALS:
        used.remove("itl_seconds")
    return [math.log(found[name] / case.measured[name]) / NOISE[name] for name in used]


def _cost(residuals: Sequence[float]) -> float:
    """Huber's loss; priors' misses stay far below the corner."""
    return sum(r * r / 2 if abs(r) < CORNER else CORNER * (abs(r) - CORNER / 2) for r in residuals)


def _normal_equations(
    residuals: Callable[[Sequence[float]], list[float]], x: Sequence[float], here: list[float], weights: list[float]
) -> tuple[list[float], list[list[float]]]:
    nudge = 1e-4
    slopes = []
    for i in range(len(x)):
        moved = [value + (nudge if j == i else 0.0) for j, value in enumerate(x)]
        slopes.append([(a - b) / nudge for a, b in zip(residuals(moved), here, strict=True)])
    gradient = [sum(w * s * r for w, s, r in zip(weights, slope, here, strict=True)) for slope in slopes]
    weighted = [[w * s for w, s in zip(weights, slope, strict=True)] for slope in slopes]
    normal = [[sum(a * b for a, b in zip(row, other, strict=True)) for other in slopes] for row in weighted]
    return gradient, normal


def solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with partial pivoting."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        found[i] = (rows[i][size] - sum(rows[i][k] * found[k] for k in range(i + 1, size))) / rows[i][i]
    return found


def used(rows: Sequence[Case]) -> list[Case]:
    """Cases that a fit may see: steady load, with a layout that the source names."""
    return [case for case in rows if case.phase == "steady" and not case.any_split]


def left_out(rows: Sequence[Case], group: Callable[[Case], str]) -> dict[str, Constants]:
    """For each group the constants that were fitted to all other groups."""
    fitted = used(rows)
    names = sorted({group(case) for case in rows})
    return {name: constants_of(fit([case for case in fitted if group(case) != name])) for name in names}


def _percentiles(errors: list[float]) -> tuple[float, float]:
    """Factors on a prediction that hold the middle four fifths of measured values."""
    ordered = sorted(errors)
    low, high = ordered[round(0.1 * (len(ordered) - 1))], ordered[round(0.9 * (len(ordered) - 1))]
    return round(math.exp(low), 3), round(math.exp(high), 3)


def intervals(rows: Sequence[Case]) -> dict[str, dict[str, tuple[float, float]]]:
    """Measured over predicted, on models that the fit has not seen: the middle four fifths, by engine and quantity."""
    constants = left_out(used(rows), lambda case: case.family)
    misses: dict[str, dict[str, list[float]]] = {engine: {} for engine in ENGINES}
    for case in used(rows):
        found = predict(case, constants[case.family])
        for name, value in found.items():
            if name in case.measured:
                misses[case.engine].setdefault(name, []).append(math.log(case.measured[name] / value))
    spans = {engine: {name: _percentiles(each) for name, each in found.items()} for engine, found in misses.items()}
    # An engine whose power nobody measured gets the intervals of the one whose power was.
    return {engine: spans[ENGINES[0]] | own for engine, own in spans.items()}


def module(values: dict[str, float], spans: dict[str, dict[str, tuple[float, float]]]) -> str:
    """The text of the package's module."""
    constants = constants_of(values)
    lines = [
        '"""Written by benchmarks/fit_serving.py: constants of serving, fitted to public measurements. Do not edit.',
        "",
        "TensorRT-LLM v1.0 at full load (NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md) and vLLM by",
        "batch, with power (ml-energy/leaderboard, 2026-02): H100, B200, GB200; 8B to 405B, one mixture of experts.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Final",
        "",
        "from thrifty.cost.serving_engines import Engine, Power",
        "",
        "ENGINES: Final = {",
    ]
    for name, engine in constants.engines.items():
        lines.append(f'    "{name}": Engine(')
        for field in Engine.__slots__:
            value = getattr(engine, field)
            lines.append(f"        {field}={_literal(value)},")
        lines.append("    ),")
    lines += ["}", "POWER: Final = Power("]
    lines += [f"    {field}={_literal(getattr(constants.power, field))}," for field in Power.__slots__]
    lines += [
        ")",
        "# Measured over predicted on models that the fit had not seen: the middle four fifths.",
        "INTERVALS: Final = {",
        *(line for engine in spans for line in _spans(engine, spans[engine])),
        "}",
        "# Mean prompt of the vLLM runs (LM-Arena chats) in tokens: fitted with the rest, as the source lacks it.",
        f"CHAT_PROMPT_TOKENS: Final = {constants.chat_prompt_tokens:.0f}.0",
        "",
    ]
    return "\n".join(lines)


def _spans(engine: str, spans: dict[str, tuple[float, float]]) -> list[str]:
    return [f'    "{engine}": {{', *(f'        "{name}": {spans[name]},' for name in sorted(spans)), "    },"]


def _literal(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {_literal(each)}' for key, each in value.items()) + "}"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: list[str]) -> int:
    dry = "--dry" in arguments
    folders = [word for word in arguments if word != "--dry"]
    if len(folders) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    rows = [case for case in cases(Path(folders[0])) if isinstance(case, Case)]
    values = fit(used(rows))
    for name, value in values.items():
        print(f"{name:36}{value:12.4g}   prior {START[name][0]:.3g} x/: {math.exp(START[name][1]):.2f}")
    if not dry:
        TARGET.write_text(module(values, intervals(rows)))
        print(f"written: {TARGET}")
    return 0


def _fitted() -> Constants:
    from thrifty.cost import serving_fit

    return Constants(dict(serving_fit.ENGINES), serving_fit.POWER, serving_fit.CHAT_PROMPT_TOKENS)


FITTED = _fitted()

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
