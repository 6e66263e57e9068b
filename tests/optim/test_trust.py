"""LAMB, LARS and Muon: three steps whose results are known from other implementations."""

from __future__ import annotations

import pytest
import torch

from thrifty.optim import Lamb, Lars, Muon, reference

START = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
SLOPE = [[0.1, -0.2, 0.3], [-0.4, 0.5, -0.6]]
LAMB = {"lr": 0.01, "weight_decay": 0.01}
# Of timm's LAMB, pytorch_optimizer's LARS and torch's Muon, run on these three steps.
KNOWN = [
    (Lamb, LAMB, [0.0882789, 0.2116761, 0.2882488, 0.4116461, 0.4882187, 0.6116161], 2e-7),
    (
        Lamb, {**LAMB, "bias_correction": False},
        [0.0882974, 0.2116934, 0.2882880, 0.4116871, 0.4882802, 0.6116801], 2e-7,
    ),
    (Lamb, {**LAMB, "max_grad_norm": 0.5}, [0.0882785, 0.2116757, 0.2882477, 0.4116451, 0.4882171, 0.6116146], 2e-7),
    (
        Lamb, {"lr": 0.01, "weight_decay": 0.0, "always_adapt": True},
        [0.0883008, 0.2116993, 0.2883007, 0.4116993, 0.4883007, 0.6116993], 2e-7,
    ),
    (
        Lamb, {"lr": 0.01, "weight_decay": 0.0},
        [0.0750419, 0.2249583, 0.2750417, 0.4249583, 0.4750416, 0.6249583], 2e-7,
    ),
    (
        Lars, {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9},
        [0.0999631, 0.2000697, 0.2998894, 0.4001393, 0.4998156, 0.6002089], 2e-7,
    ),
    (
        Muon, {"lr": 0.01, "weight_decay": 0.01, "ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5},
        [0.1163746, 0.2016976, 0.2798730, 0.4167534, 0.4876051, 0.6076024], 1e-3,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "settings", "known", "off"), KNOWN)
def test_known_steps(make, settings, known, off):
    p = torch.nn.Parameter(torch.tensor(START))
    optimizer = make([p], **settings)
    for factor in (1.0, 0.5, -0.25):
        p.grad = factor * torch.tensor(SLOPE)
        optimizer.step()
    assert (p.detach().flatten() - torch.tensor(known)).abs().max() <= off


def test_lamb_clips_by_the_norm_of_all_tensors():
    sizes, slopes = (3.0, 4.0), torch.tensor([3.0, 4.0])  # |g| = 5 of both together
    params = [torch.nn.Parameter(torch.tensor([[size]])) for size in sizes]
    optimizer = Lamb([{"params": [params[0]]}, {"params": [params[1]]}], lr=0.1, eps=1.0, max_grad_norm=1.0)
    for p, slope in zip(params, slopes, strict=True):
        p.grad = slope.view(1, 1)
    optimizer.step()
    for p, size, slope in zip(params, sizes, slopes, strict=True):
        told = reference.lamb(
            torch.tensor([[size]]).double(), slope.double().view(1, 1), {}, lr=0.1, eps=1.0, clip=1 / 5
        )
        assert p.item() == pytest.approx(told.item(), rel=1e-6)
        assert float(optimizer.state[p]["exp_avg"]) == pytest.approx(0.1 * float(slope) / 5)


def test_the_first_step_of_lamb_is_as_long_as_lr_says():
    p = torch.nn.Parameter(torch.randn(50, 20, generator=torch.Generator().manual_seed(0)))
    before = p.detach().clone()
    p.grad = 1e-3 * torch.randn(50, 20, generator=torch.Generator().manual_seed(1))
    Lamb([p], lr=0.01).step()
    assert float((p.detach() - before).norm()) == pytest.approx(0.01 * float(before.norm()), rel=1e-5)
