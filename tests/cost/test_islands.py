"""Islands with unequal links: closed forms, what never happens, and the equal case beside the plan's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.cost import island_links
from thrifty.cost.island_links import Island, everyone_to_everyone, ring
from thrifty.cost.islands import Scheme, hops, simulate
from thrifty.cost.payload import payload_bytes
from thrifty.cost.traffic import Hop, collective
from thrifty.cost.wire import FIRST_WINDOW_BYTES, gloo_delays
from thrifty.spec.codec import stages_of
from thrifty.spec.errors import ThriftyError

SPARSE = "topk(1/64) + means2"
VALUES = 1_000_000
BF16 = 2.0 * VALUES
EQUAL = Island("equal", 1.0, 1e6, 1e6, 0.005)  # a window of ten segments holds what is under way on this link

SCHEMES = [
    Scheme(),
    Scheme(local_steps=8),
    Scheme("all_to_all", "int8"),
    Scheme("all_to_all", "int4", local_steps=8, fragments=4, delay=1),
    Scheme("all_gather", SPARSE, local_steps=8),
    Scheme("all_to_all", "int4", local_steps=8, gather="direct"),
    Scheme("all_gather", SPARSE, local_steps=8, fragments=2, delay=4),
]
rates = st.floats(1e4, 1e8)
some_islands = st.lists(
    st.builds(Island, st.just("x"), st.floats(0.01, 10), rates, rates, st.floats(0, 0.2)), min_size=2, max_size=7
)


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize(
    ("kind", "scheme", "hops", "handed_in"),
    [
        ("all_reduce", Scheme(), 1, lambda n: BF16),
        ("all_gather", Scheme("all_gather", SPARSE), 1, lambda n: payload_bytes(stages_of(SPARSE), (VALUES,))),
        ("all_gather", Scheme("all_to_all", "int8"), 2, lambda n: payload_bytes(stages_of("int8"), (-(-VALUES // n),))),
    ],
)
def test_equal_islands_are_the_plans_arithmetic(n, kind, scheme, hops, handed_in):
    """`cost.traffic` has the collective's seconds and bytes; its latency is the delays that the kind waits for."""
    delays = gloo_delays(kind, n) * EQUAL.latency_s
    way = Hop("inter_island", EQUAL.up, delays)
    one = collective(kind, "x", "step", "island", handed_in(n), 1, way, n, (1.0, 1.0))
    found = simulate([EQUAL] * n, VALUES, scheme)
    other = (gloo_delays("all_to_all", n) - gloo_delays("all_gather", n)) * EQUAL.latency_s * (hops - 1)
    assert found.seconds == pytest.approx(EQUAL.compute_s + hops * one.seconds + other)
    assert found.sent == pytest.approx([hops * one.sent_bytes] * n)
    assert found.received == pytest.approx(found.sent)


def test_local_steps_of_equal_islands_share_the_exchange():
    every, rare = simulate([EQUAL] * 4, VALUES, Scheme()), simulate([EQUAL] * 4, VALUES, Scheme(local_steps=10))
    assert rare.seconds - every.seconds == pytest.approx(9 * EQUAL.compute_s)
    assert rare.sent == every.sent
    assert rare.utilisation == pytest.approx([10 / rare.seconds] * 4)
    assert rare.steps_per_s == pytest.approx(40 / rare.seconds)


def test_the_slowest_sender_is_waited_for():
    """One message to each of two others, 1 MB at 1e5 bytes/s: 20 s after it is ready, whatever the others have."""
    islands = [EQUAL, EQUAL, replace(EQUAL, up=1e5)]
    done, limit = everyone_to_everyone(islands, [0.0, 0.0, 0.0], range(3), 1e6)
    assert done == pytest.approx([20.01, 20.01, 20.0])
    assert (limit.part, limit.island) == ("up-link", 2)


def test_the_slowest_receiver_holds_up_itself():
    islands = [EQUAL, EQUAL, replace(EQUAL, down=1e5)]
    done, limit = everyone_to_everyone(islands, [0.0, 0.0, 0.0], range(3), 1e6)
    assert done == pytest.approx([2.01, 2.01, 20.01])
    assert (limit.part, limit.island) == ("down-link", 2)


def test_what_comes_last_still_has_to_pass():
    done, _ = everyone_to_everyone([EQUAL, EQUAL, replace(EQUAL, down=1e5)], [0.0, 50.0, 0.0], range(3), 1e6)
    assert done[2] == pytest.approx(50 + 0.01 + 10)


def test_a_window_has_to_grow_on_a_long_link_and_only_once():
    far = [replace(EQUAL, latency_s=0.1)] * 2  # 200 KB are under way; windows of 14, 29, 58, 116 KB come first
    lost = 4 * 0.2 - (1 + 2 + 4 + 8) * FIRST_WINDOW_BYTES / 1e6
    done, _ = ring(far, [0.0, 0.0], 1e6, 2)
    assert done == pytest.approx([2 * 1.2 + lost] * 2)
    assert ring(far, [0.0, 0.0], 1e6, 2, idle=False)[0] == pytest.approx([2.4, 2.4])
    assert everyone_to_everyone(far, [0.0, 0.0], [0, 1], 1e6)[0] == pytest.approx([1.2 + lost] * 2)
    assert everyone_to_everyone(far, [0.0, 0.0], [0, 1], 1e4)[0] == pytest.approx([0.21] * 2), "fits the first window"


def test_a_ring_waits_for_its_slowest_hop_each_time():
    islands = [replace(EQUAL, latency_s=0.0)] * 3 + [Island("slow", 1.0, 1e4, 1e6)]
    done, limit = ring(islands, [0.0] * 4, 1e6, 6)
    assert max(done) == pytest.approx(2 * 3 * 100, rel=0.02)
    assert (limit.part, limit.island) == ("up-link", 3)


def test_followed_ring_is_within_its_bound(monkeypatch):
    islands = [Island("x", 1.0, 1e6 * (1 + i % 3), 1e6 * (1 + i % 5), 0.01 * (i % 2)) for i in range(12)]
    followed, _ = ring(islands, [0.1 * i for i in range(12)], 1e6, 22)
    monkeypatch.setattr(island_links, "RING_EXACT", 2)
    bound, _ = ring(islands, [0.1 * i for i in range(12)], 1e6, 22)
    assert max(followed) <= max(bound)
    assert max(followed) > 0.3 * max(bound)


def test_unequal_compute_waits_for_the_slowest_unless_steps_follow_speed():
    islands = [Island("fast", 1.0, 1e9, 1e9), Island("slow", 4.0, 1e9, 1e9)]
    plain = simulate(islands, VALUES, Scheme("all_to_all", "int8", local_steps=8))
    by_speed = simulate(islands, VALUES, Scheme("all_to_all", "int8", local_steps=8, by_speed=True))
    assert plain.utilisation == pytest.approx((0.25, 1.0), rel=1e-3)
    assert by_speed.utilisation == pytest.approx((1.0, 1.0), rel=1e-3)
    assert by_speed.steps == (8, 2)
    assert (plain.limit, by_speed.steps_per_s > plain.steps_per_s) == ("compute of slow", True)


def test_fragments_hide_behind_compute_while_the_link_keeps_up():
    scheme = Scheme("all_to_all", "int8", local_steps=8, fragments=4, delay=2)
    hidden = simulate([EQUAL] * 2, VALUES, scheme)
    assert hidden.seconds == pytest.approx(8 * EQUAL.compute_s)
    blocking = simulate([EQUAL] * 2, VALUES, replace(scheme, delay=0))
    assert blocking.seconds > 9
    narrow = [replace(EQUAL, up=1e5, down=1e5)] * 2  # a round sends 10 s worth of bytes: the link is busy all the time
    busy = simulate(narrow, VALUES, scheme, rounds=20)
    assert busy.seconds == pytest.approx(busy.sent[0] / 1e5 + 4 * 2 * 2 * EQUAL.latency_s, rel=1e-3)
    assert busy.limit == "compute of equal"  # 8 of 10 s
    assert simulate([replace(EQUAL, up=1e4)] * 2, VALUES, scheme).limit == "up-link of equal"


def test_a_quorum_leaves_the_late_one_out():
    islands = [*[Island("steady", 1.0, 1e7, 1e7)] * 9, Island("late", 5.0, 1e7, 1e7)]
    scheme = Scheme("all_gather", SPARSE, local_steps=4)
    all_of_them, nine = (
        simulate(islands, VALUES, scheme),
        simulate(islands, VALUES, replace(scheme, quorum=0.9, gather="direct")),
    )
    assert all_of_them.seconds > 20
    assert nine.seconds == pytest.approx(4, rel=0.05)
    assert nine.kept == (1.0,) * 9 + (0.0,)
    assert nine.sent[9] == 0
    assert nine.received[9] == pytest.approx(9 / 8 * nine.received[0])
    assert nine.steps_per_s == pytest.approx(9 * 4 / nine.seconds)


def test_a_quorum_is_two_at_least():
    islands = [replace(EQUAL, compute_s=1.0 + place) for place in range(4)]
    for route in ("all_gather", "all_to_all"):
        found = simulate(islands, VALUES, Scheme(route, "int8", quorum=0.01, gather="direct"))
        assert found.kept == (1.0, 1.0, 0.0, 0.0)
        assert found.seconds > 2


def test_jitter_slows_a_crowd_and_is_drawn_by_seed():
    islands = [Island("x", 1.0, 1e9, 1e9, jitter=0.3)] * 50
    scheme = Scheme("all_to_all", "int8")
    one, again, other = (simulate(islands, VALUES, scheme, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    calm = simulate([replace(islands[0], jitter=0.0)] * 50, VALUES, scheme)
    assert one.seconds > 1.4 * calm.seconds  # the largest of 50: about 2.2 standard deviations above the mean
    rare = simulate(islands, VALUES, replace(scheme, local_steps=100))
    assert rare.seconds < 1.1 * 100  # and of sums of a hundred


@settings(max_examples=60, deadline=None)
@given(some_islands, st.sampled_from(SCHEMES), st.integers(0, 6), st.sampled_from(["up", "down"]))
def test_bandwidth_never_slows(islands, scheme, which, part):
    which %= len(islands)
    faster = [*islands]
    faster[which] = replace(islands[which], **{part: 3 * getattr(islands[which], part)})
    before, after = simulate(islands, VALUES, scheme, rounds=12), simulate(faster, VALUES, scheme, rounds=12)
    assert after.sent == before.sent
    # Means over a few rounds: who runs ahead at their beginning may be off by part of one.
    assert after.seconds <= before.seconds * (1 + 1e-9) + max(one.compute_s for one in islands) * scheme.delay / 12


@settings(max_examples=60, deadline=None)
@given(some_islands, st.sampled_from([Scheme(), Scheme("all_to_all", "int8"), Scheme("all_gather", SPARSE)]))
def test_more_local_steps_never_lower_utilisation(islands, scheme):
    found = [simulate(islands, VALUES, replace(scheme, local_steps=steps)).utilisation for steps in (1, 3, 30)]
    for fewer, more in pairwise(found):
        assert all(b >= a - 1e-9 for a, b in zip(fewer, more, strict=True))


@settings(max_examples=60, deadline=None)
@given(some_islands, st.sampled_from(SCHEMES), st.floats(0.3, 1))
def test_what_is_sent_is_received(islands, scheme, quorum):
    if scheme.route != "all_reduce" and scheme.fragments == 1:
        scheme = replace(scheme, quorum=quorum, gather="direct")
    found = simulate(islands, VALUES, scheme)
    assert sum(found.sent) == pytest.approx(sum(found.received))
    assert all(0 <= used <= 1 for used in found.utilisation)
    slowest = max(one.compute_s for one in islands) * scheme.local_steps
    assert scheme.quorum < 1 or found.seconds >= slowest * (1 - 1e-9)


def test_fan_out_of_a_gather_grows_with_the_islands():
    ((_, message),) = hops(Scheme("all_gather", SPARSE), VALUES, 20)
    found = simulate([EQUAL] * 20, VALUES, Scheme("all_gather", SPARSE))
    assert found.received == (19 * message,) * 20
    assert simulate([EQUAL], VALUES, Scheme("all_gather", SPARSE)).received == (0.0,)


@pytest.mark.parametrize(
    ("given_keys", "told"),
    [
        ({"local_steps": 4, "fragments": 5}, "5 fragments in 4 local steps"),
        ({"local_steps": 4, "delay": 4}, "a delay of 4 steps"),
        ({"quorum": 0.0}, "a quorum of 0"),
        ({"quorum": 0.5}, "no ring"),
        ({"codec": "int8"}, "encoded values of int8 cannot be summed"),
        ({"codec": "lowrank(4)", "route": "all_gather"}, "low rank goes by the shapes"),
        ({"route": "all_gather"}, "plain values are summed in a ring"),
    ],
)
def test_schemes_that_do_not_exist(given_keys, told):
    with pytest.raises(ThriftyError, match=told):
        Scheme(**given_keys)


def test_no_islands():
    with pytest.raises(ThriftyError, match="no islands"):
        simulate([], VALUES, Scheme())
