"""What this project's trainer averages over islands at once, on one rank, where islands exchange in a way of their own.

Gradients cross block by block, each as soon as it is there. Tensor ranks and stages complete some gradients after the
last backward pass; then all cross together, as parameters do after several local steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, TypeVar

from thrifty.cost.exchange import linear, route_of
from thrifty.cost.held import ends_of, held, kept_shapes, local_size, sharing_ranks
from thrifty.cost.params import block_shapes
from thrifty.spec.codec import stages_of
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Exchange, Layout

_Key = TypeVar("_Key")


class Unit(NamedTuple):
    """Tensors that are averaged in one go: the shape of each, and how many such units a rank has.

    Attributes:
        fragment: of the model, in whose turn the unit crosses after local steps.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    number: int
    fragment: int = 0


UNIT_VALUES = 2**19  # a unit has a cost of its own, so that small blocks cross together


def blocks_together(block_values: int, sharing: int) -> int:
    """How many blocks cross as one unit.

    Args:
        block_values: of a whole block.
        sharing: ranks that share them.
    """
    return max(1, -(-UNIT_VALUES * sharing // block_values))


def by_block(layout: Layout, local_steps: int) -> bool:
    """Whether gradients cross block by block."""
    return layout.tensor == layout.pipeline == local_steps == 1


@lru_cache(maxsize=8192)
def exchanged(
    shape: ModelShape, layout: Layout, local_steps: int, fragments: int, runs: tuple[range, ...] | None,
    at: tuple[int, int, int],
) -> tuple[Unit, ...]:  # fmt: skip
    """The units of one rank: blocks, from the last on, and `root` with those that are left; or all at once.

    Then what tensor ranks hold `whole` is a unit beside what is `split`: a codec that saw both at once would not give
    all tensor ranks the same values.

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
        block = kept_shapes(block_shapes(shape, layers[0]), shape, *split)
        values = sum(math.prod(size) for _, size in block_shapes(shape, layers[0]))
        together = blocks_together(values, split[1])
        groups, rest = divmod(len(layers), together)
        found = [Unit("block", together * block, groups)] if groups else []
        return *found, Unit("root", kept_shapes(root, shape, *split) + rest * block, 1)
    named = [item for layer in layers for item in block_shapes(shape, layer)] + root
    whole = [item for item in named if layout.tensor > 1 and local_size(*item, shape, layout.tensor, 1) == item[1]]
    parts = {"split": [item for item in named if item not in whole], "whole": whole}
    found = []
    for name, items in parts.items():
        kept = kept_shapes(items, shape, *split)
        whole_sizes = {place: math.prod(items[place][1]) for place, size in enumerate(kept) if math.prod(size)}
        lists = fragments_of(whole_sizes, fragments if local_steps > 1 else 1)
        found += [Unit(name, tuple(kept[place] for place in one), 1, turn) for turn, one in enumerate(lists)]
    return tuple(unit for unit in found if unit.shapes)


def fragments_of(sizes: Mapping[_Key, int], parts: int) -> list[list[_Key]]:
    """Tensors in lists of about equal size: the largest first, each to the list that has least (Graham 1969)."""
    lists: list[list[_Key]] = [[] for _ in range(parts)]
    held = [0] * parts
    order = {key: place for place, key in enumerate(sizes)}
    for key in sorted(sizes, key=lambda key: (-sizes[key], order[key])):
        least = min(range(parts), key=lambda part: (held[part], part))
        lists[least].append(key)
        held[least] += sizes[key]
    return [sorted(keys, key=order.__getitem__) for keys in lists]


def due(fragment: int, fragments: int, every: int) -> int:
    """The step of a round, counted from 0, after which a fragment crosses: they are spread evenly."""
    return (fragment + 1) * every // fragments % every


def exchanges(fragment: int, exchange: Exchange, steps: int) -> int:
    """How often a fragment crosses in a run: in its turn, and once more at the end for what came after."""
    every = exchange.local_steps
    turn = due(fragment, exchange.fragments, every)
    times = (steps - turn) // every + (turn > 0) if steps >= turn else 0
    return times + (steps % every != turn)


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
