"""Local steps over real ranks: the same as plain loops, equal on all islands, resumed in the middle of a round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from local_oracle import INNER_LR, Oracle, Toy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from thrifty.compress import AVERAGE, DILOCO, Exchange, Feedback, Identity, LocalSteps, codec_of
from thrifty.spec.errors import ThriftyError

pytestmark = pytest.mark.dist

SCHEMES: dict[str, tuple[Any, list[list[str]], dict[str, Any]]] = {
    "post-local SGD": (AVERAGE, [list("abcd")], {}),
    "DiLoCo": (DILOCO, [list("abcd")], {}),
    "streaming": (DILOCO, [["a"], ["b"], ["c", "d"]], {"delay": 2}),
    "streaming, mixed": (DILOCO, [["a"], ["b", "c", "d"]], {"delay": 4, "alpha": 0.5}),
}
EVERY = 6


def toy_run(scheme: str, steps: int, finish: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outer, fragments, more = SCHEMES[scheme]
    model, exchange = Toy(torch.float32), Exchange(Identity())
    inner = torch.optim.SGD(model.parameters(), lr=INNER_LR)
    local = LocalSteps(model, exchange, every=EVERY, outer=outer, fragments=len(fragments), **more)
    for step in range(1, steps + 1):
        model.set_gradients(dist.get_rank(), step)
        inner.step()
        local.after_step()
    if finish:
        local.finish()
    with local.global_weights():
        anchor = model.values()
    exchange.close()
    return model.values(), anchor


def same_bits(found: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(one[name], found[0][name]) for one in found for name in found[0])


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_the_plain_loop_and_all_agree(pool, ranks, scheme):
    outer, fragments, more = SCHEMES[scheme]
    found = pool(ranks).run(toy_run, scheme, 26)
    wanted = Oracle(ranks, EVERY, outer.kind, outer.lr, outer.momentum, fragments, **more).train(26)
    assert same_bits([anchor for _, anchor in found])
    for rank, (own, anchor) in enumerate(found):
        for name in own:  # 26 steps of rounding to 24 bits, values of about 3
            torch.testing.assert_close(own[name].double(), wanted.own[rank][name], rtol=0, atol=1e-5)
            torch.testing.assert_close(anchor[name].double(), wanted.anchor[name], rtol=0, atol=1e-5)
    finished = pool(ranks).run(toy_run, scheme, 26, True)
    assert same_bits([own for own, _ in finished])


# ---- a real model, AdamW inside, sparse and quantised between


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 40))


def batch(island: int, step: int) -> Tensor:
    draw = torch.Generator().manual_seed(100 * island + step)
    return torch.randn(16, 40, generator=draw) @ torch.linspace(0.5, 1.5, 1600).sin().view(40, 40)


def inner_step(model: nn.Module, inner: torch.optim.Optimizer, island: int, step: int) -> None:
    x = batch(island, step)
    (model(x) - x.roll(1, 1)).square().mean().backward()
    inner.step()
    inner.zero_grad()


def sparse(group: Any = None) -> Exchange:
    return Exchange(codec_of("topk(1/8) + means2"), group, feedback=Feedback(decay=0.95))


def sparse_run(steps: int, cut: int = 0, more: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """SparseLoCo; with `cut`, everything is made anew from what was saved after that step."""
    island = dist.get_rank()

    def made() -> tuple[nn.Module, torch.optim.Optimizer, Exchange, LocalSteps]:
        model, exchange = network(), sparse()
        inner = torch.optim.AdamW(model.parameters(), lr=3e-3)
        return model, inner, exchange, LocalSteps(model, exchange, every=5, **{"outer": AVERAGE, **(more or {})})

    model, inner, exchange, local = made()
    for step in range(1, steps + 1):
        inner_step(model, inner, island, step)
        local.after_step()
        if step == cut:
            saved = local.state_dict(), exchange.state_dict(), model.state_dict(), inner.state_dict()
            exchange.close()
            model, inner, exchange, local = made()
            for one, state in zip((local, exchange, model, inner), saved, strict=True):
                one.load_state_dict(state)
    local.finish()
    exchange.close()
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def sparse_by_hand(islands: int, rounds: int) -> dict[str, Tensor]:
    codec = codec_of("topk(1/8) + means2")
    models = [network() for _ in range(islands)]
    inners = [torch.optim.AdamW(model.parameters(), lr=3e-3) for model in models]
    names = [name for name, _ in models[0].named_parameters()]
    anchor = torch.cat([one.detach().flatten() for one in models[0].parameters()])
    errors = [torch.zeros_like(anchor) for _ in models]
    for step in range(1, 5 * rounds + 1):
        for island, (model, inner) in enumerate(zip(models, inners, strict=True)):
            inner_step(model, inner, island, step)
        if step % 5:
            continue
        sent = []
        for island, model in enumerate(models):
            moved = anchor - torch.cat([one.detach().flatten() for one in model.parameters()])
            fed = moved + 0.95 * errors[island]
            sent.append(codec.decode(codec.encode(fed), like=fed))
            errors[island] = fed - sent[-1]
        anchor = anchor - sum(sent) / islands
        for model in models:
            nn.utils.vector_to_parameters(anchor.clone(), model.parameters())
    return dict(zip(names, [one.detach() for one in models[0].parameters()], strict=True))


@pytest.mark.parametrize("ranks", [2, 4])
def test_sparse_local_steps_are_the_papers_loop(pool, ranks):
    found = pool(ranks).run(sparse_run, 15)
    assert same_bits(found)
    wanted = sparse_by_hand(ranks, 3)
    for name, one in found[0].items():
        torch.testing.assert_close(one, wanted[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("more", [{}, {"outer": DILOCO, "fragments": 2, "delay": 2}], ids=["whole", "streaming"])
@pytest.mark.parametrize("cut", [3, 5, 6])
def test_a_run_cut_in_the_middle_of_a_round_goes_on_as_if_it_had_not_been(pool, cut, more):
    whole, resumed = pool(2).run(sparse_run, 14, 0, more), pool(2).run(sparse_run, 14, cut, more)
    assert same_bits([*whole, *resumed])


# ---- islands of two ranks that share the parameters


def sharded_run() -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("island", "shard"))
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    exchange = Exchange(Identity(), mesh["island"].get_group())
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    local = LocalSteps(model, exchange, every=3)
    for step in range(1, 8):
        inner_step(model, inner, mesh["island"].get_local_rank(), step)
        local.after_step()
        if step == 4:
            saved = local.state_dict()
            assert all(isinstance(one, DTensor) for one in saved["anchor"].values())
            local.load_state_dict(saved)
    local.finish()
    exchange.close()
    return {name: one.detach().full_tensor() for name, one in model.named_parameters()}


def unsharded_run() -> dict[str, Tensor]:
    model, exchange = network(), Exchange(Identity())
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    local = LocalSteps(model, exchange, every=3)
    for step in range(1, 8):
        inner_step(model, inner, dist.get_rank(), step)
        local.after_step()
    local.finish()
    exchange.close()
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def test_sharded_islands_exchange_shards(pool):
    """Both ranks of an island see the same batch, so that sharding changes nothing but where values are."""
    found, wanted = pool(4).run(sharded_run), pool(2).run(unsharded_run)
    assert same_bits(found)
    for name, one in found[0].items():
        torch.testing.assert_close(one, wanted[0][name], rtol=0, atol=1e-6)


def different_start() -> str:
    model, exchange = Toy(torch.float32), Exchange(Identity())
    with torch.no_grad():
        model.b.add_(float(dist.get_rank() == 1))
    try:
        LocalSteps(model, exchange, every=2)
    except ThriftyError as error:
        return str(error)
    finally:
        exchange.close()
    return ""


def test_islands_that_start_apart_are_refused_on_every_rank(pool):
    for told in pool(3).run(different_start):
        assert "islands [1] start from other parameters than island 0" in told
