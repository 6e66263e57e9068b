"""Orthogonal matrices, in bfloat16 beside doubles, by either way."""

from __future__ import annotations

import pytest
import torch

from thrifty.cost.muon import work
from thrifty.optim import Muon, newton_schulz
from thrifty.optim.newton_schulz import orthogonalised
from thrifty.optim.reference import orthogonalised as in_doubles

JORDAN = (3.4445, -4.7750, 2.0315)


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
    assert off <= (1e-5 if dtype == torch.float64 else 0.08)  # the norm is of fp32


@pytest.mark.parametrize("kind", ["steep", "few"])
@pytest.mark.parametrize("steps", [5, 7])
def test_on_the_gram_matrix_no_worse_than_on_the_matrix(kind, steps, monkeypatch):
    x = matrix(64, 256, kind)
    told = in_doubles(x, steps)

    def off():
        return float((orthogonalised(x[None], steps)[0].double() - told).norm() / told.norm())

    on_gram = off()
    monkeypatch.setattr(newton_schulz, "LONG", 1e9)
    assert on_gram <= 1.2 * off()


@pytest.mark.parametrize("shape", [(96, 96), (64, 256)])
@pytest.mark.parametrize("fall", [0, 1, 2, 3, 4])
def test_four_steps_are_as_orthogonal_as_five_of_jordan(shape, fall):
    x = matrix(*shape, "even")
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.logspace(0, -fall, len(u)) @ v if fall else x
    ours = torch.linalg.svdvals(orthogonalised(x[None])[0].double())
    theirs = torch.linalg.svdvals(orthogonalised(x[None], 5, JORDAN)[0].double())
    for part in (0.05, 0.1, 0.5):
        assert ours.quantile(part) >= min(0.8, float(theirs.quantile(part)))
    assert ours.max() <= 1.22


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 8])
def test_more_steps_bring_smaller_values_to_one(steps):
    x = matrix(64, 256, "even")
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.logspace(0, -4, len(u)) @ v
    less, more = (torch.linalg.svdvals(orthogonalised(x[None], n)[0].double()) for n in (steps, steps + 1))
    assert more.max() <= 1.25
    assert more.min() > min(0.75, 1.5 * float(less.min()))


def test_coefficients_of_torch_give_what_torch_gives():
    p, q = (torch.nn.Parameter(matrix(48, 40, "even").float()) for _ in range(2))
    ours, theirs = Muon([p], ns_coefficients=JORDAN, ns_steps=5), torch.optim.Muon([q])
    for step in range(3):
        p.grad = q.grad = torch.randn(48, 40, generator=torch.Generator().manual_seed(step))
        ours.step()
        theirs.step()
    assert (p - q).abs().max() <= 3 * 1e-3 * 0.03


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
    assert work(4, 4) == 4 * (2 * 4**3 + 4**3)
    # 2 + 2 steps: A twice, its product with X twice; 2 + 2 squares; once and once (a + P) A (a + P) and the product
    assert work(16, 4) == work(4, 16) == 4 * 4 * 4 * 16 + (4 + 2 * 3) * 4**3
