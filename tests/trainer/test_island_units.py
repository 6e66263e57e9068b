"""What crosses islands together: the trainer's units are those that are priced."""

from __future__ import annotations

import math

import pytest
import torch

from thrifty.catalog import lookup
from thrifty.cost.crossing import UNIT_VALUES, exchanged
from thrifty.model.transformer import Transformer
from thrifty.spec import ModelShape, Recipe
from thrifty.spec.load import build
from thrifty.trainer.islands import units


@pytest.mark.parametrize(("model", "number"), [("tiny-1m", 2), ("gpt2-124m", 13)])
def test_small_blocks_cross_together_and_large_ones_alone(model: str, number: int) -> None:
    shape = build(ModelShape, lookup.model(model), "")
    exchange = {"codec": "int8"}
    batch = {"sequences": 2, "micro_sequences": 1}
    recipe = Recipe.model_validate({"layout": {"island": 2}, "batch": batch, "exchange": exchange})
    with torch.device("meta"):
        found = units(Transformer(shape, precision="fp32"), recipe)
    sizes = [sum(parameter.numel() for parameter in unit.values()) for unit in found]
    priced = exchanged(shape, recipe.layout, 1, 1, None, (0, 0, 0))
    assert sizes == [sum(map(math.prod, unit.shapes)) for unit in priced for _ in range(unit.number)]
    assert len(sizes) == number
    assert all(size >= UNIT_VALUES for size in sizes[:-1])
    first, last = list(found[0]), list(found[-1])
    assert first[0].startswith(f"blocks.{shape.layers - 1}.")
    assert "embed.weight" in last
