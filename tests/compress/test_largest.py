"""The search for the largest of a row against a sort of all of it."""

from __future__ import annotations

import math

import pytest
import torch

from thrifty.compress.largest import largest, largest_of_all, places_of


def rows(name: str, columns: int) -> torch.Tensor:
    x = torch.randn(40, columns, generator=torch.Generator().manual_seed(7))
    match name:
        case "heavy":
            return x**7
        case "bf16":
            return x.bfloat16()
        case "fp16":
            return x.half()
        case "rows of zeros":
            return x * (torch.arange(40) % 3 == 0)[:, None]
        case "almost all zeros":
            return torch.where(x > 3, x, 0.0)
        case "one value":
            return torch.full_like(x, -0.3)
        case "few values":
            return (x * 2).round()
        case "nan and inf":
            return torch.where(x > 3, math.nan, torch.where(x < -3, -math.inf, x))
        case "subnormal":
            return x * 1e-41
        case "in one corner":
            return torch.where(torch.arange(columns) < columns // 16, x * 100, x)
    return x


@pytest.mark.parametrize(
    "name",
    [
        "gaussian", "heavy", "bf16", "fp16", "rows of zeros", "almost all zeros", "one value", "few values",
        "nan and inf", "subnormal", "in one corner",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("columns", "keep"), [(4096, 64), (256, 1), (64, 4)])
def test_the_search_finds_as_large_ones_as_a_sort(name: str, columns: int, keep: int) -> None:
    x = rows(name, columns)
    found = largest(x, keep, compiled=True)
    assert bool((found[:, 1:] > found[:, :-1]).all())
    size = x.float().abs().nan_to_num(math.inf, math.inf)
    told = size.sort(1, descending=True).values[:, :keep]
    assert torch.equal(size.gather(1, found).sort(1, descending=True).values, told)


@pytest.mark.parametrize("numel", [1, 100, 70_000, 300_001])
@pytest.mark.parametrize("share", [1e-4, 1 / 64, 0.5, 1.0])
@pytest.mark.parametrize("heavy", [1, 9])
def test_a_threshold_leaves_the_largest_of_all(numel: int, share: float, heavy: int) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel)) ** heavy
    keep = math.ceil(numel * share)
    found = largest_of_all(x, keep, seed=3)
    assert bool((found[1:] > found[:-1]).all())
    assert torch.equal(x[found].abs().sort().values, x.abs().sort().values[numel - keep :])


def test_a_sample_that_misses_what_is_large_does_not_matter() -> None:
    x = torch.zeros(1 << 18)
    x[77_777:77_877] = 1.0
    assert {*range(77_777, 77_877)} <= set(largest_of_all(x, 200, seed=1).tolist())


def test_of_equal_ones_the_first_are_kept() -> None:
    x = torch.zeros(3, 256)
    x[1, 100:110] = 1.0
    x[1, 7] = -2.0
    x[2] = torch.arange(256)
    found = largest(x, 4, compiled=True)
    assert found[1].tolist() == [7, 100, 101, 102]
    assert found[2].tolist() == [252, 253, 254, 255]


def test_places_of_ones() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    assert places_of(mask).tolist() == [1, 2, 5]
