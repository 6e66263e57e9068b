"""What an exchange sends, from descriptions alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost.exchange import Message, cut, messages, part_sizes, route_of, sent_bytes
from thrifty.cost.payload import payload_bytes
from thrifty.spec.codec import stages_of

MIB = 2**20


@pytest.mark.parametrize(
    ("codec", "ranks", "route"),
    [
        ("randomk(64)", 8, "all_reduce"),
        ("int8", 2, "all_gather"),
        ("int8", 3, "all_to_all"),
        ("int4 + zstd", 16, "all_to_all"),
        ("topk(1/64) + means2", 16, "all_gather"),
        ("topk(1/64) + means2", 17, "all_to_all"),
        ("lowrank(4)", 2, "low_rank"),
    ],
)
def test_the_route(codec, ranks, route):
    assert route_of(stages_of(codec), ranks) == route


def test_values_as_they_are_take_the_bytes_of_a_ring():
    assert messages((), [MIB], 4) == [Message("all_reduce", 4 * MIB, 1.5 * 4 * MIB)]
    assert messages((), [MIB], 1) == []


def test_two_hops_send_twice_all_but_one_part():
    """int8: a byte a value, 2 bytes of scale for 256, 28 + 16 bytes of header a payload."""
    part = MIB // 4 + MIB // 4 // 256 * 2 + 44
    found = messages(stages_of("int8"), [MIB], 4, rank=3)
    assert found == [Message("all_to_all", 3 * part, 3.0 * part), Message("all_gather", part, 3.0 * part)]


def test_lengths_are_sent_where_they_are_not_known():
    kinds = [(message.kind, message.payload_bytes) for message in messages(stages_of("int8 + zstd"), [1000], 3)]
    assert [kind for kind, _ in kinds] == ["all_to_all", "all_to_all", "all_gather", "all_gather"]
    assert kinds[0][1] == 16
    assert kinds[2][1] == 8


def test_low_rank_sums_its_factors():
    found = messages(stages_of("lowrank(4)"), [(512, 256), (256,), (4, 3)], 2)
    assert [message.payload_bytes for message in found] == [4 * (512 * 4 + 256 + 12), 4 * 256 * 4]


def test_islands_send_slices():
    """Two ranks an island: half of it, once over the fast links in fp32 and once back, and encoded in between."""
    found = messages(stages_of("int8"), [MIB], 2, within=2)
    assert [message.kind for message in found] == ["reduce_scatter", "all_gather", "all_gather"]
    assert found[0].sent_bytes == 2 * MIB
    assert found[1].payload_bytes == payload_bytes(stages_of("int8"), (MIB // 2,))
    assert sent_bytes(found) == 2 * MIB + found[1].payload_bytes + 2 * MIB + 4


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 9))
def test_parts_hold_everything_once(numels, parts):
    sizes = part_sizes(numels, parts)
    assert sum(sizes) == sum(numels)
    assert max(sizes) - min(sizes) <= len(numels)
    for values in numels:
        assert [cut(values, part, parts)[1] for part in range(parts - 1)] == [
            cut(values, part, parts)[0] for part in range(1, parts)
        ]
