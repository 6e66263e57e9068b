"""Orthogonal matrices, in bfloat16 beside doubles, by either way."""

from __future__ import annotations

import pytest
import torch

from thrifty.optim import newton_schulz
from thrifty.optim.newton_schulz import orthogonalised, work
from thrifty.optim.reference import orthogonalised as in_doubles


def matrix(rows, columns, kind):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    sizes = {"even": s, "steep": torch.logspace(0, -4, len(s)).double(), "few": (torch.arange(len(s)) < 3) + 1e-3}
    return u * sizes[kind] @ v


@pytest.mark.parametrize("shape", [(48, 48), (48, 64), (64, 48), (48, 192), (192, 48), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_as_in_doubles(shape, dtype):
    x = matrix(*shape, "even")
    told = in_doubles(x)
    off = (orthogonalised(x[None], dtype=dtype)[0].double() - told).norm() / told.norm()
    assert off <= (1e-6 if dtype == torch.float64 else 0.04)  # the norm is of fp32


@pytest.mark.parametrize("kind", ["steep", "few"])
@pytest.mark.parametrize("steps", [5, 7])
def test_on_the_gram_matrix_no_worse_than_on_the_matrix(kind, steps, monkeypatch):
    x = matrix(64, 256, kind)
    told = in_doubles(x, steps)

    def off():
        return float((orthogonalised(x[None], steps)[0].double() - told).norm() / told.norm())

    on_gram = off()
    monkeypatch.setattr(newton_schulz, "LONG", 1e9)
    assert on_gram <= 1.1 * off()


def test_singular_values_come_near_to_one():
    for shape in ((48, 48), (32, 128)):
        values = torch.linalg.svdvals(orthogonalised(matrix(*shape, "even")[None])[0].double())
        assert values.min() > 0.3
        assert values.max() < 1.25


def test_zeros_and_nan():
    x = torch.zeros(3, 8, 32)
    x[1, 0, 0] = float("nan")
    x[2] = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    y = orthogonalised(x)
    assert (y[0] == 0).all()
    assert y[1].isnan().all()
    assert y[2].isfinite().all()


def test_work_counts_multiplications():
    assert work(4, 4) == 5 * (2 * 4**3 + 4**3)
    # 3 + 2 steps: A twice, its product with X twice; 3 + 2 squares; twice and once (a + P) A (a + P) and the product
    assert work(16, 4) == work(4, 16) == 4 * 4 * 4 * 16 + (5 + 3 * 3) * 4**3
