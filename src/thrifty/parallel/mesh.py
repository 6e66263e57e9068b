"""The mesh: ranks as a named grid, outermost axis first."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from thrifty.spec.recipe import Layout


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The data-parallel part of the layout: axes `island` x `shard`, rank = island_index x shard + shard_index."""
    return init_device_mesh(device_type, (layout.island, layout.shard), mesh_dim_names=("island", "shard"))
