"""Looks up what a job or a cluster names: model shapes, accelerators with their machines, prices, grids.

Whatever has many keys comes back as `Settings`, with the catalog's file as the origin, ready to be laid under what the
user says; prices and grids are one figure each.
"""

from __future__ import annotations

import re
from statistics import median
from typing import Any

from thrifty.catalog import facts
from thrifty.spec import units
from thrifty.spec.cluster import Accelerator
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure
from thrifty.spec.load import Settings, from_dict

_MODELS, _ACCELERATORS, _PRICES, _GRIDS = "models.yaml", "accelerators.yaml", "prices.yaml", "grids.yaml"
_SHORT_FORM = re.compile(r"^\s*(?:(?P<first>\d+)\s*x\s*)?(?:(?P<second>\d+)\s*x\s*)?(?P<name>\S.*?)\s*$", re.IGNORECASE)
_RANGE = re.compile(r"^\s*(?P<low>\d*)\s*\.\.\s*(?P<high>\d+)\s*x\s*(?P<name>\S.*?)\s*$", re.IGNORECASE)


def models() -> list[str]:
    """Names of all model shapes."""
    return list(facts.read(_MODELS)["models"])


def model(name: str, where: str = "") -> Settings:
    """The shape of a model, keys as in `spec.job.ModelShape`.

    Raises:
        ThriftyError: unknown name; the message has the nearest.
    """
    entries = facts.read(_MODELS)["models"]
    entry = facts.find(name, {key: value["aliases"] for key, value in entries.items()}, "model", where)
    return from_dict({"name": entry, **entries[entry]["shape"]}, f"catalog {_MODELS}")


def accelerators() -> list[str]:
    """Names of all accelerators."""
    return list(facts.read(_ACCELERATORS)["accelerators"])


def accelerator(name: str, where: str = "") -> Settings:
    """One device, keys as in `spec.cluster.Accelerator`.

    Raises:
        ThriftyError: unknown name; the message has the nearest.
    """
    entry = accelerator_name(name, where)
    tree = {key: value for key, value in _machine(entry).items() if key in Accelerator.model_fields}
    return from_dict({"name": entry, **tree}, f"catalog {_ACCELERATORS}")


def accelerator_name(name: str, where: str = "") -> str:
    """The catalog's own name of an accelerator, from that name, an alias (`h100`), or what its driver calls it."""
    entries = facts.read(_ACCELERATORS)["accelerators"]
    return facts.find(name, {key: value["aliases"] for key, value in entries.items()}, "accelerator", where)


def accelerator_of_device(device_name: str) -> str | None:
    """The catalog's name of an accelerator from what its driver reports; None where the catalog does not have it."""
    try:
        return accelerator_name(device_name)
    except ThriftyError:
        return None


def machine(name: str, nodes: int = 1, where: str = "") -> Settings:
    """Everything about a cluster of one kind of device but how many there are, keys as in `spec.cluster.Cluster`.

    `per_node` is what a node of the usual machine holds. `price` is absent where no dated price is known.

    Args:
        nodes: more than one node loses more time to outages.

    Raises:
        ThriftyError: unknown name; the message has the nearest.
    """
    entry = accelerator_name(name, where)
    device = accelerator(entry)
    rest = {key: value for key, value in _machine(entry).items() if key not in (*Accelerator.model_fields, "aliases")}
    tree: dict[str, Any] = {"accelerator": device.tree, **rest, "goodput": _goodput(nodes)}
    settings = from_dict(tree, f"catalog {_ACCELERATORS}").over(surroundings())
    usd_per_hour = price(entry)
    return (
        settings
        if usd_per_hour is None
        else from_dict({"price": usd_per_hour.model_dump()}, f"catalog {_PRICES}").over(settings)
    )


def surroundings(nodes: int = 1) -> Settings:
    """What is assumed about any cluster, whatever its devices: grid, PUE, load, outages, the link between islands."""
    table = facts.read(_ACCELERATORS)
    usual = facts.noted(table["families"]["switched"], table["notes"])
    assumed = {key: usual[key] for key in ("pue", "utilisation", "inter_island")} | {"goodput": _goodput(nodes)}
    country = facts.read(_GRIDS)["default"]
    average = grid(country).model_dump() | {"provenance": "assumed"}
    average["source"] = f"the cluster is taken to be in {country}; {average['source']}"
    return from_dict(assumed, f"catalog {_ACCELERATORS}").over(from_dict({"grid": average}, f"catalog {_GRIDS}"))


def cluster(text: str, where: str = "") -> Settings:
    """A whole cluster from a short form, keys as in `spec.cluster.Cluster`.

    `h100` is one device; `4xh100` four in one node; `64xh100` eight nodes of eight; `2x4xh100` two nodes of four.

    Raises:
        ThriftyError: unknown accelerator, no devices, or a number of devices that does not fill its nodes.
    """
    entry, nodes, per_node = short_form(text, where)
    counts = {"name": cluster_name(entry, nodes, per_node), "nodes": nodes, "per_node": per_node}
    return from_dict(counts, where or text).over(machine(entry, nodes))


def short_form(text: str, where: str = "") -> tuple[str, int, int]:
    """Reads `64xh100` or `2x8xh100` into accelerator, nodes and devices per node; raises as `cluster` does."""
    match = _SHORT_FORM.match(text)
    if match is None:
        raise ThriftyError(
            f"{text!r} names no cluster", where=where, hint="for example  h100, 8xa100, 64xh100, 2x8xh100"
        )
    entry = accelerator_name(match["name"], where)
    counts = [int(count) for count in (match["first"], match["second"]) if count is not None]
    if 0 in counts:
        raise ThriftyError(f"{text!r} has no devices", where=where, hint=f"for example  8x{match['name']}")
    if len(counts) == 2:
        return entry, counts[0], counts[1]
    devices = counts[0] if counts else 1
    per_node = int(_machine(entry)["per_node"])
    if devices <= per_node:
        return entry, 1, devices
    if devices % per_node:
        lower = devices // per_node * per_node
        raise ThriftyError(
            f"{devices} devices do not fill nodes of {per_node} {entry}",
            where=where or text,
            hint=f"use {lower} or {lower + per_node}, or say how many nodes and how full, as in  3x4x{match['name']}",
        )
    return entry, devices // per_node, per_node


def short_form_range(text: str, where: str = "") -> tuple[int, int, str] | None:
    """Reads `8..1024xh100` or `..64xa100` into lowest and highest number of devices and accelerator; None for others.

    Raises:
        ThriftyError: unknown accelerator, or a range that holds nothing.
    """
    match = _RANGE.match(text)
    if match is None:
        return None
    entry = accelerator_name(match["name"], where)
    low, high = int(match["low"] or 1), int(match["high"])
    if not 0 < low <= high:
        hint = f"for example  8..1024x{match['name']}"
        raise ThriftyError(f"{text!r} holds no number of devices", where=where, hint=hint)
    short_form(f"{high}x{entry}", where)  # which refuses one that does not fill its nodes
    return low, high, entry


def cluster_name(accelerator_entry: str, nodes: int, per_node: int) -> str:
    """What a cluster is called when nobody names it."""
    return f"{nodes * per_node}x{accelerator_entry}"


def price(name: str) -> Figure | None:
    """Dollars for one device-hour: the median of the newest year's rows, with their range; None where there is none."""
    entry = accelerator_name(name)
    rows = facts.read(_PRICES).get(entry)
    if not rows:
        return None
    newest = max(str(row["date"]) for row in rows)
    rows = [row for row in rows if str(row["date"])[:4] == newest[:4]]
    usd = sorted(units.parse(row["price"], "usd_per_hour") for row in rows)
    listed = "; ".join(f"{row['price']} {row['provider']} ({row['source']}, {row['date']})" for row in rows)
    source = f"median of {len(rows)} on-demand prices of {newest[:4]}: {listed}" if len(rows) > 1 else listed
    return Figure(
        value=median(usd), unit="usd/h", provenance="published", source=source, date=newest, low=usd[0], high=usd[-1]
    )


def grids() -> list[str]:
    """Names of all countries."""
    return list(facts.read(_GRIDS)["countries"])


def grid(name: str, where: str = "") -> Figure:
    """Grams of CO2 per kWh of a country, by its English name or its three letters.

    Raises:
        ThriftyError: unknown name; the message has the nearest.
    """
    table = facts.read(_GRIDS)
    names = {
        key: [value["code"], *table["also_called"].get(value["code"], [])] for key, value in table["countries"].items()
    }
    entry = facts.find(name, names, "grid", where)
    row = table["countries"][entry]
    source = f"{entry}, {row['year']}: {row.get('source', table['source'])}"
    return Figure(
        value=units.parse(row["intensity"], "grams_per_kwh"),
        unit="g/kWh",
        provenance="published",
        source=source,
        date=row["year"],
    )


def _machine(entry: str) -> dict[str, Any]:
    table = facts.read(_ACCELERATORS)
    row = table["accelerators"][entry]
    return dict(facts.noted({key: value for key, value in row.items() if key != "aliases"}, table["notes"]))


def _goodput(nodes: int) -> dict[str, Any]:
    table = facts.read(_ACCELERATORS)
    return dict(facts.noted(table["goodput"]["one_node" if nodes == 1 else "several_nodes"], table["notes"]))
