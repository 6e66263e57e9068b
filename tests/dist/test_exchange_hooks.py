"""The exchange in loops that are not ours: DDP, FSDP2, and plain modules whose gradients leave during backward."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pool import KEPT
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from thrifty.compress import Exchange, Feedback, Identity, codec_of, ddp_hook, overlap_hooks
from thrifty.compress.fsdp import fsdp_hook, fsdp_reduce_scatter
from thrifty.spec.errors import ThriftyError

STEPS = 60


@cache
def mesh_of(islands: int, shards: int) -> DeviceMesh:
    mesh = init_device_mesh("cpu", (islands, shards), mesh_dim_names=("island", "shard"))
    KEPT.update(mesh.get_all_groups())
    return mesh


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))


def batch(rank: int, step: int, rows: int = 16) -> tuple[Tensor, Tensor]:
    """Each rank has samples of its own of one task."""
    generator = torch.Generator().manual_seed(10_000 * step + rank)
    x = torch.randn(rows, 12, generator=generator)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2] - x[:, 3], x[:, 4].sin()], 1)


def loss_of(net: nn.Module, rank: int, step: int) -> Tensor:
    x, y = batch(rank, step)
    return (net(x) - y).square().mean()


def held_out(net: nn.Module) -> float:
    x, y = batch(99, 99, 512)
    with torch.no_grad():
        return float((net(x) - y).square().mean())


def digest(tensors: Any) -> str:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def made(codec: str) -> Any:
    return Identity() if codec == "identity" else codec_of(codec)


def in_ddp(codec: str | None, steps: int, bucket_mb: float, options: dict[str, Any]) -> tuple[str, float]:
    net = model()
    ddp = DistributedDataParallel(net, bucket_cap_mb=bucket_mb)
    exchange = None
    if codec is not None:
        exchange = Exchange(made(codec), **options)
        ddp.register_comm_hook(None, ddp_hook(exchange, net))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        with ddp.no_sync():
            loss_of(ddp, dist.get_rank(), 2 * step).backward()
        loss_of(ddp, dist.get_rank(), 2 * step + 1).backward()
        optimizer.step()
    if exchange:
        exchange.close()
    return digest(net.parameters()), held_out(net)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3])
def test_identity_in_ddp_is_ddp(pool, ranks):
    """Bit for bit, over rebuilt buckets."""
    plain = pool(ranks).run(in_ddp, None, 4, 0.004, {})
    hooked = pool(ranks).run(in_ddp, "identity", 4, 0.004, {})
    assert plain == hooked


CODECS = [
    ("int8", {}),
    ("int4", {}),
    ("means2", {"warmup": 4}),
    ("sign", {"warmup": 4}),
    ("int4 + zstd", {"how": "all_to_all"}),
    ("int4", {"how": "all_to_all", "feedback": Feedback(store="int8")}),
    ("topk(1/8) + int8", {"warmup": 4}),
    ("topk(1/4)", {"feedback": Feedback("ef21"), "warmup": 4}),
    ("topk(1/8) + means2", {"how": "all_to_all", "feedback": Feedback(decay=0.95), "warmup": 4}),
    ("lowrank(2)", {"warmup": 4}),
]


@pytest.mark.dist
@pytest.mark.parametrize(("codec", "options"), CODECS)
def test_training_in_ddp_gets_where_plain_training_gets(pool, codec, options):
    start = held_out(model())
    plain = pool(2).run(in_ddp, None, STEPS, 0.004, {})[0][1]
    found = pool(2).run(in_ddp, codec, STEPS, 0.004, options)
    assert len(set(found)) == 1  # the replicas are equal to the last bit
    assert plain < 0.4 * start
    assert found[0][1] - plain < 0.25 * (start - plain)


def failing_in_ddp() -> str:
    net = model()
    ddp = DistributedDataParallel(net)
    exchange = Exchange(codec_of("int8" if dist.get_rank() else "int4"))
    ddp.register_comm_hook(None, ddp_hook(exchange))
    try:
        loss_of(ddp, dist.get_rank(), 0).backward()
    except RuntimeError as error:
        return str(error)
    return "nothing"


@pytest.mark.dist
def test_what_fails_is_raised_by_backward(pool):
    for told in pool(2).run(failing_in_ddp):
        assert "differ in codec" in told


def overlapped(codec: str, units: list[list[str]] | None) -> tuple[str, float, list[float]]:
    """Two microbatches a step; against means of the sums of gradients."""
    net, reference = model(), model()
    exchange = Exchange(made(codec))
    overlap = overlap_hooks(net, exchange, units, unit_bytes=4000)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    errors = []
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for step in range(3):
        reference.load_state_dict(net.state_dict())
        optimizer.zero_grad()
        loss_of(net, rank, 2 * step).backward()
        overlap.arm()
        loss_of(net, rank, 2 * step + 1).backward()
        overlap.wait()
        reference.zero_grad()
        for other in range(ranks):
            for one in (2 * step, 2 * step + 1):
                (loss_of(reference, other, one) / ranks).backward()
        pairs = [(p.grad, q.grad) for p, q in zip(net.parameters(), reference.parameters(), strict=True)]
        error = sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
        errors.append(error**0.5)
        optimizer.step()
    overlap.remove()
    exchange.close()
    return digest(net.parameters()), held_out(net), errors


@pytest.mark.dist
@pytest.mark.parametrize(("codec", "bound"), [("identity", 1e-5), ("int8", 0.03)])
@pytest.mark.parametrize("units", [None, [["4.weight", "4.bias", "2.weight"], ["2.bias", "0.bias", "0.weight"]]])
def test_gradients_leave_during_backward(pool, codec, bound, units):
    found = pool(3).run(overlapped, codec, units)
    assert len({bits for bits, _, _ in found}) == 1
    assert max(found[0][2]) < bound


def test_units_hold_every_parameter_once():
    exchange = Exchange(Identity())
    with pytest.raises(ThriftyError, match=r"0\.bias"):
        overlap_hooks(model(), exchange, [["0.weight", "2.weight", "2.bias", "4.weight", "4.bias"]])
    overlap = overlap_hooks(model(), exchange)
    with pytest.raises(ThriftyError, match="not armed"):
        overlap.wait()
    overlap.arm()
    with pytest.raises(ThriftyError, match="armed twice"):
        overlap.arm()
    exchange.close()


def sharded(net: nn.Module, mesh: Any) -> nn.Module:
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def over_fsdp(way: str, codec: str) -> tuple[list[float], str]:
    """Two islands of two ranks that share their states, against one process; relative errors of gradients."""
    net, reference = model(), model()
    mesh = mesh_of(2, 2)
    sharded(net, mesh["shard"])
    exchange = Exchange(made(codec), mesh.get_group("island"))
    overlap = overlap_hooks(net, exchange, unit_bytes=4000) if way == "overlap" else None
    if way == "hook":
        fsdp_hook(exchange, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rank, errors = dist.get_rank(), []
    for step in range(3):
        state = {name: p.full_tensor() for name, p in net.state_dict().items()}
        reference.load_state_dict(state)
        optimizer.zero_grad()
        net.set_requires_gradient_sync(False)
        loss_of(net, rank, 2 * step).backward()
        net.set_requires_gradient_sync(True)
        if overlap:
            overlap.arm()
        loss_of(net, rank, 2 * step + 1).backward()
        if overlap:
            overlap.wait()
        errors.append(against(net, reference, step))
        optimizer.step()
    exchange.close()
    return errors, digest(state.values())


def against(net: nn.Module, reference: nn.Module, step: int) -> float:
    reference.zero_grad()
    for other in range(4):
        for one in (2 * step, 2 * step + 1):
            (loss_of(reference, other, one) / 4).backward()
    pairs = [(p.grad.full_tensor(), q.grad) for p, q in zip(net.parameters(), reference.parameters(), strict=True)]
    error = sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
    return error**0.5


@pytest.mark.dist
@pytest.mark.parametrize("way", ["overlap", "hook"])
@pytest.mark.parametrize(("codec", "bound"), [("identity", 1e-5), ("int8", 0.02), ("int4 + zstd", 0.3)])
def test_replicas_of_shards(pool, way, codec, bound):
    found = pool(4).run(over_fsdp, way, codec)
    assert max(max(errors) for errors, _ in found) < bound
    assert len({bits for _, bits in found}) == 1


def inside_fsdp(codec: str, feedback: Feedback | None) -> tuple[list[float], float]:
    net, reference = model(), model()
    sharded(net, mesh_of(1, 4)["shard"])
    fsdp_reduce_scatter(made(codec), net, feedback=feedback)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    errors = []
    for step in range(40):
        optimizer.zero_grad()
        net.set_requires_gradient_sync(False)
        loss_of(net, dist.get_rank(), 2 * step).backward()
        net.set_requires_gradient_sync(True)
        loss_of(net, dist.get_rank(), 2 * step + 1).backward()
        if step < 2:
            reference.load_state_dict({name: p.full_tensor() for name, p in net.state_dict().items()})
            errors.append(against(net, reference, step))
        optimizer.step()
    reference.load_state_dict({name: p.full_tensor() for name, p in net.state_dict().items()})
    return errors, held_out(reference)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("codec", "feedback", "bound"),
    [
        ("identity", None, 1e-5),
        ("int8", None, 0.02),
        ("int4", Feedback(two_sided=False, store="int8"), 0.3),
        ("sign", Feedback(two_sided=False, store="bf16"), 0.9),
    ],
)
def test_encoded_inside_a_shard_group(pool, codec, feedback, bound):
    for errors, loss in pool(4).run(inside_fsdp, codec, feedback):
        assert max(errors) < bound
        assert loss < 0.6 * held_out(model())


def refused() -> list[str]:
    told = []
    exchange = Exchange(Identity())
    for net in (model(), sharded(model(), mesh_of(2, 2))):
        try:
            fsdp_hook(exchange, net)
        except ThriftyError as error:
            told.append(str(error))
    exchange.close()
    return told


@pytest.mark.dist
def test_where_there_is_no_seam(pool):
    for none, both in pool(4).run(refused):
        assert "no FSDP2 module" in none
        assert "two dimensions" in both
