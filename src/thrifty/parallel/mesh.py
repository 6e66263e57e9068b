"""The mesh: ranks as a named grid, outermost axis first, and what follows from it by arithmetic.

    rank = (((island x P + pipeline) x S + shard) x C + context) x T + tensor

with P stages, S shards, C context and T tensor ranks. The inner an axis, the nearer its ranks, so tensor groups lie
inside a node and pipelines across nodes. Parameters are sharded over shard and context ranks together.
"""

from __future__ import annotations

from itertools import product

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from thrifty.spec.recipe import Layout

AXES = ("island", "pipeline", "shard", "context", "tensor")  # outermost first


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """A mesh with all five axes, those of size 1 included, so that `mesh["tensor"]` is there on every layout."""
    return init_device_mesh(device_type, tuple(getattr(layout, axis) for axis in AXES), mesh_dim_names=AXES)


def sharing(mesh: DeviceMesh) -> DeviceMesh:
    """The axis of ranks that share one copy of the sharded states: those of a sequence like those of samples.

    That is `shard`, with the context ranks where there are some.
    """
    if mesh["context"].size() == 1:
        return mesh["shard"]
    return mesh["shard", "context"]._flatten("shard_context")  # torch's one way to do it, and torchtitan's


def coordinates(layout: Layout, rank: int) -> dict[str, int]:
    """Where a rank stands on each axis."""
    found = {}
    for axis in reversed(AXES):
        rank, found[axis] = divmod(rank, getattr(layout, axis))
    return {axis: found[axis] for axis in AXES}


def rank_at(layout: Layout, place: dict[str, int]) -> int:
    """The rank at a place; axes that are left out count as 0. The inverse of `coordinates`."""
    rank = 0
    for axis in AXES:
        rank = rank * getattr(layout, axis) + place.get(axis, 0)
    return rank


def group(layout: Layout, rank: int, *axes: str) -> list[int]:
    """The ranks that differ from this one along the given axes alone, itself included, in order."""
    fixed = {axis: at for axis, at in coordinates(layout, rank).items() if axis not in axes}
    return [other for other in range(layout.ranks) if fixed.items() <= coordinates(layout, other).items()]


def picture(layout: Layout, most: int | None = None) -> str:
    """The grid as text: a block for each island and stage, a row for each shard (and context) rank, tensor across.

    island 0, stage 0
      shard 0   0  1
      shard 1   2  3

    Args:
        most: of the numbers of each axis so many are drawn, the first ones and the last; all when left out.
    """
    width = len(str(layout.ranks - 1)) + 2
    lines = []
    for island, stage in product(_drawn(layout.island, most), _drawn(layout.pipeline, most)):
        if island is None or stage is None:
            lines += [_GAP] if lines[-1] != _GAP else []
            continue
        lines.append(f"island {island}, stage {stage}")
        for shard, context in product(_drawn(layout.shard, most), _drawn(layout.context, most)):
            if shard is None or context is None:
                lines += [f"  {_GAP}"] if lines[-1] != f"  {_GAP}" else []
                continue
            place = {"island": island, "pipeline": stage, "shard": shard, "context": context}
            ranks = [_GAP if t is None else rank_at(layout, place | {"tensor": t}) for t in _drawn(layout.tensor, most)]
            label = f"shard {shard}" + (f", context {context}" if layout.context > 1 else "")
            lines.append(f"  {label}  " + "".join(f"{rank:>{width}}" for rank in ranks))
    return "\n".join(lines)


_GAP = "..."


def _drawn(size: int, most: int | None) -> list[int | None]:
    """Numbers of an axis that are drawn; None where some are left out."""
    if most is None or size <= most:
        return list(range(size))
    return [*range(most // 2 - 1), None, size - 1]
