"""Reads the catalog's YAML files, finds entries by name or alias, and expands noted figures."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from thrifty.spec.errors import ThriftyError, did_you_mean


@functools.cache
def read(file: str) -> dict[str, Any]:
    """A file of the catalog as nested dicts. Callers must not change what they get: it is kept."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    # libyaml's loader where PyYAML has it: seven times as fast, and a plan should start at once.
    return dict(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def noted(raw: Any, notes: Mapping[str, Mapping[str, str]]) -> Any:
    """Expands every `[value, note]` of a nested dict into a figure: value, provenance, source, date.

    `[{bf16: .., fp8: ..}, note]` becomes a dict of figures.
    """
    if isinstance(raw, dict):
        return {key: noted(value, notes) for key, value in raw.items()}
    if isinstance(raw, list) and len(raw) == 2 and raw[1] in notes:
        value, note = raw
        if isinstance(value, dict):
            return {key: {"value": each, **notes[note]} for key, each in value.items()}
        return {"value": value, **notes[note]}
    return raw


def find(name: str, entries: Mapping[str, Iterable[str]], what: str, where: str = "") -> str:
    """The entry that `name` means: letter case, spaces, hyphens, underscores and slashes do not matter.

    Args:
        entries: canonical name to its aliases.
        what: the kind of thing, for the message.

    Raises:
        ThriftyError: no such entry; the message names the nearest.
    """
    known = {_plain(alias): entry for entry, aliases in entries.items() for alias in (entry, *aliases)}
    if _plain(name) in known:
        return known[_plain(name)]
    short = [
        alias for entry, aliases in entries.items() for alias in (entry, *aliases) if " " not in alias or alias == entry
    ]
    raise ThriftyError(f"no {what} {name!r} in the catalog", where=where, hint=did_you_mean(name, short))


def _plain(name: str) -> str:
    return re.sub(r"[\s_/-]+", "", name).lower()
