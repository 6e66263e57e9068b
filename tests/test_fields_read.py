"""A dead option is a bug: every key that a job, a cluster or a recipe may have is read somewhere outside `spec/`.

A field counts as read where the source has it as an attribute of something that is known, or named, to be that noun:
`recipe.optimizer.lr`, or `optimizer.lr` after `optimizer = recipe.optimizer`, or `shape.layers` where `shape` is
annotated as `ModelShape`. `thing.name` of anything else does not count, so that a common word is not taken for a read.
A field that a property or function of `spec/` reads counts where that property or function is used outside.
"""

from __future__ import annotations

import ast
import re
import types
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from thrifty.spec.cluster import Accelerator, Cluster, Link
from thrifty.spec.figure import Figure
from thrifty.spec.job import Data, Job, ModelShape, RopeScaling, Tokenizer
from thrifty.spec.plan import Plan
from thrifty.spec.profile import CONSTANTS, CalibratedProfile
from thrifty.spec.recipe import Layout, Recipe

SOURCE = Path(__file__).resolve().parents[1] / "src" / "thrifty"

# What these nouns carry for people and for other tools; no code has to act on it.
FOR_PEOPLE = {(ModelShape, "source")}
# `cost.profiles.calibrated` takes these by name, in a loop; tests/cost/test_profiles.py shows what each of them moves.
BY_NAME_IN_A_LOOP = {(CalibratedProfile, name) for name in CONSTANTS}


def model_in(annotation: object) -> type[BaseModel] | None:
    """The noun that a field's annotation holds, through unions and Annotated; none for figures and plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None if annotation is Figure else annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return next(filter(None, map(model_in, typing.get_args(annotation))), None)
    return None


def nouns(root: type[BaseModel]) -> set[type[BaseModel]]:
    """A noun and all those inside it."""
    inside = filter(None, (model_in(field.annotation) for field in root.model_fields.values()))
    return {root}.union(*(nouns(noun) for noun in inside))


NOUNS = nouns(Job) | nouns(Cluster) | nouns(Recipe)
BY_CLASS = {noun.__name__: noun for noun in NOUNS | {Plan}}


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# What a variable or attribute of this name is taken to be where nothing else says: `job`, `shape`, `intra_node`.
BY_NAME: dict[str, type[BaseModel]] = {snake(noun.__name__): noun for noun in NOUNS | {Plan}} | {"shape": ModelShape}
for noun in NOUNS:
    for field_name, field in noun.model_fields.items():
        inner = model_in(field.annotation)
        if inner is not None:
            BY_NAME.setdefault(field_name, inner)
BY_NAME["link"] = Link


Read = tuple[type[BaseModel] | None, str]  # a field or property of a noun; with None, a function


class Reads(ast.NodeVisitor):
    """Collects every field and property of a noun that is read, and every name that is used."""

    def __init__(self, known: dict[str, type[BaseModel] | None] | None = None) -> None:
        self.found: set[Read] = set()
        self.known = dict(known or {})

    def type_of(self, node: ast.expr) -> type[BaseModel] | None:
        if isinstance(node, ast.Name):
            return self.known[node.id] if node.id in self.known else BY_NAME.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if owner is not None:
                field = owner.model_fields.get(node.attr)
                return model_in(field.annotation) if field else None
            return BY_NAME.get(node.attr)
        return None

    def visit_Name(self, node: ast.Name) -> None:
        self.found.add((None, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self.type_of(node.value)
        if owner is not None and isinstance(node.ctx, ast.Load):
            self.found.add((owner, node.attr))
        elif owner is None:
            self.found.add((None, node.attr))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.known)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.learn(argument.arg, argument.annotation)
        self.generic_visit(node)
        self.known = outer

    def learn(self, name: str, annotation: ast.expr | None) -> None:
        """An annotation settles what a name is: one of the nouns, or none of them."""
        if annotation is not None:
            words = re.findall(r"\w+", ast.unparse(annotation))
            self.known[name] = next((BY_CLASS[word] for word in words if word in BY_CLASS), None)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.learn(node.target.id, node.annotation)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for name, value in zip(names, values, strict=False):
                if isinstance(name, ast.Name) and isinstance(value, ast.Name | ast.Attribute):
                    self.known[name.id] = self.type_of(value)
        self.generic_visit(node)


def reads(source: str) -> set[Read]:
    """What a piece of source reads of the nouns, and the names that it uses."""
    visitor = Reads()
    visitor.visit(ast.parse(source))
    return visitor.found


def offered() -> dict[Read, set[Read]]:
    """What the properties and plain functions of `spec/` read. Validators and fields are not looked at."""
    found: dict[Read, set[Read]] = {}
    for path in (SOURCE / "spec").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            owner = BY_CLASS.get(node.name) if isinstance(node, ast.ClassDef) else None
            for function in node.body if owner is not None else [node]:
                decorators = [ast.unparse(name) for name in getattr(function, "decorator_list", [])]
                if isinstance(function, ast.FunctionDef) and (owner is None or "validator" not in "".join(decorators)):
                    visitor = Reads({"self": owner})
                    visitor.visit(function)
                    found[owner, function.name] = visitor.found
    return found


@pytest.fixture(scope="module")
def everything_read():
    sources = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.parent.name != "spec"]
    found: set[Read] = set().union(*map(reads, sources))
    through = offered()
    while new := set().union(*(through[read] for read in found if read in through)) - found:
        found |= new
    return found


@pytest.mark.parametrize("noun", sorted(NOUNS, key=lambda noun: noun.__name__), ids=lambda noun: noun.__name__)
def test_every_field_is_read(noun, everything_read):
    known = everything_read | FOR_PEOPLE | BY_NAME_IN_A_LOOP
    unread = [name for name in noun.model_fields if (noun, name) not in known]
    assert unread == [], f"nothing outside spec/ reads these keys of {noun.__name__}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(job: Job):\n    return job.seed", {(Job, "seed")}),
        ("def f(plan: Plan):\n    return plan.job.data.path", {(Job, "data"), (Data, "path")}),
        ("def f(x: Tokenizer):\n    return x.kind", {(Tokenizer, "kind")}),
        ("def f(x: Tokenizer | None = None):\n    return x.path", {(Tokenizer, "path")}),
        ("o = recipe.optimizer\nb = o.beta1", {(Recipe, "optimizer"), (BY_NAME["optimizer"], "beta1")}),
        ("scaling = shape.rope_scaling\nscaling.factor", {(ModelShape, "rope_scaling"), (RopeScaling, "factor")}),
        ("self.cluster.accelerator.tdp_watts.value", {(Cluster, "accelerator"), (Accelerator, "tdp_watts")}),
        ("path.name", set()),
        ("optimizer.step()", set()),
        ("def f(optimizer: torch.optim.Optimizer2):\n    optimizer.name", set()),
        ("def f(data: dict[str, int]):\n    data.path", set()),
        ("job.seed = 3", set()),
    ],
)
def test_what_counts_as_a_read(source, found):
    assert {read for read in reads(source) if read[0] in NOUNS and read[1] in read[0].model_fields} == found


def test_what_spec_reads_for_others():
    through = offered()
    assert (Layout, "tensor") in through[Layout, "ranks"]
    assert (Job, "tokens") in through[None, "total_steps"]
    assert (None, "total_steps") in through[Plan, "total_steps"]
    assert (Layout, "_check") not in through, "that a value is checked does not make it matter"
