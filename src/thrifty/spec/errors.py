"""The one exception that users see: what, where, the nearest valid choice, and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ThriftyError(Exception):
    """Bad input or a state that the user can mend. The command line prints it without traceback and exits with 2.

    Args:
        what: one sentence that says what is wrong.
        where: file, line and key, or the part of the machine, e.g. ``job.yaml:7: job.tokens``.
        hint: a way out: the nearest valid choice, or the command that mends it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text


def did_you_mean(word: str, choices: Iterable[str], most: int = 3) -> str:
    """Says which valid choices are nearest to `word`: those alike in spelling, else all of them when few."""
    known = sorted({str(choice) for choice in choices})
    lowered = {choice.lower(): choice for choice in known}
    near = [lowered[match] for match in difflib.get_close_matches(word.lower(), list(lowered), n=most, cutoff=0.5)]
    near += [c for c in known if word and word.lower() in c.lower() and c not in near][: most - len(near)]
    if near:
        return "did you mean " + " or ".join(repr(choice) for choice in near) + "?"
    if len(known) <= 40:
        return "valid choices: " + ", ".join(known)
    return f"{len(known)} valid choices, among them " + ", ".join(known[:8])
