"""Scores predicted serving figures against public measurements.

    python benchmarks/score_serving.py FOLDER [--cross-validate] [--rows] [--json FILE]

FOLDER holds `g1_inference_throughput.csv` and `g2_mlenergy_inference_energy.csv`. Printed for each quantity: mean,
median and worst of |predicted / measured - 1|, bias, how many intervals hold the measured value (80% are meant to), and
a null beside. --cross-validate adds the errors on models, and on hardware, that the constants have not seen.

The null for tokens/s is a roofline with one constant efficiency: batch over the sum of the seconds that weights and
cache need at full bandwidth and products at full peak, times the median of measured over that on the rows it is scored
on (which favours it). Its watts are 0.72 x TDP, its joules the two divided; its seconds the same roofline.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fit_serving import FITTED, Constants, left_out, predict
from serving_rows import G1, G2, Case, Row, cases
from thrifty.cost import serving
from thrifty.cost.serving_fit import INTERVALS
from thrifty.cost.serving_shape import STORED_BITS, kv_bytes_per_token, matrices, rate_name
from thrifty.spec.errors import ThriftyError
from truth import Skipped

NULL_LOAD = 0.72  # of TDP


def score(folder: Path) -> tuple[dict[str, list[Row]], list[Skipped]]:
    """Rows by table and quantity (`g1_inference_throughput.tokens_per_second`, ...), and the rows left out with why."""
    found, skipped = _read(folder)
    return _score(found, lambda case: FITTED, skipped), skipped


def _read(folder: Path) -> tuple[list[Case], list[Skipped]]:
    everything = list(cases(folder))
    found = [one for one in everything if isinstance(one, Case)]
    return found, [one for one in everything if isinstance(one, Skipped)]


def _score(
    found: Sequence[Case], constants: Callable[[Case], Constants], skipped: list[Skipped]
) -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {}
    for case in found:
        try:
            said = predict(case, constants(case))
        except ThriftyError as error:
            skipped.append(Skipped(case.table, case.id, error.what))
            continue
        plain = _roofline(case)
        for quantity, measured in case.measured.items():
            spans = INTERVALS[case.engine]
            below, above = spans.get(quantity, spans["itl_seconds"])
            value = said[quantity]
            row = Row(
                case.id, f"{case.family} {case.hardware}", quantity, measured, value, value * below, value * above,
                plain[quantity],
            )  # fmt: skip
            tables.setdefault(f"{case.table}.{quantity}", []).append(row)
    return {name: _with_null(rows) for name, rows in tables.items()}


def _roofline(case: Case) -> dict[str, float]:
    """The null before its one constant: no fixed times, no host, no communication."""
    chip, held, group = case.cluster.accelerator, matrices(case.shape), case.deployment.group
    incoming = case.input_tokens or FITTED.chat_prompt_tokens
    peaks = {name: figure.value for name, figure in chip.peak_flops.items()}
    peak = peaks[rate_name(case.deployment.weights, peaks)] * group
    bandwidth = chip.memory_bandwidth.value * group
    batch = case.batch
    if batch is None:
        engine = FITTED.engines[case.engine]
        traffic = serving.Traffic(incoming, case.output_tokens)
        batch, _ = serving.most_sequences(case.shape, case.cluster, case.deployment, engine, traffic)
    flops = 2 * (held.per_token + held.head)
    if case.phase == "prefill":
        return {"seconds": flops * batch * incoming / peak}
    reading = 0.0 if case.phase == "decode" else incoming / case.output_tokens
    weights = (held.per_token + held.head) * STORED_BITS[case.deployment.weights] / 8
    cache = kv_bytes_per_token(case.shape, case.deployment.kv) * (incoming + case.output_tokens / 2) * batch
    seconds = (weights + cache) / bandwidth + flops * batch * (1 + reading) / peak
    watts = NULL_LOAD * chip.tdp_watts.value * case.deployment.devices
    rate = batch / seconds
    return {
        "seconds": seconds * case.output_tokens, "itl_seconds": seconds, "tokens_per_second": rate, "watts": watts,
        "joules_per_token": watts / rate,
    }  # fmt: skip


def _with_null(rows: list[Row]) -> list[Row]:
    """Gives the roofline its constant; watts have none to give."""
    if rows[0].quantity == "watts":
        return rows
    constant = statistics.median(row.measured / (row.null or row.measured) for row in rows)
    return [replace(row, null=(row.null or 0.0) * constant) for row in rows]


def summary(rows: Iterable[Row]) -> dict[str, float]:
    """Errors as fractions."""
    rows = list(rows)
    signed = [row.predicted / row.measured - 1 for row in rows]
    sizes = list(map(abs, signed))
    return {
        "rows": len(rows),
        "mape": statistics.mean(sizes),
        "median": statistics.median(sizes),
        "worst": max(signed, key=abs),
        "bias": statistics.median(signed),
        "coverage": statistics.mean(row.low <= row.measured <= row.high for row in rows),
        "null_mape": statistics.mean(abs((row.null or 0.0) / row.measured - 1) for row in rows),
    }


def _print(tables: dict[str, list[Row]], title: str, by_group: bool) -> dict[str, dict[str, float]]:
    print(f"\n{title}\n{'':54}{'rows':>5}{'MAPE':>8}{'median':>8}{'worst':>8}{'bias':>8}{'inside':>8}{'null':>8}")
    found = {}
    for name, rows in tables.items():
        groups = {name: rows}
        if by_group:
            for row in rows:
                groups.setdefault(f"    {row.group}", []).append(row)
        for label, part in groups.items():
            one = summary(part)
            print(
                f"{label:54}{one['rows']:5}{one['mape']:8.1%}{one['median']:8.1%}{one['worst']:+8.0%}{one['bias']:+8.1%}"
                f"{one['coverage']:8.0%}{one['null_mape']:8.1%}"
            )
        found[name] = summary(rows)
    return found


def main(arguments: list[str]) -> int:
    target = Path("benchmarks/results/score_serving.json")
    if "--json" in arguments:
        target = Path(arguments.pop(arguments.index("--json") + 1))
        arguments.remove("--json")
    flags = {word for word in arguments if word.startswith("--")}
    folders = [word for word in arguments if word not in flags]
    if len(folders) != 1 or flags - {"--cross-validate", "--rows"}:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(folders[0])
    missing = [name for name in (G1, G2) if not (folder / f"{name}.csv").is_file()]
    if missing:
        print(f"NOT SCORED: {folder} lacks {' and '.join(missing)}", file=sys.stderr)
        return 2
    tables, skipped = score(folder)
    content = {"tables": _print(tables, "with the package's constants, which were fitted to these rows", True)}
    if "--rows" in flags:
        for rows in tables.values():
            for row in rows:
                ratio = row.predicted / row.measured
                print(f"{row.id:40}{row.quantity:20}{row.measured:12.5g}{row.predicted:12.5g}{ratio:8.2f}")
    for one in skipped:
        print(f"not scored: {one.id}: {one.why}")
    if "--cross-validate" in flags:
        found, _ = _read(folder)
        for group in ("family", "hardware"):
            unseen = left_out(found, lambda case, group=group: getattr(case, group))
            held_out = _score(found, lambda case, group=group, unseen=unseen: unseen[getattr(case, group)], [])
            content[f"left_out_{group}"] = _print(held_out, f"constants that have not seen the {group}", True)
    content["skipped"] = [vars(one) for one in skipped]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
