"""The same job on several numbers of devices: the front, the choice, and ranges as users write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.planner.aim import Aim
from thrifty.planner.sizes import Asked, Size, doubling, pareto, search_sizes
from thrifty.spec import Cluster, Job, ModelShape, ThriftyError
from thrifty.spec.load import Settings, build

DAY = 86400.0
JOB = Job(model=build(ModelShape, lookup.model("llama-3-8b"), ""), sequence_length=4096, tokens=10**11)


def asked(devices: int) -> Asked:
    return JOB, build(Cluster, lookup.cluster(f"{devices}xh100"), ""), Settings()


def found(sizes: list[int], **wanted: Any) -> tuple[Size, ...]:
    return search_sizes(sizes, asked, **wanted)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_on_the_front_is_beaten_and_all_off_it_is(points: list[tuple[int, int]]) -> None:
    front = pareto(points, lambda one: one)

    def beaten(one: tuple[int, int]) -> bool:
        return any(a <= one[0] and b <= one[1] and (a, b) != one for a, b in points)

    assert [one for one in points if not beaten(one)] == front
    assert min(points) in front
    assert min(points, key=lambda one: (one[1], one[0])) in front


def test_the_front_holds_the_best_of_each_objective() -> None:
    sizes = found([8, 16, 32, 64])
    front = {one.devices for one in sizes if one.on_front}
    for objective in ("usd", "time", "energy", "co2"):
        again = found([8, 16, 32, 64], objective=objective)
        (chosen,) = (one for one in again if one.chosen)
        assert chosen.devices in front
        ranks = [Aim(objective).rank(one.price) for one in again if one.price is not None]
        assert Aim(objective).rank(chosen.price) == min(ranks)


def test_a_deadline_takes_the_cheapest_size_that_meets_it_also_between_powers_of_two() -> None:
    limit = 6 * DAY
    sizes = found([8, 16, 32, 64], deadline_seconds=limit)
    assert len(sizes) > 4
    chosen = next(one for one in sizes if one.chosen)
    assert chosen.price is not None
    assert chosen.price.seconds <= limit
    for one in sizes:
        assert one.price is not None
        assert one.allowed == (one.price.seconds <= limit)
        assert not one.allowed or one.price.usd >= chosen.price.usd
    assert [one.devices for one in sizes] == sorted({one.devices for one in sizes})


def test_what_fits_no_small_size_says_so_and_the_others_are_planned() -> None:
    sizes = found([1, 2, 8, 16])
    assert sizes[0].found is None
    assert "does not fit" in sizes[0].why_not
    assert any(one.chosen for one in sizes)
    assert "why_not" in sizes[0].as_json()
    assert sizes[-1].as_json()["usd"] == sizes[-1].price.usd


def test_nothing_within_the_limits_names_the_fastest_and_the_cheapest() -> None:
    with pytest.raises(ThriftyError, match="no size stays within") as error:
        found([8, 16], deadline_seconds=3600.0)
    assert "16 devices take" in error.value.what
    with pytest.raises(ThriftyError, match="does not fit"):
        found([1])


@pytest.mark.parametrize(
    ("low", "high", "sizes"),
    [(8, 64, [8, 16, 32, 64]), (1, 16, [1, 2, 4, 8, 16]), (3, 24, [3, 6, 16, 24]), (8, 24, [8, 16, 24]), (5, 5, [5])],
)
def test_sizes_double_in_full_nodes(low: int, high: int, sizes: list[int]) -> None:
    assert doubling(low, high, 8) == sizes


def test_ranges_as_users_write_them() -> None:
    assert lookup.short_form_range("8..1024xh100") == (8, 1024, "H100-SXM-80GB")
    assert lookup.short_form_range(" ..64 x a100 ") == (1, 64, "A100-SXM-80GB")
    assert lookup.short_form_range("64xh100") is None
    assert lookup.short_form_range("cluster.yaml") is None
    for text in ("64..8xh100", "0..8xh100", "8..12xh100", "8..16xh1000"):
        with pytest.raises(ThriftyError) as error:
            lookup.short_form_range(text)
        assert error.value.hint
