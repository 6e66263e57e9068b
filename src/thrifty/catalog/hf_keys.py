"""Reads keys of a Hugging Face config.json; every refusal names the key and the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.spec.errors import ThriftyError


class Config:
    """A config with the place it was read from, so that every refusal names both."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise ThriftyError(
                f"the key {key!r} is missing", where=self.where, hint="is this the config of a transformer?"
            )
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def only(self, key: str, allowed: tuple[Any, ...], default: Any) -> None:
        """Refuses a setting that a shape has no switch for."""
        value = self.values.get(key, default)
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise ThriftyError(f"{key} = {value!r} is not supported", where=self.where, hint=f"supported: {choices}")


def rope_theta(read: Config, default: float = 10000.0) -> float:
    """Base of the rotary frequencies, in either spelling. What rescales them costs nothing and is not looked at."""
    rope = read.get("rope_parameters") or read.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ThriftyError(f"rope_scaling must be a mapping, got {rope!r}", where=read.where)
    theta = rope.get("rope_theta", read.get("rope_theta"))
    return float(default if theta is None else theta)


def windows(read: Config, kinds: Sequence[str], window: int | None) -> dict[str, int | None]:
    """`sliding_window` and `full_attention_every` from the kind of each layer.

    Raises:
        ThriftyError: windows that do not follow a period.
    """
    if window is None or "sliding_attention" not in kinds:
        return {"sliding_window": None}
    if "full_attention" not in kinds:
        return {"sliding_window": window}
    every = list(kinds).index("full_attention") + 1
    wanted = ["sliding_attention"] * (every - 1) + ["full_attention"]
    if any(kind != wanted[layer % every] for layer, kind in enumerate(kinds)):
        hint = "supported: a window in every layer, in none, or in all but every n-th (layer_types)"
        raise ThriftyError("sliding_window in some layers only is not supported", where=read.where, hint=hint)
    return {"sliding_window": window, "full_attention_every": every}
