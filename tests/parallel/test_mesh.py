"""Rank arithmetic of the mesh."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thrifty.parallel.mesh import AXES, coordinates, group, picture, rank_at
from thrifty.spec.recipe import Layout

layouts = st.builds(Layout, **{axis: st.integers(1, 3) for axis in AXES})


@given(layouts)
def test_ranks_and_places_are_one_to_one(layout):
    places = [coordinates(layout, rank) for rank in range(layout.ranks)]
    assert [rank_at(layout, place) for place in places] == list(range(layout.ranks))


@given(layouts, st.sampled_from(AXES))
def test_groups_of_an_axis_part_the_ranks(layout, axis):
    groups = {tuple(group(layout, rank, axis)) for rank in range(layout.ranks)}
    assert sorted(rank for one in groups for rank in one) == list(range(layout.ranks))
    assert {len(one) for one in groups} == {getattr(layout, axis)}


def test_tensor_ranks_are_neighbours_and_stages_far_apart():
    layout = Layout(pipeline=2, shard=2, tensor=2)
    assert group(layout, 5, "tensor") == [4, 5]
    assert group(layout, 5, "pipeline") == [1, 5]
    assert group(layout, 5, "island", "shard") == [5, 7]
    assert picture(layout).splitlines()[:3] == ["island 0, stage 0", "  shard 0    0  1", "  shard 1    2  3"]
