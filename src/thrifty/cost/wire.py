"""A payload on a slow link: its bytes with headers, and the delays that a collective over gloo waits for."""

from __future__ import annotations

from typing import Literal

MTU_BYTES = 1500  # of Ethernet and of most paths through the internet
IP_BYTES = 20  # IPv4 (RFC 791)
TCP_BYTES = 32  # 20, and 12 of timestamps (RFC 7323), which Linux sends
ETHERNET_BYTES = 14  # addresses and type; as an interface counts, without preamble, checksum and gap
SEGMENTS_AN_ACKNOWLEDGEMENT = 2  # RFC 1122, 4.2.3.2
FIRST_WINDOW_BYTES = 10 * (MTU_BYTES - IP_BYTES - TCP_BYTES)  # RFC 6928


def wire_share(mtu: int = MTU_BYTES, link: int = ETHERNET_BYTES) -> float:
    """Bytes on a link over bytes of payload, where as much goes one way as the other: (1514 + 66 / 2) / 1448 = 1.068.

    Payload fills segments, each with headers; every second one that comes is acknowledged by headers alone. Above
    1 Gbit/s or so, segments come in batches that are acknowledged once, and the share falls to 1514 / 1448 = 1.046.

    Args:
        mtu: largest IP packet, in bytes.
        link: header bytes of the link's own, a packet.
    """
    headers = link + IP_BYTES + TCP_BYTES
    return (mtu + link + headers / SEGMENTS_AN_ACKNOWLEDGEMENT) / (mtu - IP_BYTES - TCP_BYTES)


def gloo_delays(kind: Literal["all_gather", "all_reduce", "all_to_all"], ranks: int) -> int:
    """One-way delays that a collective over gloo waits for, besides its bytes.

    Each step of a ring takes two: the receiver tells that it is ready, then the data comes. All-to-all has one step,
    all-gather n - 1, all-reduce 2 (n - 1). Measured with 25 ms, 4 KiB, 2 to 4 ranks: docs/LAB.md.
    """
    return 2 * {"all_to_all": 1, "all_gather": ranks - 1, "all_reduce": 2 * (ranks - 1)}[kind]


def transfer_seconds(size: float, bytes_per_s: float, round_trip_s: float) -> float:
    """A message over a TCP connection that was idle: its bytes over the rate, once the window has grown to the link.

    The first round trip carries ten segments, each further one twice as much as the last (slow start, RFC 5681; Linux
    begins again after a retransmission timeout without traffic, at least 0.2 s: tcp_slow_start_after_idle).
    """
    window, waited = float(FIRST_WINDOW_BYTES), 0.0
    while window < bytes_per_s * round_trip_s and size > window:
        size, waited, window = size - window, waited + round_trip_s, 2 * window
    return waited + size / bytes_per_s
