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
    return device_watts(cluster) * cluster.devices * seconds * cluster.pue.value


def co2_grams(cluster: Cluster, joules: float) -> float:
    """Operational emissions of the grid; making the hardware is not counted."""
    return joules / JOULES_PER_KWH * cluster.grid.value


def price_usd(cluster: Cluster, seconds: float) -> float:
    """Every device is paid for while the run lasts."""
    return cluster.price.value * cluster.devices * seconds / 3600
