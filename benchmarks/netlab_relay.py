"""Carries packets between TUN devices late and no faster than asked: what `netlab.py` starts for links with a delay.

A packet leaves the sender's link when that is free, spends len / rate on it and the delay after that, and then
len / rate on the receiver's. What waits for a link is bounded; more is dropped, as a router would.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
import sys
import time
from dataclasses import dataclass
from typing import Any

QUEUE_SECONDS = 0.2  # of a link's rate, that may wait for it
LEAST_QUEUE_BYTES = 1 << 20
QUEUE_BYTES = 1 << 24  # where the rate has no limit
PACKETS_AT_ONCE = 64


@dataclass
class Link:
    """One rank's link: when its way up and its way down are free again, in seconds of the monotonic clock."""

    device: int
    bytes_per_s: float | None
    delay_s: float
    up_free: float = 0.0
    down_free: float = 0.0

    def queue_seconds(self) -> float:
        if self.bytes_per_s is None:
            return float("inf")
        return max(QUEUE_SECONDS, LEAST_QUEUE_BYTES / self.bytes_per_s)

    def seconds(self, size: int) -> float:
        return size / self.bytes_per_s if self.bytes_per_s else 0.0


def arrival(sender: Link, receiver: Link, size: int, now: float) -> float | None:
    """When a packet that was handed in now is there; None when a queue is full. Books it on both links."""
    left = max(now, sender.up_free) + sender.seconds(size)
    reached = max(left + sender.delay_s, receiver.down_free) + receiver.seconds(size)
    waits = (left - now, reached - left - sender.delay_s)
    if waits[0] > sender.queue_seconds() or waits[1] > receiver.queue_seconds():
        return None
    sender.up_free, receiver.down_free = left, reached
    return reached


def relay(links: list[Link]) -> None:
    """Runs until the pipe on stdin is closed: when whoever started this is gone."""
    for link in links:
        os.set_blocking(link.device, False)
    number = itertools.count()
    on_the_way: list[tuple[float, int, int, bytes]] = []
    waiting = select.poll()
    by_device = {link.device: link for link in links}
    for device in (sys.stdin.fileno(), *by_device):
        waiting.register(device, select.POLLIN | select.POLLHUP)
    queued = 0
    while True:
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            _, _, device, packet = heapq.heappop(on_the_way)
            queued -= len(packet)
            os.write(device, packet)
        left = max(0.0, (on_the_way[0][0] - time.monotonic()) * 1e3) if on_the_way else None
        for device, _ in waiting.poll(left):
            if device not in by_device:
                return
            for packet in read(device):
                to = packet[19] - 1  # last byte of the IPv4 destination: 10.77.0.RANK + 1
                if packet[0] >> 4 != 4 or not 0 <= to < len(links) or queued > QUEUE_BYTES:
                    continue
                due = arrival(by_device[device], links[to], len(packet), time.monotonic())
                if due is not None:
                    queued += len(packet)
                    heapq.heappush(on_the_way, (due, next(number), links[to].device, packet))


def read(device: int) -> list[bytes]:
    found = []
    for _ in range(PACKETS_AT_ONCE):
        try:
            found.append(os.read(device, 65536))
        except BlockingIOError:
            break
    return found


def _link(given: dict[str, Any]) -> Link:
    return Link(given["device"], given["bytes_per_s"], given["delay_s"])


if __name__ == "__main__":
    relay([_link(one) for one in json.loads(sys.argv[1])])
