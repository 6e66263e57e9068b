"""Resolves what the user asked for into a Job, a Cluster and a partial Recipe; remembers where each value came from.

Four layers, each over the one before: defaults of the nouns < the catalog < files < `--set`. In a job file `job.model`
and `cluster.accelerator` may be the name of a catalog entry, or a mapping whose `base` is one and whose other keys
change it; a model may also be the path of a Hugging Face config.json, or of a folder that holds one;
`accelerator: local` is this machine; `cluster.grid` may be a country.

    job:
      model: {base: llama-3-8b, layers: 16}
      tokens: 20B tokens
      sequence_length: 4096
    cluster:
      accelerator: h100
      nodes: 2
      grid: france
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from thrifty.catalog import lookup
from thrifty.cost.params import active_parameters
from thrifty.planner.layers import below, lay, replace_whole, under, without_empty
from thrifty.planner.models import config_file, is_job, shape_settings
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import Data, Job, ModelShape
from thrifty.spec.load import Settings, build, fields, from_dict, parse_set, read_layers, read_yaml
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Recipe

SECTIONS: dict[str, type[BaseModel]] = {"job": Job, "recipe": Recipe, "cluster": Cluster}
TOKENS_PER_PARAMETER = 20
LONGEST_DEFAULT_SEQUENCE = 8192
LENGTH_MULTIPLE = 64


@dataclass(frozen=True)
class Request:
    """What was asked for, resolved.

    Attributes:
        job: complete.
        cluster: complete.
        recipe: only what was given, keys as in `Recipe` (`optimizer.lr`, not `recipe.optimizer.lr`).
        settings: everything of the three under `job`, `cluster` and `recipe`, with the origin of each key.
    """

    job: Job
    cluster: Cluster
    recipe: Settings
    settings: Settings


def read_request(
    job: str,
    on: str | None = None,
    recipe_file: Path | None = None,
    sets: Sequence[str] = (),
    *,
    local: Callable[[], Settings],
    vocabulary: Callable[[Data], int],
) -> Request:
    """Reads a job, the cluster that it is to run on, and what the user says about the recipe.

    Args:
        job: a job file (YAML with `job`, and maybe `recipe` and `cluster`), a plan file, or a model: of the catalog, or
            a Hugging Face config.json or its folder. A model alone is trained on 20 tokens per active parameter.
        on: `local`, a cluster file, or a short form such as `64xh100`. None: the job file's cluster, else `local`.
        recipe_file: recipe keys, over those of the job file.
        sets: `KEY=VALUE` strings, over everything; keys begin with `job.`, `recipe.` or `cluster.`.
        local: describes this machine, keys as in `Cluster`; called only where it is needed.
        vocabulary: how many ids a tokenizer has; called only for `job.model.vocab_size: auto`.

    Raises:
        ThriftyError: anything unknown, missing, contradictory or unreadable, with file, line and key.
    """
    config = config_file(job)
    from_file = is_job(config) if config else _is_file(job)
    asked = _read_job_file(Path(job)) if from_file else _name_model(job)
    if on is not None:
        asked = lay(_read_cluster(on), asked.without("cluster"))
    if recipe_file is not None:
        asked = lay(_in_section(read_yaml(recipe_file, "recipe file"), "recipe"), asked)
    asked = lay(_read_sets(sets), asked)

    settings = _fill_cluster(_fill_vocabulary(_fill_model(asked), vocabulary), local)
    if not from_file:
        settings = _fill_length(settings)
    recipe = below(settings, "recipe")
    _check_recipe(settings)
    return Request(build(Job, settings, "job"), build(Cluster, settings, "cluster"), recipe, settings)


def read_cluster(on: str, sets: Sequence[str] = (), *, local: Callable[[], Settings]) -> tuple[Cluster, Settings]:
    """Reads a cluster without a job: `local`, a cluster file or a short form, with `cluster.` sets over it.

    Returns the cluster, and its settings under `cluster` with the origin of each key.

    Raises:
        ThriftyError: as `read_request`.
    """
    settings = _fill_cluster(lay(_read_sets(sets), _read_cluster(on)), local)
    return build(Cluster, settings, "cluster"), settings


def read_question(
    on: str, recipe_file: Path | None = None, sets: Sequence[str] = (), *, local: Callable[[], Settings]
) -> tuple[Cluster, Settings]:
    """Reads a cluster, and what is said of a job and a recipe whose model is still to be chosen.

    Returns the cluster, and the settings under `job` and `recipe`.

    Raises:
        ThriftyError: as `read_request`.
    """
    cluster, _ = read_cluster(on, sets, local=local)
    asked = _read_sets(sets)
    if recipe_file is not None:
        asked = lay(asked, _in_section(read_yaml(recipe_file, "recipe file"), "recipe"))
    _check_recipe(asked)
    return cluster, asked.without("cluster")


# ---- the layers that the user writes


def _is_file(text: str) -> bool:
    return Path(text).suffix in (".yaml", ".yml") or Path(text).is_file()


def _read_job_file(path: Path) -> Settings:
    settings = read_layers(path, "job file")
    if "hash" in settings.tree:
        return _read_plan(path, settings)
    settings = without_empty(settings)
    _check_sections(settings, path)
    settings = _expand_names(settings)
    _check_accelerator_is_named(settings, str(path))
    if settings.at("job.name") is None:
        settings = settings.put("job.name", path.stem, "default: the name of the file")
    return settings


def _read_plan(path: Path, settings: Settings) -> Settings:
    """Job, cluster and whole recipe of a plan, once its hash has been found to match them."""
    try:
        build(Plan, settings, "")
    except ThriftyError as error:
        hint = error.hint or "plan again, and say what you want changed with --set"
        raise ThriftyError(error.what, where=error.where or str(path), hint=hint) from None
    for key in settings.tree:
        if key not in SECTIONS:
            settings = settings.without(key)
    return settings


def _check_sections(settings: Settings, path: Path) -> None:
    for key in settings.tree:
        if key not in SECTIONS:
            owner = next((name for name, noun in SECTIONS.items() if key in noun.model_fields), None)
            hint = f"put it under {owner}:" if owner else did_you_mean(key, SECTIONS)
            raise ThriftyError(f"unknown section {key!r}", where=settings.where(key), hint=hint)
        below(settings, key)  # refuses what is no mapping
    if "job" not in settings.tree:
        hint = "for example  job: {model: llama-3-8b, tokens: 160B tokens, sequence_length: 8192}"
        raise ThriftyError("the section 'job' is missing", where=str(path), hint=hint)


def _name_model(text: str) -> Settings:
    try:
        shape = shape_settings(text)
    except ThriftyError as error:
        if error.where:  # of a config that is there
            raise
        raise ThriftyError(f"{text!r} is neither a job file nor a model of the catalog", hint=error.hint) from None
    return from_dict({"job": {"name": shape.at("name"), "model": {"base": text}}}, shape.where("name"))


def _read_cluster(on: str) -> Settings:
    if on == "local":
        return Settings()
    if _is_file(on):
        settings = _in_section(read_yaml(Path(on), "cluster file"), "cluster")
        _check_accelerator_is_named(settings, on)
        return settings
    origin = f"--on {on}"
    entry, nodes, per_node = lookup.short_form(on, origin)
    counts = {"accelerator": {"base": entry}, "nodes": nodes, "per_node": per_node}
    return from_dict({"cluster": counts}, origin)


def _check_accelerator_is_named(settings: Settings, where: str) -> None:
    if settings.at("cluster") and settings.at("cluster.accelerator") is None:
        hint = "add accelerator: local for this machine, or a name such as h100"
        raise ThriftyError(
            "the cluster does not say which accelerator it has", where=settings.where("cluster") or where, hint=hint
        )


def _in_section(settings: Settings, section: str) -> Settings:
    """A file that is all about one section: its keys may stand under the section's name or alone."""
    if section in settings.tree:
        for key in settings.tree:
            if key != section:
                raise ThriftyError(f"unknown key {key!r}", where=settings.where(key), hint=f"keep only {section}:")
        settings = below(without_empty(settings), section)
    return _expand_names(under(settings, section))


def _read_sets(sets: Sequence[str]) -> Settings:
    settings = Settings()
    for text in sets:
        one = parse_set(text)
        section = next(iter(one.tree))
        if section not in SECTIONS or not isinstance(one.tree[section], dict):
            raise ThriftyError(
                f"unknown key {section!r}", where=f"--set {text}", hint=_nearest_key(text.partition("=")[0])
            )
        settings = replace_whole(_expand_names(one), settings)
    return settings


def _nearest_key(key: str) -> str:
    everything = [f"{section}.{name}" for section, noun in SECTIONS.items() for name in fields(noun)]
    inside = [name for name in everything if name.endswith(f".{key}")]
    return f"did you mean {' or '.join(map(repr, inside[:3]))}?" if inside else did_you_mean(key, everything)


def _expand_names(settings: Settings) -> Settings:
    """Writes names as mappings: a model or accelerator becomes `{base: name}`, a country its grid's figure."""
    for path in ("job.model", "cluster.accelerator"):
        name = settings.at(path)
        if isinstance(name, str):
            settings = settings.put(path, {"base": name}, settings.where(path))
    country = settings.at("cluster.grid")
    if isinstance(country, str) and country[:1].isalpha():
        origin = settings.where("cluster.grid")
        settings = settings.put(
            "cluster.grid", lookup.grid(country, origin).model_dump(), f"{origin} (catalog grids.yaml)"
        )
    return settings


# ---- what the user left out


def _fill_model(settings: Settings) -> Settings:
    """Lays the shape of the base under `job.model`, where one is named. A changed shape does not keep the name."""
    given = settings.at("job.model")
    if not isinstance(given, dict) or "base" not in given:
        return settings
    shape = shape_settings(str(given["base"]), settings.where("job.model.base"))
    changed = [key for key in given if key not in ("base", "name", "source")]
    if changed:
        origin = f"{shape.where('name')}, changed"
        shape = shape.put("name", f"{shape.at('name')}-custom", origin)
        shape = shape.put("source", f"{shape.at('source')}, but for {', '.join(changed)}", origin)
    lower = under(under(shape, "model"), "job")
    return _without_base(settings, "job.model").over(lower)


def _fill_vocabulary(settings: Settings, vocabulary: Callable[[Data], int]) -> Settings:
    if settings.at("job.model.vocab_size") != "auto":
        return settings
    data = Data() if settings.at("job.data") is None else build(Data, settings, "job.data")
    origin = f"{settings.where('job.model.vocab_size')} (auto: {data.tokenizer.kind} tokenizer)"
    return settings.put("job.model.vocab_size", vocabulary(data), origin)


def _fill_cluster(settings: Settings, local: Callable[[], Settings]) -> Settings:
    """Lays the catalog's machine, or this one, under `cluster`.

    Raises:
        ThriftyError: nobody says what a device-hour costs.
    """
    given = settings.at("cluster.accelerator")
    nodes = _count(settings.at("cluster.nodes"))
    base = given.get("base") if isinstance(given, dict) else None
    if base is None and isinstance(given, dict) and "name" in given:
        lower = lookup.surroundings(nodes)
    elif base is None or base == "local":
        lower = local()
    else:
        lower = lookup.machine(str(base), nodes, settings.where("cluster.accelerator.base"))
    full = replace_whole(_without_base(settings, "cluster.accelerator"), under(lower, "cluster"))
    name = full.at("cluster.accelerator.name")
    if full.at("cluster.price") is None:
        hint = "say what a device costs in an hour, for example  --set cluster.price=2.5usd/h"
        raise ThriftyError(f"no price is known for {name}", where="cluster.price", hint=hint)
    if full.at("cluster.name") is None:
        label = lookup.cluster_name(str(name), nodes, _count(full.at("cluster.per_node")))
        full = full.put("cluster.name", label, "default: devices and accelerator")
    return full


def _fill_length(settings: Settings) -> Settings:
    """Sequence length and tokens for a job that is only the name of a model."""
    shape = build(ModelShape, settings, "job.model")
    if settings.at("job.sequence_length") is None:
        settings = settings.put("job.sequence_length", *_default_length(shape))
    if all(settings.at(f"job.{key}") is None for key in ("tokens", "steps", "target_loss")):
        settings = settings.put("job.tokens", TOKENS_PER_PARAMETER * active_parameters(shape), _tokens_origin(shape))
    return settings


def _default_length(shape: ModelShape) -> tuple[int, str]:
    """Sequence length and why. Rows of positions that are an offset (OPT, RoBERTa) are cut off."""
    longest = min(shape.max_positions, LONGEST_DEFAULT_SEQUENCE)
    if shape.kind == "vit" or longest <= LENGTH_MULTIPLE:
        return longest, "default: the model's max_positions"
    origin = f"default: the model's max_positions, at most {LONGEST_DEFAULT_SEQUENCE}, a multiple of {LENGTH_MULTIPLE}"
    return longest // LENGTH_MULTIPLE * LENGTH_MULTIPLE, origin


def _tokens_origin(shape: ModelShape) -> str:
    source = "is compute-optimal for dense decoders (Hoffmann et al. 2022, arXiv:2203.15556)"
    if shape.kind != "decoder":
        return f"assumed: {TOKENS_PER_PARAMETER} per parameter {source}; no such rule is known for kind {shape.kind}"
    of = "active parameter, as if the idle experts were free; per parameter it" if shape.experts else "parameter"
    return f"assumed: {TOKENS_PER_PARAMETER} per {of} {source}"


def _without_base(settings: Settings, path: str) -> Settings:
    settings = settings.without(f"{path}.base")
    return settings if settings.at(path) else settings.without(path)


def _count(value: Any) -> int:
    """A count as the noun will read it; 1 where it is absent or wrong, which building the noun then reports."""
    try:
        return max(1, int(units.parse(value, "count")))
    except (ValueError, TypeError):
        return 1


def _check_recipe(settings: Settings) -> None:
    """Reports mistakes in a partial recipe now; the sizes that the planner will choose are stood in for."""
    micro = settings.at("recipe.batch.micro_sequences")
    standing_in = {"batch": {"micro_sequences": 1}}
    if settings.at("recipe.batch.sequences") is None:
        ranks = math.prod(_count(settings.at(f"recipe.layout.{axis}")) for axis in ("island", "shard"))
        standing_in["batch"]["sequences"] = _count(micro) * ranks
    build(Recipe, settings.over(from_dict({"recipe": standing_in}, "chosen by the planner")), "recipe")
