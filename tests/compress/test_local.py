"""Local steps: every scheme against plain loops in float64, on islands that are threads of one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from local_oracle import INNER_LR, Oracle, Threads, Toy, gradient, start
from thrifty.compress import Exchange, Identity
from thrifty.compress.local import AVERAGE, DILOCO, LocalSteps, Outer
from thrifty.spec.errors import ThriftyError

WHOLE = [list("abcd")]
HALVES = [["a"], ["b", "c", "d"]]  # 12 values each
THIRDS = [["a"], ["b"], ["c", "d"]]
SCHEMES = {
    "post-local SGD": (AVERAGE, WHOLE, {}),
    "DiLoCo": (DILOCO, WHOLE, {}),
    "heavy ball": (Outer("sgd", 0.5, 0.8), WHOLE, {}),
    "fragments, waited for": (DILOCO, HALVES, {}),
    "streaming": (DILOCO, HALVES, {"delay": 2}),
    "streaming, mixed": (DILOCO, THIRDS, {"delay": 4, "alpha": 0.5}),
}
EVERY = 6
ALONE = Exchange(Identity())


def train(threads, steps, outer, fragments, more, *, finish=False, every=EVERY):
    """Steps on every island; parameters, anchor and what after_step said, of each."""

    def island(number, exchange):
        model = Toy()
        inner = torch.optim.SGD(model.parameters(), lr=INNER_LR)
        local = LocalSteps(model, exchange, every=every, outer=outer, fragments=len(fragments), **more)
        said = []
        for step in range(1, steps + 1):
            model.set_gradients(number, step)
            inner.step()
            said.append(local.after_step())
        if finish:
            local.finish()
        with local.global_weights():
            anchor = model.values()
        return model.values(), anchor, said

    return threads.run(island)


def oracle(islands, steps, outer, fragments, more, every=EVERY):
    return Oracle(islands, every, outer.kind, outer.lr, outer.momentum, fragments, **more).train(steps)


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, wanted[name], rtol=1e-12, atol=1e-12)


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(one, wanted[name]) for name, one in found.items())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("steps", [5, 6, 27])
def test_it_is_the_plain_loop(scheme, steps):
    found, wanted = train(Threads(3), steps, *SCHEMES[scheme]), oracle(3, steps, *SCHEMES[scheme])
    for number, (own, anchor, _) in enumerate(found):
        close(own, wanted.own[number])
        close(anchor, wanted.anchor)
        equal(anchor, found[0][1])


def test_it_says_when_it_synchronised():
    (_, _, whole), *_ = train(Threads(2), 12, *SCHEMES["DiLoCo"])
    assert [step for step, said in enumerate(whole, 1) if said] == [6, 12]
    (_, _, streamed), *_ = train(Threads(2), 15, *SCHEMES["streaming"])
    assert [step for step, said in enumerate(streamed, 1) if said] == [5, 8, 11, 14]  # sent at 3, 6, 9, 12


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("steps", [12, 14, 15])
def test_finish_leaves_all_islands_equal(scheme, steps):
    found = train(Threads(3), steps, *SCHEMES[scheme], finish=True)
    for own, anchor, _ in found:
        equal(own, found[0][0])
        equal(own, anchor)


def test_finish_synchronises_what_has_moved_and_nothing_else():
    threads = Threads(2)
    found = train(threads, 6, *SCHEMES["DiLoCo"], finish=True)
    assert threads.exchanges == 1
    close(found[0][0], oracle(2, 6, *SCHEMES["DiLoCo"]).anchor)
    again = Threads(2)
    found = train(again, 4, *SCHEMES["DiLoCo"], finish=True)
    assert again.exchanges == 1
    close(found[0][0], oracle(2, 4, *SCHEMES["DiLoCo"], every=4).anchor)
    # A delayed mean that is taken whole leaves nothing to send, and momentum must not push once more.
    streamed = Threads(2)
    found = train(streamed, 4, DILOCO, WHOLE, {"delay": 2}, finish=True, every=3)
    close(found[0][0], oracle(2, 5, DILOCO, WHOLE, {"delay": 2}, every=3).anchor)
    assert streamed.exchanges == 1


def test_every_step_with_the_average_is_data_parallel_training():
    """theta - mean of lr g_i: one process with the mean gradient, to rounding."""
    found = train(Threads(4), 9, *SCHEMES["post-local SGD"], every=1)
    values = start()
    for step in range(1, 10):
        slopes = [gradient(values, island, step) for island in range(4)]
        values = {name: one - INNER_LR * sum(s[name] for s in slopes) / 4 for name, one in values.items()}
    close(found[0][0], values)


def test_global_weights_are_lent_and_taken_back():
    def island(number, exchange):
        model = Toy()
        inner = torch.optim.AdamW(model.parameters(), lr=INNER_LR)
        local = LocalSteps(model, exchange, every=3)
        for step in range(1, 5):
            model.set_gradients(number, step)
            inner.step()
            local.after_step()
            if step == 3:
                anchor = model.values()
        own = model.values()
        with local.global_weights():
            equal(model.values(), anchor)
        equal(model.values(), own)
        return anchor, own

    (first, own), (second, other) = Threads(2).run(island)
    equal(first, second)
    assert not torch.equal(own["a"], other["a"])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("cut", [2, 4, 7, 13])
def test_resuming_in_the_middle_of_a_round_changes_nothing(scheme, cut):
    outer, fragments, more = SCHEMES[scheme]
    uninterrupted = train(Threads(2), 16, outer, fragments, more, finish=True)

    def made(exchange):
        model = Toy()
        local = LocalSteps(model, exchange, every=EVERY, outer=outer, fragments=len(fragments), **more)
        return model, torch.optim.SGD(model.parameters(), lr=INNER_LR), local

    def island(number, exchange):
        model, inner, local = made(exchange)
        for step in range(1, 17):
            if step == cut + 1:
                saved = model.state_dict(), local.state_dict()
                saved = copy.deepcopy(saved[0]), saved[1]  # what LocalSteps gives is a copy already
                model, inner, local = made(exchange)
                model.load_state_dict(saved[0])
                local.load_state_dict(saved[1])
            model.set_gradients(number, step)
            inner.step()
            local.after_step()
        local.finish()
        return model.values()

    for found, (wanted, _, _) in zip(Threads(2).run(island), uninterrupted, strict=True):
        equal(found, wanted)


def test_bf16_parameters_keep_a_wide_anchor():
    """Steps of 2^-10 at 1.0 vanish in bf16, whose next value is 2^-7 away; the anchor adds them up."""

    def island(number, exchange):
        one = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        local = LocalSteps([("one", one)], exchange, every=1, outer=Outer("sgd", 2**-3, 0.0))
        for _ in range(8):
            with torch.no_grad():
                one.sub_(2**-7)
            local.after_step()
        return local.state_dict()["anchor"]["one"], one.detach().clone()

    (anchor, rounded), _ = Threads(2).run(island)
    assert anchor.dtype == torch.float32
    assert torch.equal(anchor, torch.full((4,), 1 - 8 * 2**-10))
    assert torch.equal(rounded, anchor.bfloat16())


def test_one_island_alone_looks_ahead():
    """With the outer learning rate 0.5 and no momentum it is Lookahead (arXiv:1907.08610)."""
    model = Toy(torch.float32)
    local = LocalSteps(model, ALONE, every=2, outer=Outer("sgd", 0.5, 0.0))
    before = model.values()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(2.0)
    assert [local.after_step(), local.after_step()] == [False, True]
    for name, one in model.values().items():
        torch.testing.assert_close(one, before[name] + 1.0)


def test_frozen_parameters_are_left_alone():
    def island(number, exchange):
        model = nn.Linear(2, 2)
        model.bias.requires_grad_(False)
        nn.init.zeros_(model.weight)
        local = LocalSteps(model, exchange, every=1, outer=AVERAGE)
        with torch.no_grad():
            model.weight.fill_(number)
            model.bias.fill_(number)
        local.after_step()
        return model.weight.mean().item(), model.bias.mean().item()

    assert Threads(3).run(island) == [(1.0, 0.0), (1.0, 1.0), (1.0, 2.0)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every": 0}, "every 0 steps"),
        ({"every": 4, "fragments": 5}, "5 fragments of 4 tensors every 4 steps"),
        ({"every": 4, "fragments": 0}, "0 fragments"),
        ({"every": 4, "delay": 4}, "a delay of 4 steps, every 4"),
        ({"every": 4, "alpha": 1.0}, "alpha 1"),
    ],
)
def test_settings_out_of_range(settings, told):
    with pytest.raises(ThriftyError, match=told):
        LocalSteps(Toy(), ALONE, **settings)


@pytest.mark.parametrize("kwargs", [{"kind": "adam"}, {"lr": 0.0}, {"momentum": 1.0}])
def test_outer_optimizers_that_do_not_exist(kwargs):
    with pytest.raises(ThriftyError, match="outer"):
        Outer(**kwargs)


def test_a_state_of_another_model_or_other_settings_is_refused():
    plain, split = LocalSteps(Toy(), ALONE, every=4), LocalSteps(Toy(), ALONE, every=4, fragments=2)
    with pytest.raises(ThriftyError, match="saved with 2 fragments, this one has 1"):
        plain.load_state_dict(split.state_dict())
    with pytest.raises(ThriftyError, match="momentum is of other parameters"):
        plain.load_state_dict(LocalSteps(Toy(), ALONE, every=4, outer=AVERAGE).state_dict())
    with pytest.raises(ThriftyError, match="anchor is of other parameters"):
        plain.load_state_dict(LocalSteps(nn.Linear(2, 2), ALONE, every=4).state_dict())
