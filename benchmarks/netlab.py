"""Ranks on this machine behind links of a chosen rate and delay: network namespaces joined by a bridge. Needs root.

    with netlab(ranks=2, rate="100Mbit", delay="20ms") as lab:
        done = lab.launch([sys.executable, "-m", "thrifty", "train", "plan.yaml"])
        print(done[0].returncode, lab.sent_bytes(), lab.received_bytes())

    sudo python benchmarks/netlab.py --ranks 2 --rate 100Mbit -- python job.py

Each rank is a host of its own, with the environment that torchrun would give it. Without a delay its interface is one
end of a veth pair whose other end is a port of a bridge, and a token bucket at each end shapes what goes up and what
comes down. With one it is a TUN device, and a relay passes packets on (`netlab_relay.py`; netem is often not built).

Bytes are what an Ethernet card would count, headers included: read from the queues of the veth pair, which count the
headers of every packet; the interfaces themselves count a batch of up to 64 KiB that stays one as one packet.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

PREFIX = "netlab"  # of namespaces: netlab-PID-NUMBER-RANK, and netlab-PID-NUMBER-hub
DEVICE = "lab0"  # the interface inside a namespace
MTU = 1500
PORT = 29500
BITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_RELAY = Path(__file__).with_name("netlab_relay.py")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_NUMBERS = itertools.count()  # of labs of this process
_GRACE_SECONDS = 10.0  # for the other ranks to notice that one has failed


class NetlabError(RuntimeError):
    """The lab cannot be built here: what failed, and what would help."""


@dataclass(frozen=True)
class Done:
    """How one rank's process ended."""

    rank: int
    returncode: int
    stdout: str
    stderr: str


@dataclass
class Lab:
    """A running lab. Addresses are 10.77.0.1, 10.77.0.2, ... in rank order."""

    ranks: int
    name: str
    relayed: bool
    folder: Path
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def namespace(self, rank: int) -> str:
        return f"{self.name}-{rank}"

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun would set on a machine with one rank, and the interface for gloo and NCCL."""
        return {
            "RANK": str(rank), "WORLD_SIZE": str(self.ranks), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": address(0), "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": DEVICE, "NCCL_SOCKET_IFNAME": DEVICE, "TP_SOCKET_IFNAME": DEVICE,
        }  # fmt: skip

    def start(self, rank: int, argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a command as one rank; its output goes to `stdout-RANK` and `stderr-RANK` in `folder`."""
        command = ["ip", "netns", "exec", self.namespace(rank), *map(str, argv)]
        environment = os.environ | self.environment(rank) | dict(env or {})
        with open(self.folder / f"stdout-{rank}", "wb") as out, open(self.folder / f"stderr-{rank}", "wb") as err:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self._processes.append(process)
        return process

    def run(
        self, rank: int, argv: Sequence[str], env: Mapping[str, str] | None = None, *, timeout: float = 300.0
    ) -> Done:
        """Runs a command as one rank to its end."""
        return self._wait({rank: self.start(rank, argv, env)}, timeout)[0]

    def launch(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, timeout: float = 300.0
    ) -> list[Done]:
        """Runs a command as every rank. When one fails the others get 10 s to notice, and are killed then.

        Raises:
            TimeoutError: not all ended within `timeout` seconds; all are killed.
        """
        return self._wait({rank: self.start(rank, argv, env) for rank in range(self.ranks)}, timeout)

    def _wait(self, running: dict[int, subprocess.Popen[bytes]], timeout: float) -> list[Done]:
        late = time.monotonic() + timeout
        limit, failed = late, False
        while any(process.poll() is None for process in running.values()) and time.monotonic() < limit:
            if not failed and any(process.returncode for process in running.values()):
                failed, limit = True, min(limit, time.monotonic() + _GRACE_SECONDS)
            time.sleep(0.02)
        stuck = [rank for rank, process in running.items() if process.returncode is None]
        for rank in stuck:
            running[rank].kill()
            running[rank].wait()
        if stuck and not failed:
            raise TimeoutError(f"ranks {stuck} still ran after {timeout:g} s: {self._told(stuck[0], 'stderr')[-800:]}")
        return [
            Done(rank, process.returncode, self._told(rank, "stdout"), self._told(rank, "stderr"))
            for rank, process in running.items()
        ]

    def _told(self, rank: int, stream: str) -> str:
        return (self.folder / f"{stream}-{rank}").read_text(errors="replace")

    def sent_bytes(self) -> list[int]:
        """Bytes that each rank has put on its link, headers included."""
        if self.relayed:
            return [_interface(self.namespace(rank))["tx"] for rank in range(self.ranks)]
        return [_queued(self.namespace(rank), DEVICE) for rank in range(self.ranks)]

    def received_bytes(self) -> list[int]:
        """Bytes that each rank has got from its link, headers included."""
        if self.relayed:
            return [_interface(self.namespace(rank))["rx"] for rank in range(self.ranks)]
        return [_queued(f"{self.name}-hub", f"port{rank}") for rank in range(self.ranks)]


def address(rank: int) -> str:
    return f"10.77.0.{rank + 1}"


@contextlib.contextmanager
def netlab(
    ranks: int = 2, rate: str | Sequence[str | None] | None = None, delay: str | Sequence[str] | None = None
) -> Iterator[Lab]:
    """A lab that is gone after the block, whatever ends it. What a killed one left behind goes at the next start.

    Args:
        rate: of each rank's link, both ways at once: `100Mbit`, `1.5Gbit`; none = as fast as the machine; a list gives
            each rank its own.
        delay: that each rank's link adds to what it sends: `20ms` makes a round trip of 40 ms between two ranks.

    Raises:
        NetlabError: not root, or the kernel or a tool lacks something; says which command failed.
    """
    rates = [None if one is None else bits_per_second(one) for one in _each(rate, ranks, "rate")]
    delays = [0.0 if one is None else seconds(one) for one in _each(delay, ranks, "delay")]
    if not 1 <= ranks <= 250:
        raise NetlabError(f"a lab has 1 to 250 ranks, not {ranks}")
    require()
    sweep()
    with tempfile.TemporaryDirectory(prefix="netlab-") as folder, contextlib.ExitStack() as stack:
        lab = Lab(ranks, f"{PREFIX}-{os.getpid()}-{next(_NUMBERS)}", any(delays), Path(folder))
        stack.enter_context(_ends_on_sigterm())
        stack.callback(_remove, lab.name)
        for rank in range(ranks):
            _call("ip", "netns", "add", lab.namespace(rank))
            _call("ip", "-n", lab.namespace(rank), "link", "set", "lo", "up")
        if lab.relayed:
            stack.enter_context(_relay(lab, rates, delays))
        else:
            _bridge(lab, rates)
        try:
            yield lab
        finally:
            for process in lab._processes:
                process.kill()
                process.wait()


def _each(given: str | Sequence[str | None] | None, ranks: int, name: str) -> list[str | None]:
    if given is None or isinstance(given, str):
        return [given] * ranks
    if len(given) != ranks:
        raise NetlabError(f"{name} has {len(given)} values for {ranks} ranks: give one for all, or one for each")
    return list(given)


def bits_per_second(text: str) -> float:
    """`100Mbit`, `1.5 Gbit/s`, `64kbit`."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmg]?)bit(?:/s)?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise NetlabError(f"{text!r} is no rate: write 10Mbit, 1.5Gbit, 64kbit")
    return float(found[1]) * BITS[found[2].lower()]


def seconds(text: str) -> float:
    """`20ms`, `500us`, `0.1s`."""
    found = re.fullmatch(r"\s*([\d.]+)\s*(us|ms|s)\s*", text)
    if found is None:
        raise NetlabError(f"{text!r} is no delay: write 20ms, 500us, 0.1s")
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]


def require() -> None:
    """Raises NetlabError where no lab can be built at all."""
    if os.geteuid() != 0:
        raise NetlabError("network namespaces need root: run this with sudo")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise NetlabError(f"{tool} is not here: apt install iproute2")


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines()
        hint = "the kernel needs CONFIG_NET_NS, VETH, BRIDGE, NET_SCH_TBF, TUN; a container needs CAP_NET_ADMIN"
        raise NetlabError(f"`{' '.join(command)}` failed: {told[0] if told else done.returncode}; {hint}")
    return done.stdout


def _bridge(lab: Lab, rates: Sequence[float | None]) -> None:
    hub = f"{lab.name}-hub"
    _call("ip", "netns", "add", hub)
    _call("ip", "-n", hub, "link", "add", "bridge0", "type", "bridge")
    _call("ip", "-n", hub, "link", "set", "bridge0", "up")
    for rank, rate in enumerate(rates):
        own, port = lab.namespace(rank), f"port{rank}"
        _call("ip", "-n", hub, "link", "add", port, "mtu", str(MTU), "type", "veth", "peer", "name", DEVICE,
              "mtu", str(MTU), "netns", own)  # fmt: skip
        _call("ip", "-n", hub, "link", "set", port, "master", "bridge0", "up")
        _call("ip", "-n", own, "addr", "add", f"{address(rank)}/24", "dev", DEVICE)
        _call("ip", "-n", own, "link", "set", DEVICE, "up")
        _congestion(own)
        for where, device in ((own, DEVICE), (hub, port)):
            _call("tc", "-n", where, "qdisc", "replace", "dev", device, "root", *_shaped(rate))


def _congestion(namespace: str) -> None:
    """Linux's usual congestion control, whatever this machine has set: BBR loses 6% of 10 Mbit/s to its probing."""
    _call("ip", "-n", namespace, "route", "change", "10.77.0.0/24", "dev", DEVICE, "congctl", "cubic")


def _shaped(rate: float | None) -> list[str]:
    """A token bucket, or a plain queue that counts. A bucket must hold what passes between two timer ticks (4 ms)."""
    if rate is None:
        return ["pfifo", "limit", "10000"]
    burst = max(16 * 1024, int(rate / 8 * 0.004))
    queue = max(1 << 20, int(rate / 8 * 0.2))
    return ["tbf", "rate", f"{rate:.0f}bit", "burst", str(burst), "limit", str(queue)]


@contextlib.contextmanager
def _relay(lab: Lab, rates: Sequence[float | None], delays: Sequence[float]) -> Iterator[None]:
    """TUN devices, opened here and moved into the namespaces, and the process that carries packets between them."""
    with contextlib.ExitStack() as stack:
        devices = []
        for rank in range(lab.ranks):
            try:
                device = os.open("/dev/net/tun", os.O_RDWR)
            except OSError as error:
                raise NetlabError(f"a delay needs /dev/net/tun: {error.strerror}; try modprobe tun") from None
            stack.callback(os.close, device)
            outside = f"nl{os.getpid()}x{rank}"  # at most 15 characters
            try:
                fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", outside.encode(), _IFF_TUN | _IFF_NO_PI))
            except OSError as error:
                raise NetlabError(f"a TUN device could not be made: {error.strerror}") from None
            own = lab.namespace(rank)
            _call("ip", "link", "set", outside, "netns", own, "name", DEVICE)
            _call("ip", "-n", own, "addr", "add", f"{address(rank)}/24", "dev", DEVICE)
            _call("ip", "-n", own, "link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "2000", "up")
            _congestion(own)
            devices.append(device)
        links = [
            {"device": device, "bytes_per_s": rate / 8 if rate else None, "delay_s": delay}
            for device, rate, delay in zip(devices, rates, delays, strict=True)
        ]
        process = subprocess.Popen(
            [sys.executable, str(_RELAY), json.dumps(links)], stdin=subprocess.PIPE, pass_fds=devices
        )
        try:
            yield
        finally:
            process.kill()
            process.communicate()


def _queued(namespace: str, device: str) -> int:
    queues = json.loads(_call("tc", "-n", namespace, "-s", "-j", "qdisc", "show", "dev", device))
    return int(next(queue["bytes"] for queue in queues if queue.get("root")))


def _interface(namespace: str) -> dict[str, int]:
    (link,) = json.loads(_call("ip", "-n", namespace, "-s", "-j", "link", "show", "dev", DEVICE))
    return {way: int(link["stats64"][way]["bytes"]) for way in ("rx", "tx")}


def _namespaces() -> dict[str, int]:
    """Namespaces of labs, and the process that made each."""
    found = (line.split()[0] for line in _call("ip", "netns", "list").splitlines() if line)
    matches = ((name, re.fullmatch(rf"{PREFIX}-(\d+)-\d+-\w+", name)) for name in found)
    return {name: int(match[1]) for name, match in matches if match}


def sweep() -> list[str]:
    """Removes labs whose process is gone, and what still runs in them."""
    gone = sorted(name for name, pid in _namespaces().items() if not Path(f"/proc/{pid}").exists())
    for name in {name.rpartition("-")[0] for name in gone}:
        _remove(name)
    return gone


def _remove(lab: str) -> None:
    for name in _namespaces():
        if name.rpartition("-")[0] != lab:
            continue
        for pid in _call("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _call("ip", "netns", "del", name)


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as an exception does, so that the lab is taken down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rate", help="of each link, such as 100Mbit")
    parser.add_argument("--delay", help="that each link adds, such as 20ms")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds")
    parser.add_argument("command", nargs="+", help="what every rank runs; after --")
    asked = parser.parse_args()
    try:
        with netlab(asked.ranks, asked.rate, asked.delay) as lab:
            done = lab.launch(asked.command, timeout=asked.timeout)
            sent, received = lab.sent_bytes(), lab.received_bytes()
    except NetlabError as error:
        raise SystemExit(f"netlab: {error}") from None
    for one in done:
        print(one.stdout, end="")
        print(one.stderr, end="", file=sys.stderr)
        print(f"rank {one.rank}: exit {one.returncode}, sent {sent[one.rank]:,} B, received {received[one.rank]:,} B")
    raise SystemExit(max(abs(one.returncode) for one in done))


if __name__ == "__main__":
    main()
