"""Which link a group of ranks crosses."""

from __future__ import annotations

import pytest
import torch

from thrifty.trainer.world import World


@pytest.mark.parametrize(
    ("ranks", "islands", "link"),
    [
        ([0, 1], 2, "intra_node"),
        ([0, 2], 2, "inter_node"),
        ([2, 5], 2, "inter_island"),
        ([2, 5], 1, "inter_node"),
        ([0, 7], None, "inter_node"),
        ([4, 7], 4, "inter_island"),
    ],
)
def test_links_between_eight_ranks_on_four_nodes(ranks: list[int], islands: int | None, link: str) -> None:
    world = World(0, 8, 0, 2, torch.device("cpu"), island_nodes=4 // islands if islands else None)
    assert world.link_of(ranks) == link
