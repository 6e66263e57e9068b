"""A rank that dies, and payloads that are cut short: an error on every rank within the timeout, and no hang."""

from __future__ import annotations

import datetime
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from thrifty.compress import Exchange, Payload, TopK, codec_of
from thrifty.spec.errors import ThriftyError

TIMEOUT_SECONDS = 4.0


def told_by(exchange: Exchange, tensors: dict[str, torch.Tensor]) -> str:
    try:
        exchange.mean(tensors)
    except ThriftyError as error:
        return str(error)
    return "a mean"


def _rank(rank: int, ranks: int, folder: str, codec: str, how: str, islands: bool) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", ranks), rank=rank, world_size=ranks)
    options: dict[str, Any] = {"how": how, "timeout_seconds": TIMEOUT_SECONDS}
    if islands:
        within, across = [dist.new_group([0, 1]), dist.new_group([2, 3])], [dist.new_group([0, 2]), dist.new_group([1, 3])]
        exchange = Exchange(codec_of(codec), across[rank % 2], within=within[rank // 2], **options)
    else:
        exchange = Exchange(codec_of(codec), **options)
    tensors = {"a": torch.ones(20000), "b": torch.ones(3)}
    exchange.mean(tensors)
    if rank == ranks - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    pending = [exchange.start(tensors) for _ in range(3)]
    text = ""
    for one in pending:
        try:
            one.wait()
        except ThriftyError as error:
            text = str(error)
    Path(f"{folder}/{rank}").write_text(text, encoding="utf-8")


@pytest.mark.dist
@pytest.mark.kill
@pytest.mark.parametrize(
    ("codec", "how", "ranks", "islands"),
    [
        ("int8", "all_to_all", 3, False),
        ("topk(1/8)", "all_gather", 3, False),
        ("randomk(4)", "all_reduce", 4, False),
        ("int8", "auto", 4, True),
    ],
)
def test_a_rank_that_is_killed(tmp_path, codec, how, ranks, islands):
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(rank, ranks, str(tmp_path), codec, how, islands), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    end = datetime.datetime.now() + datetime.timedelta(seconds=100)  # most of it starts processes
    for process in processes:
        process.join(max(0.0, (end - datetime.datetime.now()).total_seconds()))
    hung = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
    assert not any(hung)
    for rank in range(ranks - 1):
        told = (tmp_path / str(rank)).read_text(encoding="utf-8")
        assert "died, left, or did not answer" in told or "failed on rank" in told


def cut_short(codec: str, how: str, hop: int) -> tuple[str, bool]:
    """Rank 1 cuts its payloads of one hop; what every rank says, and whether its errors are as before."""
    exchange = Exchange(codec_of(codec), how=how)
    exchange.mean({"a": torch.arange(20000.0), "b": torch.ones(3)})
    before = exchange.state_dict()
    whole, calls = Payload.to_buffer, 0

    def cut(self: Payload) -> torch.Tensor:
        nonlocal calls
        calls += 1
        buffer = whole(self)
        first = calls <= dist.get_world_size() if how == "all_to_all" else True
        return buffer[:-9] if first == (hop == 1) else buffer

    if dist.get_rank() == 1:
        Payload.to_buffer = cut  # type: ignore[method-assign]
    try:
        told = told_by(exchange, {"a": torch.arange(20000.0), "b": torch.ones(3)})
    finally:
        Payload.to_buffer = whole  # type: ignore[method-assign]
    same = all(torch.equal(before[name], tensor) for name, tensor in exchange.state_dict().items())
    exchange.close()
    return told, same


@pytest.mark.dist
@pytest.mark.parametrize(
    ("codec", "how", "hop"),
    [
        ("int8", "all_to_all", 1),
        ("int8", "all_to_all", 2),
        ("topk(1/8) + zstd", "all_to_all", 1),
        ("topk(1/8) + zstd", "all_to_all", 2),
        ("int4", "all_gather", 1),
        ("int4 + zstd", "all_gather", 1),
    ],
)
def test_a_payload_cut_short(pool, codec, how, hop):
    for rank, (told, same) in enumerate(pool(3).run(cut_short, codec, how, hop)):
        assert "payload" in told
        assert rank == 1 or "from rank" in told
        assert same


def cannot_encode() -> str:
    """A codec that fails on rank 2 alone."""
    forward = TopK.forward

    def failing(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    exchange = Exchange(codec_of("topk(1/8)"), how="all_to_all")
    if dist.get_rank() == 2:
        TopK.forward = failing  # type: ignore[method-assign]
    try:
        return told_by(exchange, {"a": torch.ones(1000)})
    finally:
        TopK.forward = forward  # type: ignore[method-assign]
        exchange.close()


@pytest.mark.dist
def test_a_rank_that_cannot_encode(pool):
    told = pool(3).run(cannot_encode)
    assert "out of memory" in told[2]
    assert all("payload from rank 2" in one for one in told[:2])


def after_a_failure() -> list[str]:
    exchange = Exchange(codec_of("int8"))
    first = told_by(exchange, {"a": torch.ones(10 + dist.get_rank())})
    second = told_by(exchange, {"a": torch.ones(10)})
    exchange.close()
    try:
        third = told_by(exchange, {})
    except ThriftyError as error:
        third = str(error)
    return [first, second, third]


@pytest.mark.dist
def test_it_stays_failed(pool):
    """An exchange whose ranks may be in different places is not used again."""
    for first, second, third in pool(2).run(after_a_failure):
        assert "differ in tensors" in first
        assert second == first
        assert "closed" in third
