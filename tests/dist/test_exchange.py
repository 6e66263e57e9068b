"""Means of encoded tensors over real ranks: what they are, that all ranks have the same bits, and how they fail."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
import torch.distributed as dist

from thrifty.compress import Exchange, Feedback, Identity, codec_of
from thrifty.parallel.count import TrafficCounter
from thrifty.spec.errors import ThriftyError

SHAPES = {"embedding.weight": (64, 33), "norm.weight": (7,), "head.bias": (), "mlp.weight": (40, 129)}
# codec, route -> largest error of one mean over the mean of the tensors' norms
MEANS = [
    ("identity", "auto", 1e-6),
    ("identity", "all_to_all", 1e-6),
    ("identity", "all_gather", 1e-6),
    ("int8", "auto", 0.02),
    ("int8", "all_gather", 0.01),
    ("int4", "all_to_all", 0.2),
    ("means2", "auto", 0.6),
    ("int8 + zstd", "all_to_all", 0.02),
    ("int8 + zstd", "all_gather", 0.02),
    ("topk(1/8)", "auto", 1.0),
    ("topk(1/64) + means2 + zstd", "all_to_all", 1.3),
    ("randomk(8)", "auto", 4.0),
    ("randomk(8)", "all_to_all", 9.0),
    ("lowrank(2)", "auto", 1.0),
]


def made(codec: str) -> Any:
    return Identity() if codec == "identity" else codec_of(codec)


def inputs(rank: int, step: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors.values())).hexdigest()


Found = tuple[dict[str, torch.Tensor], str, int, int, bool]


def one_mean(codec: str, how: str) -> Found:
    exchange = Exchange(made(codec), how=how)
    tensors = inputs(dist.get_rank())
    exchange.mean(tensors)  # the first compares settings as well
    again = inputs(dist.get_rank(), 1)
    with TrafficCounter(lambda ranks: "link") as counter:
        exchange.mean(again)
    assert counter.blocked_seconds == 0 < exchange.blocked_seconds  # it is another thread that is in collectives
    shapes = [tensor.shape for tensor in tensors.values()]
    calls = {(kind, payload) for kind, _, payload, _ in counter.calls}
    same = calls == {message[:2] for message in exchange.messages(shapes)}
    predicted = exchange.predicted_bytes(shapes)
    exchange.close()
    return tensors, digest(tensors) + digest(again), predicted, round(counter.link_bytes["link"]), same


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(("codec", "how", "bound"), MEANS)
def test_every_rank_has_the_mean(pool, ranks, codec, how, bound):
    found = pool(ranks).run(one_mean, codec, how)
    assert len({bits for _, bits, _, _, _ in found}) == 1
    everybody = [inputs(rank) for rank in range(ranks)]
    error = norm = 0.0
    for name in SHAPES:
        exact = torch.stack([tensors[name].double() for tensors in everybody]).mean(0)
        error += float((found[0][0][name].double() - exact).square().sum())
        norm += float(exact.square().sum())
    assert error**0.5 <= bound * norm**0.5
    for _, _, predicted, sent, same in found:
        assert sent <= predicted if "zstd" in codec else abs(sent - predicted) <= 1
        assert same or "zstd" in codec


def plain_mean(dtype: torch.dtype) -> bool:
    """Identity against an all_reduce of the same flat tensor."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine = {name: tensor.to(dtype) for name, tensor in inputs(rank).items()}
    flat = torch.cat([tensor.view(-1).float() for tensor in mine.values()]) * (1.0 / ranks)
    dist.all_reduce(flat)
    exchange = Exchange(Identity())
    exchange.mean(mine)
    exchange.close()
    parts = flat.split([tensor.numel() for tensor in mine.values()])
    return all(torch.equal(one.view(-1), part.to(dtype)) for one, part in zip(mine.values(), parts, strict=True))


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_is_a_plain_all_reduce(pool, ranks, dtype):
    assert all(pool(ranks).run(plain_mean, dtype))


FEEDBACKS = [
    Feedback(),
    Feedback(store="bf16"),
    Feedback(store="int8"),
    Feedback("ef21"),
]


def long_run_mean(codec: str, how: str, feedback: Feedback | None, steps: int) -> float:
    """Error of the mean over steps of a constant input, relative: what feedback is for."""
    exchange = Exchange(made(codec), how=how, feedback=feedback)
    exact = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for rank in range(dist.get_world_size()):
        for name, tensor in inputs(rank).items():
            exact[name] += tensor.double() / dist.get_world_size()
    total = {name: torch.zeros_like(tensor) for name, tensor in exact.items()}
    for _ in range(steps):
        tensors = inputs(dist.get_rank())
        exchange.mean(tensors)
        for name, tensor in tensors.items():
            total[name] += tensor.double() / steps
    exchange.close()
    error = sum(float((total[name] - exact[name]).square().sum()) for name in SHAPES)
    return (error / sum(float(tensor.square().sum()) for tensor in exact.values())) ** 0.5


@pytest.mark.dist
@pytest.mark.parametrize("feedback", FEEDBACKS, ids=lambda one: f"{one.kind} {one.store}")
@pytest.mark.parametrize(("codec", "how"), [("topk(1/4)", "all_gather"), ("int4", "all_to_all"), ("sign", "all_to_all"), ("lowrank(8)", "auto")])
def test_errors_come_back(pool, feedback, codec, how):
    """The mean over n steps of a constant input errs by O(1/n) with feedback, by a constant without."""
    with_it = max(pool(3).run(long_run_mean, codec, how, feedback, 40))
    without = max(pool(3).run(long_run_mean, codec, how, None, 40))
    assert with_it < 0.4 * without


def in_islands(codec: str) -> tuple[dict[str, torch.Tensor], str, int, int]:
    """Four ranks: islands {0, 1} and {2, 3}."""
    rank = dist.get_rank()
    islands = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    exchange = Exchange(made(codec), across[rank % 2], within=islands[rank // 2])
    tensors = inputs(rank)
    exchange.mean(tensors)
    again = inputs(rank, 1)
    with TrafficCounter(lambda ranks: "link") as counter:
        exchange.mean(again)
    predicted = exchange.predicted_bytes([tensor.shape for tensor in tensors.values()])
    exchange.close()
    return tensors, digest(tensors) + digest(again), predicted, round(counter.link_bytes["link"])


@pytest.mark.dist
@pytest.mark.parametrize(("codec", "bound"), [("identity", 1e-6), ("int8", 0.02), ("topk(1/8) + zstd", 1.0)])
def test_islands(pool, codec, bound):
    found = pool(4).run(in_islands, codec)
    assert len({bits for _, bits, _, _ in found}) == 1
    exact = {name: torch.stack([inputs(rank)[name].double() for rank in range(4)]).mean(0) for name in SHAPES}
    error = sum(float((found[0][0][name].double() - exact[name]).square().sum()) for name in SHAPES)
    assert error <= bound**2 * sum(float(tensor.square().sum()) for tensor in exact.values())
    for rank, (_, _, predicted, sent) in enumerate(found):
        # Predicted for the first rank of an island: the others' slices may have a value more of each tensor.
        slack = 1 if rank < 1 else 8 * len(SHAPES)
        assert sent <= predicted + slack if "zstd" in codec else abs(sent - predicted) <= slack


def broken_values(codec: str, how: str) -> tuple[bool, bool, bool]:
    """Rank 1 has a nan once. Whether all see it, keep their errors, and have a mean again afterwards."""
    exchange = Exchange(made(codec), how=how)
    exchange.mean(inputs(dist.get_rank()))
    before = {name: tensor.clone() for name, tensor in exchange.state_dict().items() if "rounds" not in name}
    tensors = inputs(dist.get_rank(), 1)
    if dist.get_rank() == 1:
        tensors["mlp.weight"][3, 5] = float("nan")
    exchange.mean(tensors)
    seen = any(bool(tensor.isnan().any()) for tensor in tensors.values())
    after = exchange.state_dict()
    kept = all(torch.equal(after[name], tensor) for name, tensor in before.items())
    good = inputs(dist.get_rank(), 2)
    exchange.mean(good)
    exchange.close()
    return seen, kept, all(bool(tensor.isfinite().all()) for tensor in good.values())


@pytest.mark.dist
@pytest.mark.parametrize(
    ("codec", "how"),
    [("int4", "all_to_all"), ("topk(1/64) + means2", "all_gather"), ("randomk(64)", "auto"), ("identity", "auto"), ("lowrank(2)", "auto")],
)
def test_a_broken_gradient_is_seen_and_not_kept(pool, codec, how):
    assert pool(3).run(broken_values, codec, how) == [(True, True, True)] * 3


def resumed(feedback: Feedback) -> bool:
    """Four steps, against two, a checkpoint, and two more in another exchange."""
    rank = dist.get_rank()
    whole, first = (Exchange(codec_of("means2"), how="all_to_all", feedback=feedback, warmup=1) for _ in range(2))
    for step in range(2):
        whole.mean(inputs(rank, step))
        first.mean(inputs(rank, step))
    second = Exchange(codec_of("means2"), how="all_to_all", feedback=feedback, warmup=1)
    second.load_state_dict(first.state_dict())
    same = True
    for step in range(2, 4):
        one, two = inputs(rank, step), inputs(rank, step)
        whole.mean(one)
        second.mean(two)
        same = same and digest(one) == digest(two)
    for exchange in (whole, first, second):
        exchange.close()
    return same


@pytest.mark.dist
@pytest.mark.parametrize("feedback", FEEDBACKS, ids=lambda one: f"{one.kind} {one.store}")
def test_a_checkpoint_goes_on(pool, feedback):
    assert all(pool(2).run(resumed, feedback))


def rebuilt() -> float:
    """The same tensors in two units, then in one, as DDP rebuilds its buckets: errors stay with their tensors."""
    exchange = Exchange(codec_of("topk(1/8)"), how="all_to_all")
    total = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(30):
        tensors = inputs(dist.get_rank())
        names = list(tensors)
        units = [names[:2], names[2:]] if step < 15 else [names[::-1]]
        for unit in units:
            exchange.start({name: tensors[name] for name in unit})
        exchange.wait()
        for name in names:
            total[name] += tensors[name]
    exact = {name: torch.stack([inputs(r)[name] for r in range(dist.get_world_size())]).mean(0) for name in SHAPES}
    exchange.close()
    error = sum(float((total[name] / 30 - exact[name]).square().sum()) for name in SHAPES)
    return (error / sum(float(tensor.square().sum()) for tensor in exact.values())) ** 0.5


def nothing_to_send() -> bool:
    """No tensors, empty ones, and ones that are not laid out in order; a group of one beside."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    alone = [dist.new_group([one]) for one in range(ranks)]
    one, exchange = Exchange(codec_of("int8"), alone[rank]), Exchange(codec_of("int8"), how="all_to_all")
    before = inputs(rank)
    same = inputs(rank)
    one.mean(same)
    exchange.mean({})
    exchange.mean({"empty": torch.empty(0, 3)})
    plain, turned = torch.randn(8, 6, generator=torch.Generator().manual_seed(rank)), {}
    turned["turned"] = plain.t().contiguous().t()
    straight = {"straight": plain.clone()}
    exchange.mean(turned)
    exchange.mean(straight)
    one.close()
    exchange.close()
    return digest(same) == digest(before) and torch.equal(turned["turned"], straight["straight"])


@pytest.mark.dist
def test_odd_tensors(pool):
    assert all(pool(2).run(nothing_to_send))


@pytest.mark.dist
def test_errors_follow_their_tensors(pool):
    assert max(pool(3).run(rebuilt)) < 0.5


def differing(what: str) -> str:
    rank = dist.get_rank()
    codec = codec_of("int4" if what == "codec" and rank else "int8")
    exchange = Exchange(codec, how="all_to_all", warmup=rank if what == "settings" else 0)
    tensors = inputs(rank)
    if what == "tensors" and rank == 1:
        tensors["another"] = tensors.pop("norm.weight")
    try:
        exchange.mean(tensors)
    except ThriftyError as error:
        return str(error)
    finally:
        exchange.close()
    return "nothing"


@pytest.mark.dist
@pytest.mark.parametrize("what", ["codec", "settings", "tensors"])
def test_ranks_must_agree(pool, what):
    for told in pool(3).run(differing, what):
        assert f"rank 1 and rank 0 of the group differ in {what}" in told
