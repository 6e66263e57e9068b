"""Serving figures with their unit, provenance and interval."""

from __future__ import annotations

from thrifty.cost.serving import Served
from thrifty.cost.serving_fit import INTERVALS
from thrifty.spec.figure import Figure, modelled

_STEP = "step of a serving engine (docs/serving.md)"


def quote(served: Served, engine: str) -> dict[str, Figure]:
    """Every figure of a deployment. Intervals hold four fifths of the measurements of models that the fit had not seen.

    Args:
        engine: key of `serving_fit.INTERVALS`.
    """
    spans = INTERVALS[engine]

    def figure(value: float, unit: str, source: str, span: str = "", inverse: bool = False) -> Figure:
        if not span:
            return modelled(value, unit, source)
        below, above = spans[span]
        low, high = (1 / above, 1 / below) if inverse else (below, above)
        return modelled(value, unit, source, low=value * low, high=value * high)

    rate, wait, joules = "tokens_per_second", "itl_seconds", "joules_per_token"
    return {
        "batch": figure(served.batch, "1", "sequences at a time, all replicas"),
        "most_sequences": figure(served.most, "1", f"as many as {served.limit} allows"),
        "first_token": figure(served.first_token_seconds, "s", f"one prompt alone: {_STEP}", wait),
        "token_gap": figure(served.quiet_token_seconds, "s", f"no prompt read beside: {_STEP}", wait),
        "token_gap_mean": figure(served.token_seconds, "s", f"prompts read beside: {_STEP}", rate, inverse=True),
        "tokens_per_second": figure(served.tokens_per_second, "token/s", "batch over the mean step", rate),
        "requests_per_second": figure(served.requests_per_second, "1/s", "tokens/s over output tokens", rate),
        "device_watts": figure(served.device_watts, "W", "idle + span x (1 - exp(-load)), ML.ENERGY", "watts"),
        "device_energy": figure(served.joules_per_token, "J/token", "watts over tokens/s, devices alone", joules),
        "energy": figure(served.facility_joules_per_token, "J/token", "with hosts and PUE", joules),
        "usd_per_million": figure(served.usd_per_million, "usd", "device-hours x price", rate, inverse=True),
        "co2_per_million": figure(served.grams_per_million, "g", "energy x grid intensity", joules),
        "weight_bytes": figure(served.weight_bytes, "byte", "stored matrices, on one device"),
        "kv_bytes": figure(served.kv_bytes, "byte", "cached keys and values, on one device"),
        "free_bytes": figure(served.free_bytes, "byte", "memory left for the cache, on one device"),
    }  # fmt: skip
