"""What every rank does in a parity test: one step on a layout, and the loss and all gradients of it, gathered.

The step is the trainer's own: `trainer.build` makes the model, microbatches are dealt as the loop deals them, the loss
is normalised by the targets of all ranks together, and gradients are clipped by the global norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from pool import KEPT
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from thrifty.parallel.count import TrafficCounter
from thrifty.parallel.mesh import AXES, build_mesh, sharing
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Batch, Evaluation, Exchange, Layout, Recipe
from thrifty.trainer import build as trainer_build
from thrifty.trainer.build import Built, build, passes
from thrifty.trainer.clip import clip_gradients
from thrifty.trainer.islands import Islands
from thrifty.trainer.world import World

SEQUENCE = 32
LLAMA: dict[str, Any] = {
    "layers": 4, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 96, "vocab_size": 128, "max_positions": 64,
}  # fmt: skip
GPT: dict[str, Any] = {
    "layers": 4, "hidden": 64, "heads": 8, "ffn": 128, "vocab_size": 128, "max_positions": 64, "norm": "layernorm",
    "mlp": "gelu", "positions": "learned", "tied_embeddings": True, "bias": "all",
}  # fmt: skip
QWEN: dict[str, Any] = LLAMA | {"qk_norm": True, "tied_embeddings": True, "bias": "qkv"}
ODD: dict[str, Any] = QWEN | {"vocab_size": 131}  # divided by no axis
SHAPES = {"llama": LLAMA, "gpt": GPT, "qwen": QWEN, "odd": ODD, "deep": QWEN | {"layers": 8}}


@dataclass(frozen=True)
class Case:
    """One step, or several, of one model on one layout.

    Attributes:
        sequences: in a step, over all ranks; micro of them in a forward pass of a rank.
        steps: taken by the optimizer before the last one's loss and gradients are kept.
        stages: layers of each part of a pipeline where they are not spread evenly.
        islands: what islands do about each other (`recipe.exchange`).
    """

    shape: str = "llama"
    layout: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    precision: str = "fp32"
    sequences: int = 8
    micro: int = 1
    recompute: str = "none"
    compile: bool = False
    exchange: str = "fp32"
    clip: float = 0.0
    steps: int = 1
    stages: tuple[range, ...] | None = None
    islands: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return Job(model=ModelShape(**SHAPES[self.shape]), steps=self.steps, sequence_length=SEQUENCE, seed=3)

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            layout=Layout(**self.layout),
            batch=Batch(sequences=self.sequences, micro_sequences=self.micro),
            precision=self.precision,
            recompute=self.recompute,
            compile=self.compile,
            exchange=Exchange(dtype=self.exchange, **self.islands),
            evaluation=Evaluation(every_steps=0),
        )


@dataclass(frozen=True)
class Result:
    """Losses of the steps, and the gradients of the last one by unsharded name; norm before clipping."""

    losses: list[float]
    norm: float
    gradients: dict[str, torch.Tensor]


def batch_of(case: Case, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets of a step, (sequences, seq); each sequence masks another number of targets."""
    generator = torch.Generator().manual_seed(100 + step)
    shape = (case.sequences, SEQUENCE + 1)
    drawn = torch.randint(0, SHAPES[case.shape]["vocab_size"], shape, generator=generator)
    tokens, targets = drawn[:, :-1].clone(), drawn[:, 1:].clone()
    for row in range(case.sequences):
        targets[row, : (5 * row) % (SEQUENCE - 3)] = -100
    return tokens, targets


def take_steps(case: Case, look: Callable[[Built], None] | None = None) -> Result:
    """On this rank; everybody returns the same. `look` sees what is built before the last gradients are gathered."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, case.dtype))
    try:
        return _take_steps(case, look)
    finally:
        torch.set_default_dtype(before)


def _take_steps(case: Case, look: Callable[[Built], None] | None) -> Result:
    built, world = build_case(case)
    islands = Islands(built, case.recipe) if case.recipe.exchange.between_islands else None
    losses, norm = [], 0.0
    for step in range(case.steps):
        if step:
            update(built)
        built.optimizer.zero_grad(set_to_none=True)
        loss, norm = one_step(case, built, world, step, islands)
        losses.append(loss)
    if look is not None:
        look(built)
    if islands is not None:
        islands.exchange.close()
    gradients = gathered({name: whole(p.grad) for name, p in built.model.named_parameters()}, built)
    return Result(losses, norm, gradients)


def update(built: Built) -> None:
    """The optimizer's step."""
    built.optimizer.step()
    if built.tied is not None:
        built.tied.follow()


def gathered(tensors: dict[str, torch.Tensor], built: Built) -> dict[str, torch.Tensor]:
    """Those of all stages, on every rank."""
    if built.pipeline is None:
        return tensors
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, tensors)
    return {name: tensor for one in held for name, tensor in one.items()}


def build_case(case: Case) -> tuple[Built, World]:
    """What the trainer builds for this rank, among the ranks of the pool."""
    ranks = case.recipe.layout.ranks
    rank = dist.get_rank() if ranks > 1 else 0
    if ranks > 1:  # not in the process of the tests, where a reference is computed and others build meshes
        trainer_build.build_mesh = _mesh
    world = World(rank, ranks, rank, ranks, torch.device("cpu"), layout=case.recipe.layout)
    return build(case.job, case.recipe, world, case.stages), world


@lru_cache(maxsize=None)
def _mesh_of(sizes: tuple[int, ...]) -> DeviceMesh:
    mesh = build_mesh(Layout(**dict(zip(AXES, sizes, strict=True))), "cpu")
    KEPT.update(mesh.get_all_groups() + [sharing(mesh).get_group()])
    return mesh


def _mesh(layout: Layout, _: str) -> DeviceMesh:
    """One mesh of each shape for all tests of a rank: torch remembers, by shape, what it has worked out for one."""
    return _mesh_of(tuple(getattr(layout, axis) for axis in AXES))


def one_step(
    case: Case, built: Built, world: World, step: int, islands: Islands | None = None
) -> tuple[float, float]:
    """Loss and gradient norm of a step, whose gradients are left clipped in the parameters."""
    tokens, targets = batch_of(case, step)
    counted = int((targets != -100).sum())
    recipe = case.recipe
    scale = world.averaged_ranks / counted
    tokens, targets = world.own_tokens(tokens), world.own_tokens(targets)
    mine = [(i * world.data_ranks + world.data_rank) * case.micro for i in range(recipe.accumulation)]
    rows = [slice(first, first + case.micro) for first in mine]
    before_last = islands.expect_last if islands is not None else lambda: None
    losses = passes(built, [(tokens[part], targets[part]) for part in rows], scale, before_last=before_last)
    total = sum(float(loss) for loss in losses) * world.counts_loss
    for finish in built.finish:
        finish()
    if islands is not None:
        islands.average_gradients()
    if world.size > 1:
        message = torch.tensor([total], dtype=torch.float64)
        dist.all_reduce(message)
        total = float(message)
    norm = clip_gradients(list(built.model.parameters()), case.clip, built.norm_groups, built.counted_elsewhere)
    return total / counted, float(norm)


def watch_a_step(case: Case) -> tuple[list[tuple[str, int, int]], dict[Any, int]]:
    """What this rank of a pipeline computed in one step, in order, and the messages and collectives it started."""
    built, world = build_case(case)
    tokens, targets = map(world.own_tokens, batch_of(case, 0))
    assert built.pipeline is not None and case.recipe.layout.data_ranks == 1
    with TrafficCounter(lambda _: "link") as traffic:
        built.pipeline.step(tokens, targets, 1.0)
        for finish in built.finish:
            finish()
        clip_gradients(list(built.model.parameters()), case.clip, built.norm_groups, built.counted_elsewhere)
        calls = {(kind, group, size): count for (kind, group, size, _), count in traffic.calls.items()}
    return [(span.kind, span.part, span.microbatch) for span in built.pipeline.events], calls


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the whole tensor, on every rank that holds a part of it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def bound(dtype: str, terms: int, layers: int) -> float:
    """Largest relative error that rounding explains, in the Frobenius norm of one gradient.

    A sum of n terms in another order differs by sqrt(n) eps (Higham & Mary 2019, doi:10.1137/18M1226312); a block has
    about 8 such sums in series forward and 16 backward, and a gradient passes at most all blocks and the head.
    """
    eps = torch.finfo(getattr(torch, dtype)).eps
    return 24 * (layers + 1) * math.sqrt(terms) * eps


def compare(one: Result, other: Result, allowed: float) -> list[str]:
    """What differs by more than is allowed, in words.

    A gradient that cancels (a bias of keys moves all scores of a query alike) is held to the root mean square of all.
    """
    found = []
    for step, (a, b) in enumerate(zip(one.losses, other.losses, strict=True)):
        if abs(a - b) > allowed * abs(a):
            found.append(f"loss of step {step}: {a} and {b}")
    if abs(one.norm - other.norm) > allowed * one.norm:
        found.append(f"gradient norm: {one.norm} and {other.norm}")
    if one.gradients.keys() != other.gradients.keys():
        found.append(f"names: {one.gradients.keys() ^ other.gradients.keys()}")
        return found
    usual = one.norm / math.sqrt(len(one.gradients))
    for name, gradient in one.gradients.items():
        size = max(float(gradient.norm()), usual)
        error = float((gradient - other.gradients[name]).norm())
        if error > allowed * size:
            found.append(f"{name}: relative error {error / size:.2e}, allowed {allowed:.2e}")
    return found
