"""Codecs that are chosen after a warm-up: the same on every rank, kept over a checkpoint, off where nothing pays."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from thrifty.compress import Adaptive, Exchange, Feedback, Identity
from thrifty.cost.adaptive import Decision, Unit, choose
from thrifty.parallel.count import TrafficCounter

pytestmark = pytest.mark.dist

UNITS = {"loud": 5_000, "quiet": 115_000}


def gradients(step: int) -> list[dict[str, torch.Tensor]]:
    """Of this rank: one unit holds nearly all of the energy."""
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
    loud = torch.randn(UNITS["loud"], generator=generator)
    return [{"loud": loud}, {"quiet": 0.01 * torch.randn(UNITS["quiet"], generator=generator)}]


def step_of(exchange: Adaptive, step: int) -> list[dict[str, torch.Tensor]]:
    found = gradients(step)
    for unit in found:
        exchange.start(unit)
    exchange.wait()
    return found


def averaged(link_bytes_per_s: float, steps: int, stop: int | None) -> tuple[dict[str, str], torch.Tensor, int, int]:
    """Codecs, the last means, and bytes sent in the warm-up and in all; goes on from a saved state after `stop`."""

    def decide(units: list[Unit]) -> Decision | None:
        return choose(units, link_bytes_per_s=link_bytes_per_s, compute_seconds=1e-2)

    base = Exchange(Identity(), feedback=Feedback())
    exchange = Adaptive(base, decide, warmup=2)
    warm = 0
    with TrafficCounter(lambda _: "link") as traffic:
        for step in range(steps):
            means = step_of(exchange, step)
            if step == 1:
                warm = int(traffic.link_bytes["link"])
            if step == stop:
                state, settings = exchange.state_dict(), exchange.settings
                state = {key: value.clone() for key, value in state.items()}
                exchange = Adaptive(base, decide, warmup=2)
                exchange.load(settings, state, [["loud"], ["quiet"]])
        sent = int(traffic.link_bytes["link"])
    codecs = exchange.codecs
    exchange.close()
    return codecs, torch.cat([unit[name] for unit, name in zip(means, UNITS, strict=True)]), warm, sent


def test_bits_go_where_the_energy_is_and_a_resumed_exchange_goes_on(pool):
    whole = pool(2).run(averaged, 1e6, 6, None)
    codecs, means, warm, sent = whole[0]
    assert codecs["loud"] != codecs["quiet"]
    assert whole[1][0] == codecs
    assert torch.equal(whole[1][1], means)
    assert (sent - warm) / 4 < 0.2 * warm / 2
    resumed = pool(2).run(averaged, 1e6, 6, 3)
    assert resumed[0][0] == codecs
    assert torch.equal(resumed[0][1], means)


def test_on_a_fast_link_values_go_on_in_16_bits(pool):
    codecs, _, warm, sent = pool(2).run(averaged, 1e12, 4, None)[0]
    assert set(codecs.values()) == {"bf16"}
    assert (sent - warm) / 2 == pytest.approx(warm / 4, rel=0.01)
