"""Steps in C are those of the Python functions, bit by bit, whatever the rule, format, dtype, tail and threads.

But for roots: torch's are off by the last bit in a fifth of values, so here they are taken in doubles and rounded once.
"""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from thrifty.cost.payload import block_bytes
from thrifty.optim import AdamW, AdamW8bit, native
from thrifty.optim.elementwise import CHUNK, step_flat, step_floats
from thrifty.optim.rules import ADAM, ADAMW, LION, MOMENTUM, STEP, scalars
from thrifty.quant.states import dither
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import FORMATS, ROOT4, ROOT8, SQUARE4

SETTINGS = {
    "lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "scale": 2.0,
}  # fmt: skip
BLOCKS = [
    (ADAMW, (FORMATS["int8"], ROOT8)), (ADAM, (FORMATS["int8"], ROOT8)), (ADAMW, (SQUARE4, ROOT4)),
    (LION, (FORMATS["int8"],)), (MOMENTUM, (FORMATS["int8"],)), (LION, (SQUARE4,)),
]  # fmt: skip
DTYPES = [(p, g) for p in (torch.float32, torch.bfloat16) for g in (torch.float32, torch.bfloat16)]
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here")
pytestmark = needs_compiler


@pytest.fixture
def rounded_roots(monkeypatch):
    root = torch.Tensor.sqrt
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: root(x.double()).to(x.dtype))


def gradient(values, step):
    """Heavy tails, and a stretch that hears nothing."""
    x = torch.randn(values, generator=torch.Generator().manual_seed(step))
    x = x * x.abs() * 1e-3
    x[values // 3 : values // 2] = 0
    return x


def equal(one, other):
    return torch.equal(one.float().nan_to_num(7.0), other.float().nan_to_num(7.0))


@pytest.mark.parametrize(("rule", "forms"), BLOCKS, ids=lambda x: getattr(x, "name", None) or x[0].name)
@pytest.mark.parametrize(("p_dtype", "g_dtype"), DTYPES)
@pytest.mark.parametrize("values", [4096, 1000, 257, 13])
def test_blocks_are_those_of_python_bit_by_bit(rule, forms, p_dtype, g_dtype, values, rounded_roots):
    start = torch.randn(values, generator=torch.Generator().manual_seed(99)).to(p_dtype)
    states = []
    for form in forms:
        codes, scales = block_bytes(values, form, form.block)
        states += [torch.zeros(codes, dtype=torch.uint8), torch.zeros(scales // 2, dtype=torch.bfloat16)]
    plain, fast = ([start.clone(), *(t.clone() for t in states)] for _ in range(2))
    for step in range(1, 30):
        g, h = gradient(values, step).to(g_dtype), scalars(rule, SETTINGS, step, start)
        if step == 28:
            g[2], g[-1] = float("nan"), float("inf")
        u = dither(step, forms[0].block, len(forms) + 1)
        for way, compiled in ((plain, False), (fast, None)):
            step_flat(way[0], g, way[1:], u, h, rule, forms, compiled)
    for one, other in zip((plain[0], *plain[2::2]), (fast[0], *fast[2::2]), strict=True):
        assert equal(one, other)
    for at, form in enumerate(forms):  # codes of broken blocks mean nothing
        sound = ~plain[2 + 2 * at].isnan().repeat_interleave(form.block * form.bits // 8)
        codes = [way[1 + 2 * at] for way in (plain, fast)]
        assert torch.equal(codes[0][sound[: len(codes[0])]], codes[1][sound[: len(codes[1])]])


@pytest.mark.parametrize("rule", [ADAMW, ADAM, LION, MOMENTUM, STEP], ids=lambda rule: rule.name)
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("p_dtype", "g_dtype"), DTYPES)
def test_floats_are_those_of_python_bit_by_bit(rule, kept, p_dtype, g_dtype, rounded_roots):
    shapes = [(7, 100), (3,), (256,), (1, 1), (0,)]
    ways = []
    for _ in range(2):
        params = [torch.linspace(-1, 1, int(torch.Size(s).numel())).view(s).to(p_dtype) for s in shapes]
        ways.append((params, [[torch.zeros_like(p, dtype=kept) for p in params] for _ in rule.moments]))
    for step in range(1, 20):
        gradients = [gradient(p.numel(), step).view(p.shape).to(g_dtype) for p in ways[0][0]]
        if step == 18:
            gradients[0][0, 0], gradients[2][3] = float("nan"), -float("inf")
        u, h = dither(step, CHUNK, len(rule.moments) + 1), scalars(rule, SETTINGS, step, gradients[0])
        for (params, moments), compiled in zip(ways, (False, None), strict=True):
            step_floats(params, gradients, moments, u, h, rule, compiled)
    (one, first), (other, second) = ways
    assert all(equal(p, q) for p, q in zip(one, other, strict=True))
    assert all(
        equal(p, q) for some, others in zip(first, second, strict=True) for p, q in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("make", [AdamW8bit, AdamW])
def test_no_result_depends_on_the_number_of_threads(make):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            params = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (300_001, 5, 70_000)]
            optimizer = make(params)
            for step in range(3):
                for p in params:
                    p.grad = gradient(p.numel(), step)
                optimizer.step()
            results.append([p.detach() for p in params])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(p, q) for other in results[1:] for p, q in zip(results[0], other, strict=True))


def test_adamw_goes_on_where_torch_left_off_and_back():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 6000).view(60, 100)) for _ in range(2))
    one, other = AdamW([ours], lr=1e-2), torch.optim.AdamW([theirs], lr=1e-2)
    for step in range(9):
        ours.grad, theirs.grad = (gradient(6000, step).view(60, 100) for _ in range(2))
        one.step()
        other.step()
        if step % 3 == 2:  # each takes the other's state
            mine = one.state_dict()
            one.load_state_dict(other.state_dict())
            other.load_state_dict(mine)
    # Each of nine steps rounds a weight below 2 in another order, four times by half of 2^-23 at most.
    assert torch.allclose(ours, theirs, rtol=0, atol=9 * 2.0**-22)


@pytest.mark.parametrize("make", [AdamW8bit, AdamW])
def test_views_that_skip_values(make):
    base = torch.linspace(-1, 1, 12000)
    p, q = torch.nn.Parameter(base.clone()[::2]), torch.nn.Parameter(base[::2].clone())
    p.grad = torch.ones(1).expand(6000)
    q.grad = torch.ones(6000)
    assert p.stride() == (2,)
    assert p.grad.stride() == (0,)
    for one in (p, q):
        make([one]).step()
    assert torch.equal(p, q)


def test_adamw_climbs_where_it_is_told_to():
    p, q = (torch.nn.Parameter(torch.ones(5000)) for _ in range(2))
    p.grad, q.grad = gradient(5000, 0), -gradient(5000, 0)
    AdamW([p], maximize=True).step()
    AdamW([q]).step()
    assert torch.equal(p, q)


def test_moments_of_16_bits_take_half_and_follow():
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 8192)) for _ in range(2))
    narrow, wide = AdamW([p], state_bits=16), AdamW([q])
    for step in range(200):
        p.grad, q.grad = gradient(8192, step), gradient(8192, step)
        narrow.step()
        wide.step()
    assert narrow.state[p]["exp_avg_sq"].dtype == torch.bfloat16
    assert float((p - q).norm() / (q - torch.linspace(-1, 1, 8192)).norm()) < 0.02


def test_adamw_refuses_what_it_does_not_do():
    p = torch.nn.Parameter(torch.ones(3))
    for settings, told in (({"amsgrad": True}, "amsgrad"), ({"state_bits": 8}, "moments of 8 bits")):
        with pytest.raises(ThriftyError, match=told):
            AdamW([p], **settings)
    state = torch.optim.AdamW([p], amsgrad=True).state_dict()
    with pytest.raises(ThriftyError, match="amsgrad"):
        AdamW([p]).load_state_dict(state)


def test_without_a_compiler_steps_are_plain_and_say_so(monkeypatch):
    native.library.cache_clear()
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    try:
        p = torch.nn.Parameter(torch.ones(5000))
        p.grad = gradient(5000, 0)
        with pytest.warns(UserWarning, match="no C compiler was found"):
            AdamW8bit([p]).step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AdamW8bit([p]).step()  # said once
    finally:
        native.library.cache_clear()
    assert not torch.equal(p.detach(), torch.ones(5000))


def test_what_is_built_is_kept_for_the_next_process(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is not None
        (built,) = (tmp_path / "thrifty" / "native").iterdir()  # nothing half-made beside it
        before = built.stat().st_mtime_ns
        native.library.cache_clear()
        assert native.library() is not None
        assert built.stat().st_mtime_ns == before
    finally:
        native.library.cache_clear()
