"""What all targets share: how a refusal and a head are worded, where nodes begin, and which data a tool can read."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NoReturn

import yaml

from thrifty.cost.held import part_sizes
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data
from thrifty.spec.plan import Plan

TEXT_ENDINGS = {".txt": "text", ".text": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Entry:
    """How one software runs a plan: its files, and the program that every rank runs.

    Attributes:
        software: as in `Recipe.software`.
        files: name -> text, beside the script.
        program: words after the launcher's own, shell syntax: a file beside the script is `"$HERE"/name`.
        setup: shell lines that install the software.
        lines: shell lines before the launch (variables that the program uses).
        notes: what the software takes differently, or has no key for; printed as comments.
        accelerate: launched by `accelerate launch` with this configuration file, not by torchrun.
    """

    software: str
    files: Mapping[str, str]
    program: Sequence[str]
    setup: str
    lines: Sequence[str] = ()
    notes: Sequence[str] = ()
    accelerate: str = ""


@dataclass
class Notes:
    """Collects what a target says in comments: a key of the plan, and what became of it."""

    lines: list[str] = field(default_factory=list)

    def say(self, key: str, what: str) -> None:
        self.lines.append(f"{key}: {what}")


def refuse(software: str, key: str, what: str, hint: str) -> NoReturn:
    """Stops: the software cannot express this key of the plan.

    Raises:
        ThriftyError: always.
    """
    raise ThriftyError(f"{software} {what}", where=key, hint=hint)


def only_decoders(software: str, plan: Plan) -> None:
    """Refuses models whose training objective the software's own entry point does not have, and kinds of attention."""
    shape = plan.job.model
    for key, plain in (("attention_sinks", False), ("full_attention_every", None)):
        if getattr(shape, key) != plain:
            refuse(software, f"job.model.{key}", f"is not told of {key} by this version", "use a model without it")
    if shape.qk_norm == "width":
        refuse(software, "job.model.qk_norm", "norms queries and keys by head, not over the width", "use qk_norm: true")
    kind = shape.kind
    if kind != "decoder":
        what = f"is written for decoders; {kind} {plan.job.model.name} needs a program of its own"
        refuse(software, "job.model.kind", what, "use the launchers' output as a frame for that program")


def plain_updates_only(software: str, plan: Plan) -> None:
    """Refuses optimizers and growing batches, which this version does not write in a configuration."""
    if plan.recipe.batch.ramp is not None:
        what = "is written with one batch for the whole run"
        refuse(software, "recipe.batch.ramp", what, "plan again without batch.ramp")
    optimizer = plan.recipe.optimizer
    if optimizer.name != "adamw":
        what = f"is written with adamw, not {optimizer.name}"
        refuse(software, "recipe.optimizer.name", what, "plan again with --set recipe.optimizer.name=adamw")
    if optimizer.stable:
        what = "has no AdamW that clips each tensor's update (stable)"
        refuse(software, "recipe.optimizer.stable", what, "plan again with --set recipe.optimizer.stable=false")


def no_compressed_exchange(software: str, plan: Plan) -> None:
    """Refuses the two levers that none of the other trainers has."""
    exchange = plan.recipe.exchange
    if exchange.codec is not None:
        what = f"does not compress gradients by {exchange.codec}"
        refuse(software, "recipe.exchange.codec", what, "plan again with --set recipe.exchange.codec=none")
    if exchange.local_steps > 1:
        what = f"exchanges every step, not every {exchange.local_steps}"
        refuse(software, "recipe.exchange.local_steps", what, "plan again with --set recipe.exchange.local_steps=1")


def head(plan: Plan, notes: Iterable[str] = (), comment: str = "#") -> str:
    """The comment that every file begins with: which plan, what it should cost and by whose constants, and notes."""
    bill, recipe = plan.predicted, plan.recipe
    lines = [
        f"{plan.job.name} on {plan.cluster.name}: plan {plan.hash[:12]}, {plan.made_with}",
        f"predicted {bill.seconds}, {bill.usd}, {bill.energy}; priced with the constants of {recipe.software}",
        *notes,
    ]
    return "".join(f"{comment} {line}\n" for text in lines for line in text.splitlines())


def nodes(plan: Plan) -> tuple[int, int]:
    """Nodes, and ranks on each.

    Raises:
        ThriftyError: the ranks do not fill whole nodes, or the devices are driven by another framework than torchrun's.
    """
    ranks, per_node, kind = plan.recipe.layout.ranks, plan.cluster.per_node, plan.cluster.accelerator.kind
    if kind == "tpu":
        what = f"starts one process a device; {plan.cluster.accelerator.name} is driven through XLA"
        refuse("the launcher", "cluster.accelerator", what, "plan for GPUs or CPU cores: --on 8xh100")
    if ranks <= per_node:
        return 1, ranks
    if ranks % per_node:
        what = f"starts as many ranks on every node; {ranks} ranks do not fill nodes of {per_node}"
        refuse("the launcher", "recipe.layout", what, f"use a multiple of {per_node} ranks")
    if ranks // per_node > plan.cluster.nodes:
        what = f"needs {ranks // per_node} nodes for {ranks} ranks; {plan.cluster.name} has {plan.cluster.nodes}"
        refuse("the launcher", "recipe.layout", what, "plan for a larger cluster with --on")
    return ranks // per_node, per_node


def slug(text: str) -> str:
    """A name that is safe in file names, SLURM, SkyPilot and Kubernetes: lower case letters, digits and dashes."""
    safe = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text.lower())
    return "-".join(filter(None, safe.split("-")))[:40].strip("-") or "job"


def run_name(plan: Plan) -> str:
    """The run folder's name, as `thrifty train` would choose it."""
    return f"{plan.job.name}-{plan.hash[:8]}"


def number(value: float) -> str:
    """The shortest decimal that reads back as the same float."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def data_kind(data: Data) -> str | None:
    """`text`, `json`, `parquet` or `dataset`; None where only Thrifty reads it (token shards, the standard library)."""
    if data.path == "python-stdlib" or data.format == "shards":
        return None
    if data.format != "auto":
        return "json" if data.format == "jsonl" else data.format
    return next((kind for ending, kind in TEXT_ENDINGS.items() if data.path.endswith(ending)), "dataset")


def from_environment(variable: str, default: str | None, needed: str) -> str:
    """A shell line that takes a variable from the environment, else the plan's value, else stops and says why."""
    if default is None:
        # A word that bash would take a quote or an expansion from would break the script.
        assert not set(needed) & set("'\"`$\\}"), needed
        return f': "${{{variable}:?{needed}}}"'
    return f"{variable}=${{{variable}:-{shlex.quote(default)}}}"


def tokenizer_line(plan: Plan, notes: Notes) -> str:
    """TOKENIZER: a folder or name that Hugging Face's AutoTokenizer reads."""
    tokenizer, vocabulary = plan.job.data.tokenizer, plan.job.model.vocab_size
    if tokenizer.kind == "hf":
        return from_environment("TOKENIZER", tokenizer.path, "")
    notes.say("job.data.tokenizer", f"kind {tokenizer.kind} is Thrifty's own; set TOKENIZER to another")
    needed = f"set it to a Hugging Face tokenizer of at most {vocabulary} ids"
    return from_environment("TOKENIZER", None, needed)


def parts_of_layers(plan: Plan) -> list[range]:
    """Layers of each part that the pipeline cuts the model into, in the order of the model: stages x interleave."""
    layout, layers = plan.recipe.layout, plan.job.model.layers
    sizes = part_sizes(layers, layout.pipeline * layout.interleave, plan.recipe.software)
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


class _Blocks(yaml.SafeDumper):
    """Writes text of several lines as a literal block, and what occurs twice twice, as people do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _text)


def to_yaml(content: Any) -> str:
    """YAML in the given order."""
    return yaml.dump(content, Dumper=_Blocks, sort_keys=False, width=120, allow_unicode=True)


def known_schedule(software: str, plan: Plan, names: Iterable[str]) -> str:
    """The name of the plan's schedule, refused where the software is not told of one with these numbers."""
    name = plan.recipe.schedule.name
    if name not in names:
        hint = f"plan with one of {', '.join(names)}"
        refuse(software, "recipe.schedule.name", f"is not written with schedule {name}", hint)
    return name
