"""The lab of shaped links: what it carries, counts, refuses, and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import netlab
from netlab_relay import Link, arrival
from thrifty.cost.wire import gloo_delays

HERE = Path(netlab.__file__).parent
HEADERS = 20 + 32 + 14  # IPv4, TCP with timestamps, Ethernet
SEGMENT = netlab.MTU - 20 - 32


def why_not() -> str | None:
    try:
        netlab.require()
        with netlab.netlab(ranks=1):
            return None
    except netlab.NetlabError as error:
        return str(error)


NOT_HERE = why_not()
needs_lab = pytest.mark.skipif(NOT_HERE is not None, reason=f"no lab can be built: {NOT_HERE}")

# Rank 0 receives what all others send, one connection each, and prints the bytes and the seconds.
FLOW = """
import os, socket, sys, time
rank, size, number = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(sys.argv[1])
if rank == 0:
    server = socket.create_server(("", 5000))
    peers = [server.accept()[0] for _ in range(size - 1)]
    begin, got = time.monotonic(), 0
    for peer in peers:
        peer.sendall(b"go")
    for peer in peers:
        while part := peer.recv(1 << 20):
            got += len(part)
    print(got, time.monotonic() - begin)
else:
    while True:
        try:
            peer = socket.create_connection((os.environ["MASTER_ADDR"], 5000))
            break
        except OSError:
            time.sleep(0.02)
    peer.recv(2)
    peer.sendall(bytes(number))
    peer.close()
"""
GLOO = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
for _ in range(4):
    dist.all_reduce(torch.ones(500_000))
x = torch.full((3,), float(dist.get_rank()))
dist.all_reduce(x)
print(x.tolist())
dist.destroy_process_group()
"""

# Seconds of each kind of collective, 4 KiB a rank, the mean of five in turn.
DELAYS = """
import json, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
x, y = torch.ones(1024), torch.ones(1024 * dist.get_world_size())
kinds = {
    "all_reduce": lambda: dist.all_reduce(x),
    "all_gather": lambda: dist.all_gather_into_tensor(y, x),
    "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(y), y),
}
found = {}
for kind, call in kinds.items():
    call()
    begin = time.perf_counter()
    for _ in range(5):
        call()
    found[kind] = (time.perf_counter() - begin) / 5
print(json.dumps(found))
dist.destroy_process_group()
"""


def flow(lab: netlab.Lab, number: int) -> tuple[int, float]:
    done = lab.launch([sys.executable, "-c", FLOW, str(number)], timeout=60)
    assert [one.returncode for one in done] == [0] * lab.ranks, done
    got, seconds = done[0].stdout.split()
    return int(got), float(seconds)


@needs_lab
@pytest.mark.parametrize(("rate", "delay"), [(None, None), ("100Mbit", None), ("100Mbit", "2ms")])
def test_bytes_are_those_of_the_packets(rate: str | None, delay: str | None) -> None:
    """Payload, plus the headers of each full segment, within 3% for set-up, acknowledgements and what comes again."""
    number = 3_000_000
    with netlab.netlab(ranks=2, rate=rate, delay=delay) as lab:
        assert flow(lab, number)[0] == number
        sent, received = lab.sent_bytes(), lab.received_bytes()
    headers = HEADERS - (14 if delay else 0)  # a TUN device has no Ethernet
    expected = number * (1 + headers / SEGMENT)
    assert sent[1] == pytest.approx(expected, rel=0.03)
    assert received[0] == pytest.approx(sent[1], rel=0.03)
    assert sent[0] < 0.1 * number


@needs_lab
def test_links_keep_their_rates() -> None:
    """At least the time of the bytes on the link, less a bucket of burst: no upper bound, machines may be busy."""
    with netlab.netlab(ranks=2, rate="10Mbit") as lab:
        assert flow(lab, 1_000_000)[1] > 0.5
    # Two senders of 100 Mbit/s share the 10 Mbit/s that rank 0 gets.
    with netlab.netlab(ranks=3, rate=["10Mbit", "100Mbit", "100Mbit"]) as lab:
        got, seconds = flow(lab, 500_000)
        assert got == 1_000_000
        assert seconds > 0.5


@needs_lab
def test_delay_is_added_each_way() -> None:
    code = "import os, socket, time; b = time.monotonic(); c = socket.socket(); c.connect_ex(('10.77.0.2', 9)); " \
           "print(time.monotonic() - b)"  # fmt: skip
    with netlab.netlab(ranks=2, delay="30ms") as lab:  # the port is closed: a refusal comes back
        assert float(lab.run(0, [sys.executable, "-c", code]).stdout) >= 0.06


@needs_lab
def test_torch_ranks_meet(tmp_path: Path) -> None:
    with netlab.netlab(ranks=2, rate="1Gbit") as lab:
        done = lab.launch([sys.executable, "-c", GLOO], timeout=120)
        sent = lab.sent_bytes()
    assert [one.stdout.strip() for one in done] == ["[1.0, 1.0, 1.0]"] * 2, done
    for number in sent:  # all-reduces between two ranks send the tensor once
        assert number == pytest.approx(4 * 2_000_000 * (1 + HEADERS / SEGMENT), rel=0.03)


@needs_lab
@pytest.mark.parametrize("ranks", [2, 3])
def test_collectives_wait_for_the_delays_that_are_priced(ranks: int) -> None:
    with netlab.netlab(ranks=ranks, delay="20ms") as lab:
        done = lab.launch([sys.executable, "-c", DELAYS], timeout=120)
    assert [one.returncode for one in done] == [0] * ranks, done
    took = [json.loads(one.stdout) for one in done]
    for kind in took[0]:  # a rank may find the first one half done
        assert max(one[kind] for one in took) > 0.9 * 0.02 * gloo_delays(kind, ranks), took


@needs_lab
def test_nothing_is_left_after_a_rank_was_killed() -> None:
    kill = "import os, signal, time; r = int(os.environ['RANK']); r or os.kill(os.getpid(), signal.SIGKILL); "
    with netlab.netlab(ranks=2) as lab:
        done = lab.launch([sys.executable, "-c", kill + "time.sleep(0.1)"], timeout=60)
        assert [one.returncode for one in done] == [-signal.SIGKILL, 0]
        assert {lab.namespace(0), lab.namespace(1)} <= netlab._namespaces().keys()
        stays = lab.start(1, ["sleep", "100"])
    assert stays.poll() is not None
    assert not any(pid == os.getpid() for pid in netlab._namespaces().values())


@needs_lab
def test_nothing_is_left_after_an_exception_or_sigterm() -> None:
    with pytest.raises(ZeroDivisionError), netlab.netlab(ranks=2, delay="1ms"):
        raise ZeroDivisionError
    with pytest.raises(SystemExit), netlab.netlab(ranks=2):
        signal.raise_signal(signal.SIGTERM)
    assert not any(pid == os.getpid() for pid in netlab._namespaces().values())


@needs_lab
def test_what_a_killed_lab_left_goes_at_the_next_start() -> None:
    code = "import netlab\nwith netlab.netlab(2, delay='1ms') as lab:\n    lab.start(0, ['sleep', '100'])\n" \
           "    print('up', flush=True)\n    input()\n"  # fmt: skip
    killed = subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "up\n"
        killed.kill()
    assert killed.pid in netlab._namespaces().values()
    with netlab.netlab(ranks=1):
        assert killed.pid not in netlab._namespaces().values()


@needs_lab
def test_two_labs_stand_beside_each_other() -> None:
    with netlab.netlab(ranks=1) as one:
        with netlab.netlab(ranks=2) as two:
            assert two.run(1, ["true"]).returncode == 0
        assert one.run(0, ["true"]).returncode == 0


@needs_lab
def test_a_timeout_says_who_and_a_failure_is_told() -> None:
    with netlab.netlab(ranks=2) as lab:
        with pytest.raises(TimeoutError, match="ranks \\[0, 1\\]"):
            lab.launch(["sleep", "60"], timeout=0.5)
        assert lab.run(0, ["sh", "-c", "echo out; echo err >&2; exit 3"]) == netlab.Done(0, 3, "out\n", "err\n")


@needs_lab
def test_a_failed_command_is_named() -> None:
    with pytest.raises(netlab.NetlabError, match=r"ip link add x type nonsense.*CONFIG_NET_NS"):
        netlab._call("ip", "link", "add", "x", "type", "nonsense")


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(netlab.NetlabError, match="sudo"), netlab.netlab():
        pass


def test_without_iproute2_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(netlab.NetlabError, match="apt install iproute2"), netlab.netlab():
        pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": "fast"}, "10Mbit"),
        ({"delay": "20"}, "20ms"),
        ({"rate": ["1Mbit"]}, "1 values for 2"),
        ({"ranks": 0}, "1 to 250 ranks"),
    ],
)
def test_a_bad_link_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(netlab.NetlabError, match=message), netlab.netlab(**given):
        pass


@pytest.mark.parametrize(("text", "value"), [("10Mbit", 1e7), ("1.5 Gbit/s", 1.5e9), ("64kbit", 64e3), ("9bit", 9.0)])
def test_rates_are_read(text: str, value: float) -> None:
    assert netlab.bits_per_second(text) == value


def test_packets_queue_at_both_ends_of_their_way() -> None:
    slow, fast = Link(0, 1000.0, 0.5), Link(1, 2000.0, 0.0)
    assert arrival(slow, fast, 100, now=1.0) == pytest.approx(1.0 + 0.1 + 0.5 + 0.05)
    assert arrival(slow, fast, 100, now=1.0) == pytest.approx(1.0 + 0.2 + 0.5 + 0.05)  # behind the first
    full = Link(2, 1000.0, 0.0, up_free=1e6)
    assert arrival(full, fast, 100, now=1.0) is None
    assert arrival(Link(3, None, 0.0), Link(4, None, 0.0), 100, now=1.0) == 1.0
