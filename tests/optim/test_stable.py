"""StableAdamW: a tensor's step is as much shorter as its gradients outgrew their second moment."""

from __future__ import annotations

import pytest
import torch

from optimizer_table import NONE_SMALL, parameters
from thrifty.optim import AdamW4bit, AdamW8bit

WAYS = [{"small": 0, "compiled": True}, {"small": 0, "compiled": False}, {"small": NONE_SMALL}]


def last_moves(optimizer, params, bursts):
    """Movement of each tensor in the last of four steps on gradients of 1, but for its burst in the last."""
    for step in range(4):
        before = [p.detach().clone() for p in params]
        for p, burst in zip(params, bursts, strict=True):
            p.grad = torch.full_like(p, burst if step == 3 else 1.0)
        optimizer.step()
    return [p.detach() - start for p, start in zip(params, before, strict=True)]


@pytest.mark.parametrize("make", [AdamW8bit, AdamW4bit])
@pytest.mark.parametrize("settings", WAYS)
def test_a_burst_moves_tensors_by_their_share(make, settings):
    moves = []
    for stable in (True, False):
        params = parameters([(70, 100), (3, 5)])
        optimizer = make(params, lr=0.1, weight_decay=0.0, stable=stable, **settings)
        moves.append(last_moves(optimizer, params, [30.0, 0.5]))
    (short, same), (usual, other) = moves
    v = 0.001 * (900 + 0.999 + 0.999**2 + 0.999**3) / (1 - 0.999**4)
    assert float(short.mean() / usual.mean()) == pytest.approx((v / 900) ** 0.5, rel=0.01)
    assert (v / 900) ** 0.5 < 0.6
    assert torch.allclose(same, other, rtol=0.01)  # gradients that shrink are no surprise; codes may lag by a step


def test_groups_choose_and_foreign_states_keep_the_choice():
    first, second = params = parameters([(70, 100), (70, 100)])
    groups = [{"params": [first], "stable": True}, {"params": [second]}]
    moves = last_moves(AdamW8bit(groups, lr=0.1), params, [30.0, 30.0])
    assert moves[0].abs().mean() < 0.6 * moves[1].abs().mean()
    optimizer, foreign = AdamW8bit(params, stable=True), torch.optim.AdamW(params)
    foreign.step()
    optimizer.load_state_dict(foreign.state_dict())
    assert optimizer.param_groups[0]["stable"]
