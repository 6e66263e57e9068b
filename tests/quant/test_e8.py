"""Nearest points of E8 against all candidates, and codes against points."""

from __future__ import annotations

import pytest
import torch

from thrifty.quant.e8 import lattice_values, nearest_e8
from thrifty.quant.reference import nearest_point


@pytest.mark.parametrize(("bits", "spread"), [(2, 0.7), (2, 3.0), (3, 1.5), (4, 2.0), (4, 10.0), (8, 30.0)])
def test_no_point_in_range_is_nearer(bits: int, spread: float) -> None:
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(bits)) * spread
    points, codes = (side[0] for side in nearest_e8(x[None], bits))
    found = points
    told = torch.tensor([nearest_point(column.tolist(), bits) for column in x.T]).T
    torch.testing.assert_close((found - x).square().sum(0), (told - x).square().sum(0), rtol=1e-5, atol=1e-5)
    assert bool(((codes >= 0) & (codes < 2**bits) & (codes == codes.round())).all())
    assert torch.equal(lattice_values(codes.to(torch.uint8)[None], bits)[0], found)


def test_points_are_of_the_lattice() -> None:
    x = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    points = nearest_e8(x[None], 4)[0][0]
    assert bool((points.sum(0) % 2 == 0).all())
    assert bool(((points * 2) % 2 == (points[0] * 2) % 2).all())
    # Its covering radius is 1.
    assert bool(((points - x).square().sum(0) <= 1 + 1e-5).all())
