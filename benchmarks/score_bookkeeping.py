"""Checks the arithmetic from device-hours to MWh, tonnes and dollars on what papers and model cards state.

    python benchmarks/score_bookkeeping.py FOLDER

FOLDER holds `e_training_cost_energy_carbon.csv`. Each quantity is computed from the inputs of its own row alone:

    hours   devices x days or hours of the run, as the notes give them
    MWh     device-hours x watts x PUE
    tCO2    MWh x kg/kWh; where the source's MWh are those of the machines alone, x PUE
    $       hours x dollars of an hour, as the notes give them

The less rounded of stated MWh and device-hours x watts x PUE goes into tCO2. A row that lacks an input, or gives it as
"about" or from memory with low confidence, is named with the reason. GPT-3's training FLOPs come from its shape.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from serving_rows import Row
from thrifty.catalog import lookup
from thrifty.cost.energy import billed_grams, billed_joules
from thrifty.cost.params import total_parameters
from thrifty.spec.job import ModelShape
from thrifty.spec.load import build
from truth import Skipped, rows_of

TABLE = "e_training_cost_energy_carbon"
JOULES_PER_MWH = 3.6e9
GPT3_TOKENS, GPT3_FLOPS = 300e9, 3.14e23  # Brown et al. 2020, arXiv:2005.14165, table D.1
BAND = 0.01  # the published figures are rounded to about this much


def score(folder: Path) -> tuple[dict[str, list[Row]], list[Skipped]]:
    """Rows by table and quantity, and what was left out with why."""
    tables: dict[str, list[Row]] = {}
    skipped: list[Skipped] = []
    if not (folder / f"{TABLE}.csv").is_file():
        return {}, [Skipped(TABLE, "all rows", "the table is not in the folder")]
    for raw in rows_of(folder / f"{TABLE}.csv"):
        for one in _quantities(raw):
            if isinstance(one, Skipped):
                skipped.append(one)
            else:
                tables.setdefault(f"{TABLE}.{one.quantity}", []).append(one)
    tables[f"{TABLE}.flops"] = [_gpt3()]
    return tables, skipped


def _gpt3() -> Row:
    shape = build(ModelShape, lookup.model("gpt3-175b"), "")
    flops = 6 * total_parameters(shape) * GPT3_TOKENS
    return _row("gpt3-175b preset", "FLOPs", "flops", GPT3_FLOPS, flops)


def _row(name: str, group: str, quantity: str, measured: float, predicted: float) -> Row:
    spans = predicted * (1 - BAND), predicted * (1 + BAND)
    return Row(name, group, quantity, measured, predicted, *spans)


def _quantities(raw: dict[str, str]) -> Iterator[Row | Skipped]:
    """What of a row can be computed from the rest of it."""
    name, group = raw["id"], raw["accelerator"]
    if raw["confidence"] == "low":
        yield Skipped(TABLE, name, "the row's own figures are given with low confidence")
        return
    hours, why = _hours(raw)
    stated = _number(raw, "accel_hours")
    if stated is not None and hours is not None:
        yield _row(name, group, "hours", stated, hours)
    elif stated is not None:
        yield Skipped(TABLE, name, f"hours: {why}")
    hours = stated if stated is not None else hours
    watts, pue, energy = (_number(raw, key) for key in ("avg_power_W", "pue", "energy_MWh"))
    if energy is not None:
        if None in (hours, watts, pue):
            yield Skipped(TABLE, name, f"MWh: no {_missing(hours=hours, watts=watts, pue=pue)} in the row")
        else:
            yield _row(name, group, "MWh", energy, billed_joules(hours, watts, pue) / JOULES_PER_MWH)  # type: ignore[arg-type]
    carbon = _number(raw, "tCO2e")
    if carbon is not None:
        yield _carbon(raw, carbon, hours, watts, pue, energy)
    if _number(raw, "cost_usd") is not None:
        yield _dollars(raw, hours)


def _carbon(
    raw: dict[str, str],
    carbon: float,
    hours: float | None,
    watts: float | None,
    pue: float | None,
    energy: float | None,
) -> Row | Skipped:
    factor = _number(raw, "carbon_kg_per_kWh")
    whole = re.search(r"implied ([\d.]+) kg per kWh-at-TDP incl\. PUE", raw["notes"])
    if factor is None and whole and hours is not None and watts is not None:
        # The card gives one factor for grid and facility together.
        factor, pue, energy = float(whole[1]), 1.0, None
    if factor is None:
        return Skipped(TABLE, raw["id"], "tCO2: the source publishes no grid factor")
    rounded = energy is None or len(raw["energy_MWh"].replace(".", "").strip("0")) < 3
    if rounded and hours is not None and watts is not None and pue is not None:
        joules = billed_joules(hours, watts, pue)
    elif energy is not None:
        # Patterson et al. and LLaMA's table 15 state the facility's energy; others the machines', and a PUE beside it.
        facility = "2104.10350" in raw["source"] or "Table 15" in raw["source"]
        if not facility and pue is None:
            return Skipped(TABLE, raw["id"], "tCO2: no PUE in the row")
        joules = energy * JOULES_PER_MWH * (1.0 if facility else pue)  # type: ignore[operator]
    else:
        return Skipped(
            TABLE, raw["id"], f"tCO2: no {_missing(hours=hours, watts=watts, pue=pue)} and no MWh in the row"
        )
    return _row(raw["id"], raw["accelerator"], "tCO2", carbon, billed_grams(joules, 1000 * factor) / 1e6)


def _dollars(raw: dict[str, str], hours: float | None) -> Row | Skipped:
    each = re.search(r"~?\s*\$([\d.]+)/h each", raw["notes"])
    if each is None or hours is None:
        return Skipped(TABLE, raw["id"], "$: the row gives no price of a device-hour, or only about how many hours")
    return _row(raw["id"], raw["accelerator"], "usd", float(raw["cost_usd"]), hours * float(each[1]))


def _hours(raw: dict[str, str]) -> tuple[float | None, str]:
    """Device-hours from the number of devices and the length of the run in the notes."""
    devices = _number(raw, "n_accel")
    found = re.search(r"(~?)(?<![\d.])([\d.]+) (days|h)\b", raw["notes"])
    if devices is None or found is None:
        return None, "the row gives no length of the run and number of devices"
    if found[1]:
        return None, "the length of the run is only about right"
    return devices * float(found[2]) * (24 if found[3] == "days" else 1), ""


def _missing(**given: float | None) -> str:
    return " and no ".join(name for name, value in given.items() if value is None)


def _number(raw: dict[str, str], key: str) -> float | None:
    return float(raw[key]) if raw.get(key) else None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    if not (folder / f"{TABLE}.csv").is_file():
        print(f"NOT SCORED: {folder} lacks {TABLE}.csv", file=sys.stderr)
        return 2
    tables, skipped = score(folder)
    for name, rows in tables.items():
        errors = [row.predicted / row.measured - 1 for row in rows]
        sizes = [abs(error) for error in errors]
        print(f"{name:40}{len(rows):4} rows, mean {statistics.mean(sizes):.2%}, worst {max(errors, key=abs):+.2%}")
        for row, error in zip(rows, errors, strict=True):
            print(f"    {row.id:28}{row.measured:12.5g}{row.predicted:12.5g}{error:+9.2%}")
    for one in skipped:
        print(f"not scored: {one.id}: {one.why}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
