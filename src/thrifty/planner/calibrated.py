"""Calibrations as files, and a cluster with the constants of one."""

from __future__ import annotations

from pathlib import Path

from thrifty.spec.calibration import Calibration
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.load import build, read_yaml, to_yaml

_AGAIN = "measure again with: thrifty calibrate"


def read_calibration(path: Path) -> Calibration:
    """Reads a file that `thrifty calibrate` wrote.

    Raises:
        ThriftyError: it is absent, damaged, or of another version.
    """
    settings = read_yaml(path, "profile file")
    try:
        return build(Calibration, settings, "")
    except ThriftyError as error:
        hint = f"{error.hint}\n  {_AGAIN}" if error.hint else _AGAIN
        where = error.where if str(path) in error.where else f"{path}: {error.where}"
        raise ThriftyError(f"is not a whole calibration: {error.what}", where=where, hint=hint) from None


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Writes a calibration, making its folder.

    Raises:
        ThriftyError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        beside.write_text(to_yaml(calibration), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ThriftyError(
            f"cannot be written: {error.strerror}",
            where=str(path),
            hint="choose another place with --out, or set XDG_CACHE_HOME to a folder that can be written",
        ) from None


def with_profile(cluster: Cluster, path: Path) -> Cluster:
    """A cluster that is priced with the constants of a file.

    Raises:
        ThriftyError: the file cannot be read, or was measured on other hardware.
    """
    measured = read_calibration(path).profile
    chip = cluster.accelerator.name
    if measured.hardware != chip:
        raise ThriftyError(
            f"was measured on {measured.hardware}, and {cluster.name} has {chip}",
            where=f"--profile {path}",
            hint=f"plan for {measured.hardware}, or leave --profile out: the plan names what it prices with instead",
        )
    return cluster.model_copy(update={"profile": measured})
