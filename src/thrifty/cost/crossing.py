"""What this project's trainer averages over islands at once, on one rank, where islands exchange in a way of their own.

Gradients cross block by block, each as soon as it is there. Tensor ranks and stages complete some gradients after the
last backward pass; then all cross together, as parameters do after several local steps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from thrifty.cost.exchange import linear, route_of
from thrifty.cost.held import ends_of, held, kept_sizes, local_size, sharing_ranks
from thrifty.cost.params import block_shapes
from thrifty.spec.codec import stages_of
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Exchange, Layout


class Unit(NamedTuple):
    """Tensors that are averaged in one go: values of each, and how many such units a rank has."""

    name: str
    numels: tuple[int, ...]
    number: float


def by_block(layout: Layout, local_steps: int) -> bool:
    """Whether gradients cross block by block."""
    return layout.tensor == layout.pipeline == local_steps == 1


@lru_cache(maxsize=8192)
def exchanged(
    shape: ModelShape, layout: Layout, local_steps: int, runs: tuple[range, ...] | None, at: tuple[int, int, int]
) -> tuple[Unit, ...]:
    """The units of one rank: `block` and `root`, or all that is `split` and what tensor ranks hold `whole`.

    The latter is a unit of its own: a codec that saw it beside what differs between tensor ranks would not give all of
    them the same values.

    Args:
        at: stage, number among the tensor ranks, and among the ranks that share states.
    """
    stage, *among = at
    layers = held(shape, layout, "thrifty", runs)[stage].layers
    before, behind = ends_of(shape)
    root = [*(before if 0 in layers else ()), *(behind if shape.layers - 1 in layers else ())]
    if shape.tied_embeddings and shape.layers - 1 in layers and 0 not in layers:
        root += [item for item in before if item[0] == "embed.weight"]
    split = (layout.tensor, sharing_ranks(layout, "thrifty"), (among[0], among[1]))
    if by_block(layout, local_steps):
        block = kept_sizes(block_shapes(shape, layers[0]), shape, *split)
        return Unit("block", block, len(layers)), Unit("root", kept_sizes(root, shape, *split), 1)
    named = [item for layer in layers for item in block_shapes(shape, layer)] + root
    whole = [item for item in named if layout.tensor > 1 and local_size(*item, shape, layout.tensor, 1) == item[1]]
    parts = {"split": [item for item in named if item not in whole], "whole": whole}
    return tuple(Unit(name, kept_sizes(items, shape, *split), 1) for name, items in parts.items() if items)


RESIDUAL_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1 + 2 / 256}  # of a value, scales included


def state_bytes(exchange: Exchange, values: int, islands: int) -> float:
    """Bytes that a rank keeps between exchanges of so many values.

    What the codec dropped of its own values, and of the part that it sums up for the others (`cost.exchange`); with
    local steps the parameters that all islands have in common, and the outer momentum.
    """
    kept = 0.0
    stages = stages_of(exchange.codec) if exchange.codec else ()
    if stages and not linear(stages) and exchange.feedback != "none":
        parts = 1 / islands if route_of(stages, islands) == "all_to_all" else 0.0
        estimates = 2.0 if exchange.feedback == "ef21" else 1.0  # a rank's own, and their mean
        kept += RESIDUAL_BYTES[exchange.residual] * (estimates + parts) * values
    if exchange.local_steps > 1:
        kept += 4.0 * values * (2 if exchange.outer_momentum else 1)
    return kept
