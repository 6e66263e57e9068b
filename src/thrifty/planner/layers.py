"""Lays settings over one another where a plain merge would mix what belongs together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from thrifty.spec.errors import ThriftyError
from thrifty.spec.load import Settings


def lay(upper: Settings, lower: Settings) -> Settings:
    """`upper` over `lower`. A length given above takes the place of the other kind of length below."""
    for one, other in (("job.tokens", "job.steps"), ("job.steps", "job.tokens")):
        if upper.at(one) is not None and upper.at(other) is None:
            lower = lower.without(other)
    return replace_whole(upper, lower)


def replace_whole(upper: Settings, lower: Settings) -> Settings:
    """`upper` over `lower`; a figure or a named thing (`base`) is replaced whole, not mixed from two sources."""
    for path, mapping in _mappings(upper.tree):
        if "base" in mapping or "value" in mapping:
            lower = lower.without(path)
    return upper.over(lower)


def _mappings(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield prefix + key, value
            yield from _mappings(value, f"{prefix}{key}.")


def without_empty(settings: Settings) -> Settings:
    """Without top-level sections that say nothing (`recipe:` and no more)."""
    for key in [key for key, value in settings.tree.items() if value is None]:
        settings = settings.without(key)
    return settings


def under(settings: Settings, prefix: str) -> Settings:
    """The same settings one level deeper, under the key `prefix`."""
    return Settings({prefix: settings.tree}, {f"{prefix}.{key}": origin for key, origin in settings.origins.items()})


def below(settings: Settings, prefix: str) -> Settings:
    """What stands under the top-level key `prefix`, with that level taken off; empty where there is nothing.

    Raises:
        ThriftyError: what stands there is not a mapping.
    """
    tree = settings.at(prefix)
    if tree is not None and not isinstance(tree, dict):
        raise ThriftyError(f"{prefix} must be a mapping of keys to values", where=settings.where(prefix))
    start = f"{prefix}."
    origins = {key.removeprefix(start): origin for key, origin in settings.origins.items() if key.startswith(start)}
    return Settings(tree or {}, origins)
