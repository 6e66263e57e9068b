"""Reads settings: defaults < file < `--set a.b=c`, and remembers where each value came from.

Settings are a nested dict with one origin (`job.yaml:7`, `--set`, `catalog models.yaml`) for each dotted key. `build`
turns a part of them into a noun and words every mistake as file:line: key: what is wrong, with the nearest valid name.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from thrifty.spec.errors import ThriftyError, did_you_mean

N = TypeVar("N", bound=BaseModel)


@dataclass(frozen=True)
class Settings:
    """A nested dict and the origin of each of its keys, by dotted path."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def over(self, lower: Settings) -> Settings:
        """These settings laid over `lower`: where both say something, these win."""
        replaced = {key for key, value in leaves(self.tree) if value != {}}
        kept = {k: o for k, o in lower.origins.items() if not any(k.startswith(r + ".") for r in replaced)}
        return Settings(_merge(lower.tree, self.tree), kept | self.origins)

    def at(self, path: str) -> Any:
        """The value at a dotted path, or None."""
        node: Any = self.tree
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def put(self, path: str, value: Any, origin: str) -> Settings:
        """A copy with one more value, laid over what is there; None as the value removes a null that is in the way."""
        parts = path.split(".")
        tree: Any = value
        for part in reversed(parts):
            tree = {part: tree}
        origins = _origins(tree, lambda _: origin)
        return Settings(tree, {k: o for k, o in origins.items() if k == path or k.startswith(path + ".")}).over(self)

    def without(self, path: str) -> Settings:
        """A copy that does not have what is at (and under) a dotted path."""
        return Settings(
            _drop(self.tree, path.split(".")),
            {k: o for k, o in self.origins.items() if k != path and not k.startswith(path + ".")},
        )

    def where(self, path: str) -> str:
        """Origin of a key, or of the nearest key around it."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return ""


def _merge(lower: Any, upper: Any) -> Any:
    if isinstance(lower, dict) and isinstance(upper, dict):
        return lower | {key: _merge(lower[key], value) if key in lower else value for key, value in upper.items()}
    return upper


def _drop(tree: dict[str, Any], parts: list[str]) -> dict[str, Any]:
    head, *rest = parts
    if head not in tree:
        return tree
    if not rest:
        return {key: value for key, value in tree.items() if key != head}
    return tree | {head: _drop(tree[head], rest)} if isinstance(tree[head], dict) else tree


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf of a nested dict; an empty dict is a leaf."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, path + ".")
        else:
            yield path, value


def _origins(tree: Mapping[str, Any], name: typing.Callable[[str], str], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found[path] = name(path)
        if isinstance(value, Mapping):
            found |= _origins(value, name, path + ".")
    return found


def from_dict(tree: dict[str, Any], origin: str) -> Settings:
    """Settings whose every key has one origin."""
    return Settings(tree, _origins(tree, lambda _: origin))


def read_text(path: Path, what: str) -> str:
    """A UTF-8 text file.

    Raises:
        ThriftyError: missing, a folder, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, around) if around else f"the folder {path.parent} does not exist either"
        raise ThriftyError(f"no such {what}", where=str(path), hint=near if len(near) < 200 else "") from None
    except IsADirectoryError:
        raise ThriftyError(f"is a folder, not a {what}", where=str(path), hint="name the file itself") from None
    except UnicodeDecodeError as error:
        raise ThriftyError(f"not UTF-8 text (byte {error.start})", where=str(path), hint="save it as UTF-8") from None
    except OSError as error:
        raise ThriftyError(f"cannot be read: {error.strerror}", where=str(path)) from None


def read_json(path: Path, what: str = "file") -> dict[str, Any]:
    """A JSON object.

    Raises:
        ThriftyError: not readable, not JSON, or not an object.
    """
    try:
        content = json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise ThriftyError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    if not isinstance(content, dict):
        raise ThriftyError("must be a JSON object", where=str(path))
    return content


def read_yaml(path: Path, what: str = "YAML file") -> Settings:
    """A YAML mapping with file:line as the origin of each key.

    Raises:
        ThriftyError: not readable, not YAML, not a mapping, or a key given twice.
    """
    text = read_text(path, what)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ThriftyError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from None
    if node is None:
        raise ThriftyError("is empty", where=str(path), hint=f"a {what} is a YAML mapping")
    if not isinstance(node, yaml.MappingNode):
        raise ThriftyError("must be a mapping of keys to values", where=f"{path}:1", hint="for example  job: {...}")
    origins: dict[str, str] = {}
    tree = _from_node(node, path, "", origins)
    return Settings(tree, origins)


def read_layers(path: Path, what: str = "YAML file", above: tuple[Path, ...] = ()) -> Settings:
    """As `read_yaml`; what a top-level `base`, a path beside the file, holds is laid under it.

    Raises:
        ThriftyError: as `read_yaml`, or files that are each other's base.
    """
    settings = read_yaml(path, what)
    base = settings.at("base")
    if base is None:
        return settings
    where, here = settings.where("base"), path.resolve()
    if not isinstance(base, str):
        raise ThriftyError("base: must be a path", where=where, hint="for example  base: tuned.yaml")
    lower = path.parent / base
    if lower.resolve() in (*above, here):
        raise ThriftyError(f"base: {base} has this file for its own base", where=where, hint="take one of them out")
    return settings.without("base").over(read_layers(lower, what, (*above, here)))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 3e-4 as text, `on` as true and 1:30 as sixty-base; read numbers as people write them."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag
        not in (
            "tag:yaml.org,2002:float",
            "tag:yaml.org,2002:int",
            "tag:yaml.org,2002:bool",
            "tag:yaml.org,2002:timestamp",
        )
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


class _Dumper(yaml.SafeDumper):
    """Quotes every string that either reader would take for something else."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def _from_node(node: yaml.Node, path: Path, prefix: str, origins: dict[str, str]) -> Any:
    if isinstance(node, yaml.MappingNode):
        tree: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            where = f"{path}:{key_node.start_mark.line + 1}"
            if key in tree:
                raise ThriftyError(f"key {prefix + key!r} is given twice", where=where, hint="keep one of them")
            origins[prefix + key] = where
            tree[key] = _from_node(value_node, path, f"{prefix}{key}.", origins)
        return tree
    if isinstance(node, yaml.SequenceNode):
        return [_from_node(item, path, f"{prefix}{i}.", origins) for i, item in enumerate(node.value)]
    constructor = _Loader("")
    try:
        return constructor.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ThriftyError(f"cannot read the value: {error}", where=f"{path}:{node.start_mark.line + 1}") from None


def parse_set(text: str) -> Settings:
    """`a.b=c` of `--set`; the value is read as YAML would read it.

    Raises:
        ThriftyError: no `=`, an empty key, or a value that is not YAML.
    """
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ThriftyError("wants KEY=VALUE", where=f"--set {text}", hint="for example  --set recipe.optimizer.lr=3e-4")
    try:
        value = yaml.load(raw, Loader=_Loader) if raw.strip() else ""
    except yaml.YAMLError:
        value = raw
    return Settings().put(key, value, f"--set {key}")


def build(noun: type[N], settings: Settings, prefix: str) -> N:
    """Makes a noun of the settings under `prefix`.

    Raises:
        ThriftyError: one line for each mistake, each with file, line, key, and the nearest valid choice.
    """
    tree = settings.at(prefix) if prefix else settings.tree
    if not isinstance(tree, dict):
        raise ThriftyError(
            f"{prefix} must be a mapping",
            where=settings.where(prefix),
            hint=f"its keys: {', '.join(noun.model_fields)}",
        )
    try:
        return noun.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(noun, dict(e), settings, prefix) for e in error.errors()]
    first = problems[0]
    more = "\n".join(str(problem) for problem in problems[1:8])
    raise ThriftyError(first.what, where=first.where, hint="\n".join(filter(None, [first.hint, more]))) from None


def _explain(noun: type[BaseModel], error: dict[str, Any], settings: Settings, prefix: str) -> ThriftyError:
    location = [str(part) for part in error["loc"]]
    path = ".".join(filter(None, [prefix, *location]))
    place = settings.where(path)
    where = f"{place}: {path}" if place and not place.startswith("--set") else place or path
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return ThriftyError(
            f"unknown key {location[-1]!r}", where=where, hint=did_you_mean(location[-1], _keys(noun, location[:-1]))
        )
    if kind == "missing":
        return ThriftyError(f"the key {location[-1]!r} is missing", where=where, hint=f"add {path}: ...")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return ThriftyError(
            f"{error['input']!r} is not a valid choice", where=where, hint=did_you_mean(str(error["input"]), choices)
        )
    message = str(error["msg"]).removeprefix("Value error, ")
    return ThriftyError(message, where=where, hint="" if kind == "value_error" else f"got {error['input']!r}")


def _keys(noun: type[BaseModel], location: list[str]) -> list[str]:
    """Field names of the model that a location inside a noun leads to."""
    model: type[BaseModel] | None = noun
    for part in location:
        if part.isdecimal():  # a place in a list, whose items are of the model that the list led to
            continue
        model = _model_in(model.model_fields[part].annotation) if model and part in model.model_fields else None
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple):
        return next((m for m in map(_model_in, get_args(annotation)) if m), None)
    return None


def fields(noun: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every field of a noun, nested ones included; for documentation, `config show` and tests."""
    for name, info in noun.model_fields.items():
        inner = _model_in(info.annotation)
        if inner is not None and inner.__name__ != "Figure":
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def to_yaml(noun: BaseModel) -> str:
    """A noun as YAML that `read_yaml` and `build` read back to an equal noun."""
    return yaml.dump(noun.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
