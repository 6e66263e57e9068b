"""The plan as a file: one YAML that `train` executes, and that tells when it was changed."""

from __future__ import annotations

import errno
from pathlib import Path

from thrifty.spec.errors import ThriftyError
from thrifty.spec.load import build, read_yaml, to_yaml
from thrifty.spec.plan import Plan


def write_plan(plan: Plan, path: Path) -> None:
    """Writes a plan, making its folder.

    Raises:
        ThriftyError: the file cannot be written.
    """
    write_text(path, to_yaml(plan), "--out")


def write_text(path: Path, text: str, option: str) -> None:
    """Writes a file that the option named, making its folder; raises as `write_plan` does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = (
            "the disk is full"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else f"cannot be written: {error.strerror}"
        )
        raise ThriftyError(what, where=str(path), hint=f"choose another place with {option}") from None


def read_plan(path: Path) -> Plan:
    """Reads a plan that `write_plan` wrote.

    Raises:
        ThriftyError: not a plan, or job, cluster or recipe was changed after planning.
    """
    settings = read_yaml(path, "plan")
    if "hash" not in settings.tree:
        hint = f"plan it first: thrifty plan {path} --out plan.yaml"
        raise ThriftyError("is not a plan (it has no hash)", where=str(path), hint=hint)
    try:
        return build(Plan, settings, "")
    except ThriftyError as error:
        changed = "hash no longer matches" in error.what
        again = f"undo the change, then plan it: thrifty plan {path} --set KEY=VALUE --out {path}"
        hint = again if changed else error.hint
        raise ThriftyError(error.what, where=error.where or str(path), hint=hint) from None
