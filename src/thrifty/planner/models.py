"""Where a model's shape comes from: a name of the catalog, or a Hugging Face config.json on this machine."""

from __future__ import annotations

from pathlib import Path

from thrifty.catalog import lookup
from thrifty.catalog.hf_config import read_shape
from thrifty.spec.errors import ThriftyError
from thrifty.spec.load import Settings, from_dict, read_json

CONFIG = "config.json"


def config_file(text: str) -> Path | None:
    """The config.json that a text means: a JSON file, or a folder that holds one; None where it is neither.

    A name of the catalog is none, whatever folders there are; `./NAME` is the folder.
    """
    path = Path(text).expanduser()
    if path.suffix == ".json":
        return path
    if not path.is_dir() or _in_catalog(text):
        return None
    if (path / CONFIG).is_file():
        return path / CONFIG
    raise ThriftyError(f"the folder holds no {CONFIG}", where=text, hint="name a model's folder, or a job file")


def is_job(path: Path) -> bool:
    """Whether a JSON file is a job or a plan, which have a section `job`, and not a config."""
    return "job" in read_json(path)


def shape_settings(base: str, where: str = "") -> Settings:
    """The shape that `base` names, keys as in `ModelShape`.

    A shape from a config is called like its folder, where the file has the usual name, else like the file.

    Raises:
        ThriftyError: neither a model of the catalog nor a config that can be read; a config's mistake names its key.
    """
    path = config_file(base)
    if path is None:
        return lookup.model(base, where)
    tree = read_shape(path).model_dump(mode="json", exclude_unset=True, exclude_none=True)
    name = path.resolve().parent.name if path.name == CONFIG else path.stem
    return from_dict(tree | {"name": name or tree["name"]}, str(path))


def _in_catalog(name: str) -> bool:
    try:
        lookup.model(name)
    except ThriftyError:
        return False
    return True
