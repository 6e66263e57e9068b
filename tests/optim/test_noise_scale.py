"""The gradient noise scale against a Gaussian model, whose answer is known, and its sources against plain sums."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from thrifty.optim import MicroSquares, NoiseScale, NormSquares
from thrifty.optim.small_gradients import square

WIDTH = 200
MEAN = torch.linspace(0.02, 0.2, WIDTH, dtype=torch.float64)
DEVIATION = torch.linspace(0.5, 3.0, WIDTH, dtype=torch.float64)
TRUTH = float(DEVIATION.square().sum() / MEAN.square().sum())


def measured(b: int, k: int, steps: int, window: int, seed: int) -> NoiseScale:
    """Gradients of k small batches of b sequences each, drawn as their means are distributed."""
    draw = torch.Generator().manual_seed(seed)
    noise = NoiseScale(window)
    for _ in range(steps):
        small = MEAN + DEVIATION / b**0.5 * torch.randn(k, WIDTH, generator=draw, dtype=torch.float64)
        small_square = float(small.square().sum(1).mean())
        noise.update(small_square, float(small.mean(0).square().sum()), small=b, big=b * k)
    return noise


@pytest.mark.parametrize(("b", "k"), [(1, 32), (8, 4), (32, 2), (32, 8), (128, 4)])
def test_within_ten_percent_of_the_analytic_answer(b: int, k: int) -> None:
    estimate = measured(b, k, steps=3000, window=2000, seed=b * k).estimate()
    assert estimate is not None
    assert estimate.value == pytest.approx(TRUTH, rel=0.1)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("z", "share"), [(1.0, 0.683), (1.96, 0.95)])
def test_intervals_cover_as_often_as_they_say(z: float, share: float) -> None:
    """300 runs: the binomial standard error of a share of 0.68 is 0.027, and the window's own variance adds to that."""
    found = [measured(8, 4, steps=150, window=60, seed=seed).estimate(z) for seed in range(300)]
    covered = sum(one is None or one.low <= TRUTH <= one.high for one in found)
    assert covered / len(found) == pytest.approx(share, abs=0.08)


def test_too_little_to_tell_is_said() -> None:
    noise = measured(1, 2, steps=4, window=100, seed=3)
    estimate = noise.estimate(3.0)
    assert estimate is None or math.isinf(estimate.high)
    assert NoiseScale().estimate() is None
    with pytest.raises(ValueError, match="tell no noise apart"):
        noise.update(1.0, 1.0, small=8, big=8)
    with pytest.raises(ValueError, match="finite"):
        noise.update(math.nan, 1.0, small=1, big=8)


@settings(max_examples=50, deadline=None)
@given(
    square=st.floats(0.01, 100),
    noise=st.floats(0.1, 1000),
    b=st.integers(1, 64),
    k=st.integers(2, 64),
    window=st.integers(2, 500),
)
def test_exact_norms_give_the_exact_ratio(square: float, noise: float, b: int, k: int, window: int) -> None:
    scale = NoiseScale(window)
    for step in range(1, 6):  # gradients shrink, their ratio stays
        scale.update(square * (1 + noise / b) / step, square * (1 + noise / (b * k)) / step, small=b, big=b * k)
    estimate = scale.estimate()
    assert estimate is not None
    assert estimate.value == pytest.approx(noise, rel=1e-6)


def test_state_goes_through_json() -> None:
    noise, again = measured(4, 4, steps=20, window=50, seed=1), NoiseScale(50)
    again.load_state_dict(json.loads(json.dumps(noise.state_dict())))
    for one in (noise, again):
        one.update(3.0, 1.0, small=4, big=16)
    assert again.estimate() == noise.estimate()
    with pytest.raises(ValueError, match="not the state"):
        again.load_state_dict({"count": 3, "sums": 4.0})


def test_hooks_see_each_microbatch_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6, bias=False)).double()
    model[2].weight = model[0].weight  # used twice in one pass
    watch = MicroSquares(model.parameters())
    batches = [torch.randn(3, 6, dtype=torch.float64) for _ in range(4)]
    alone = 0.0
    for batch in batches:
        gradients = torch.autograd.grad(model(batch).square().sum(), list(model.parameters()))
        alone += float(square(gradients))
    watch.take()  # autograd.grad ran the hooks too
    for batch in batches:
        model(batch).square().sum().backward()
    assert watch.take() == pytest.approx(alone, rel=1e-12)
    watch.on = False
    model(batches[0]).square().sum().backward()
    assert watch.take() == 0.0
    watch.on = True
    watch.remove()
    model(batches[0]).square().sum().backward()
    assert watch.take() == 0.0


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.RMSNorm(8, eps=1e-5)])
def test_norm_layers_tell_each_sequence_apart(norm: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter))
    head = nn.Linear(8, 3)
    x = torch.randn(5, 7, 8)  # (sequences, length, width)

    def loss(rows: Tensor) -> Tensor:
        return head(norm(rows)).square().sum()

    alone = sum(float(square(torch.autograd.grad(loss(x[i : i + 1]), list(norm.parameters())))) for i in range(5))
    watch = NormSquares([norm])
    loss(x).backward()
    assert watch.take() == pytest.approx(alone, rel=1e-5)
