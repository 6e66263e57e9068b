"""Watts, joules, grams of CO2 and money of devices that run for some time."""

from __future__ import annotations

from thrifty.spec.cluster import Cluster

JOULES_PER_KWH = 3.6e6


def device_watts(cluster: Cluster) -> float:
    """One busy device and its share of the host: idle + (TDP - idle) x utilisation + host."""
    chip = cluster.accelerator
    idle, tdp = chip.idle_watts.value, chip.tdp_watts.value
    return idle + (tdp - idle) * cluster.utilisation.value + cluster.host_watts.value


def energy_joules(cluster: Cluster, seconds: float) -> float:
    """Energy of all devices of the cluster, with hosts and the facility's overhead (x PUE)."""
    return billed_joules(cluster.devices * seconds / 3600, device_watts(cluster), cluster.pue.value)


def co2_grams(cluster: Cluster, joules: float) -> float:
    """Operational emissions of the grid; making the hardware is not counted."""
    return billed_grams(joules, cluster.grid.value)


def price_usd(cluster: Cluster, seconds: float) -> float:
    """Every device is paid for while the run lasts."""
    return cluster.price.value * cluster.devices * seconds / 3600


def billed_joules(device_hours: float, watts: float, pue: float = 1.0) -> float:
    """Energy as model cards and papers state it: device-hours x watts of a device x PUE.

    Args:
        watts: measured, or the TDP where the card says so; hosts only where the source counts them.
    """
    return device_hours * 3600 * watts * pue


def billed_grams(joules: float, grams_per_kwh: float) -> float:
    """Operational emissions of a stated energy on a stated grid, in grams of CO2."""
    return joules / JOULES_PER_KWH * grams_per_kwh
