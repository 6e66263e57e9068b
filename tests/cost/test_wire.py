"""Bytes on a link for a payload, and delays of collectives."""

from __future__ import annotations

import pytest

from thrifty.cost.fitted import PROFILES
from thrifty.cost.wire import gloo_delays, wire_share


def test_a_payload_is_counted_packet_by_packet() -> None:
    """A hundred full segments one way, with as much the other way: their packets, and an acknowledgement for two."""
    segments = 100
    data = segments * (14 + 20 + 32 + 1448)
    acknowledged = segments // 2 * (14 + 20 + 32)
    assert wire_share() == pytest.approx((data + acknowledged) / (segments * 1448))
    assert wire_share(link=0) < wire_share()
    assert 1 < wire_share(mtu=9000) < wire_share(mtu=1500)


def test_a_ring_waits_twice_a_step() -> None:
    for ranks in (2, 3, 8):
        assert gloo_delays("all_gather", ranks) == 2 * (ranks - 1)
        assert gloo_delays("all_reduce", ranks) == 2 * gloo_delays("all_gather", ranks)
        assert gloo_delays("all_to_all", ranks) == 2


def test_training_on_cpus_gets_what_headers_leave_of_a_link() -> None:
    assert PROFILES["thrifty-cpu"]["network_bandwidth"] == pytest.approx(1 / wire_share(), abs=5e-4)
