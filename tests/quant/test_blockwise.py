"""The quantizer against doubles, one block at a time; and what it does with values no quantizer likes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.quant import FORMATS, block_format, dequantise, lattice, quantise, uniform
from thrifty.quant.kernels import SMALLEST, decode_rows
from thrifty.quant.reference import round_trip
from thrifty.quant.rounding import dithered_bfloat16
from thrifty.quant.states import inverse, state_codes, state_scales
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import ROOT4, ROOT8, SQUARE4

FORMS = [*FORMATS.values(), uniform(0.26, block=64), lattice(0.3, block=64)]
BLOCK = 32
SCALED = [form for form in FORMS if form.kind == "uniform" and not form.step]


def named(form):
    return f"{form.name}-{form.step}" if form.step else form.name


def back(x, form, **options):
    return dequantise(quantise(x, form, **options), x.dtype)


def samples():
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(40 * BLOCK, generator=generator)
    return torch.cat([normal, normal.sign() * normal.abs() ** 4, normal * 1e-20, normal * 1e30])


@pytest.mark.parametrize("form", FORMS, ids=named)
def test_every_block_comes_back_as_doubles_say(form):
    x = samples()
    found = back(x, form, block=BLOCK).double()
    wrong = 0
    for row, got in zip(x.double().view(-1, BLOCK), found.view(-1, BLOCK), strict=True):
        told = torch.tensor(round_trip(row.tolist(), form), dtype=torch.float64)
        near = (got - told).abs() <= 2e-7 * row.abs().max()
        # A value between two codes may fall on either side in fp32 and move its block's scale: about as near.
        if not near.all():
            wrong += 1
            assert (got - row).norm() <= 1.02 * (told - row).norm() + 1e-6 * row.norm()
    assert wrong <= 3


@pytest.mark.parametrize("form", FORMS, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 64, 65, 1000])
def test_any_size_and_dtype(form, dtype, numel):
    x = torch.linspace(-2, 3, numel).to(dtype)
    q = quantise(x, form, block=64)
    y = dequantise(q, dtype)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert torch.equal(y, dequantise(quantise(x.float(), form, block=64), dtype))
    if numel:
        assert (y.double() - x.double()).norm() < x.double().norm()


@pytest.mark.parametrize("form", FORMS, ids=named)
def test_zero_blocks_stay_zero_beside_others(form):
    x = torch.zeros(3, BLOCK)
    x[1] = torch.linspace(-1, 1, BLOCK)
    y = back(x.view(-1), form, block=BLOCK).view(3, BLOCK)
    assert not y[0].any()
    assert not y[2].any()
    assert y[1].any()


@pytest.mark.parametrize("form", FORMS, ids=named)
@pytest.mark.parametrize("value", [3.0, -1e-25, 1e37, 3.4e38, -3.4e38])
def test_constant_and_huge_blocks_stay_finite_and_near(form, value):
    y = back(torch.full((BLOCK,), value), form, block=BLOCK)
    assert torch.isfinite(y).all()
    # Half a step of the coarsest format here; near the end of fp32 scales saturate, so that no level overflows.
    saturates = form.kind in ("levels", "lattice") and abs(value) > 1e38
    assert (y / value - 1).abs().max() < (0.7 if saturates else 0.3 if form.step else 0.05)


@pytest.mark.parametrize("form", FORMS, ids=named)
def test_subnormal_blocks_vanish(form):
    assert not back(torch.full((BLOCK,), 1e-40), form, block=BLOCK).any()
    assert not back(torch.full((BLOCK,), SMALLEST / 2), form, block=BLOCK).any()
    assert back(torch.full((BLOCK,), SMALLEST * 2), form, block=BLOCK).all()


@pytest.mark.parametrize("form", FORMS, ids=named)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_broken_value_shows_in_its_block_only(form, bad):
    x = torch.ones(3 * BLOCK)
    x[BLOCK + 5] = bad
    y = back(x, form, block=BLOCK).view(3, BLOCK)
    assert y[1].isnan().all()
    assert torch.isfinite(y[[0, 2]]).all()


def test_beyond_fp32_is_not_finite():
    assert back(torch.full((BLOCK,), 1e300, dtype=torch.float64), "int8", block=BLOCK).isnan().all()


@pytest.mark.parametrize("form", FORMS, ids=named)
def test_compiled_kernels_say_the_same(form):
    x = samples().view(-1, BLOCK)
    x[3], x[5, 2], x[7, 1], x[9] = 0, math.nan, math.inf, 1e-40
    plain = quantise(x, form, block=BLOCK, compiled=False)
    fused = quantise(x, form, block=BLOCK, compiled=True)
    assert torch.equal(dequantise(plain, compiled=True).nan_to_num(7), dequantise(plain, compiled=False).nan_to_num(7))
    if form.kind == "float" or (form.kind == "uniform" and not form.step):
        assert torch.equal(fused.codes, plain.codes)
        assert torch.equal(fused.scales.nan_to_num(7), plain.scales.nan_to_num(7))
    scale = x.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True).expand_as(x).reshape(-1)
    one, other = (dequantise(q).nan_to_num(0) for q in (plain, fused))
    # Sums in another order may move a scale by its last bit, of eight, and a value between two codes to the other one.
    assert ((one - other).abs() > 2**-7 * scale).float().mean() < 0.002


@pytest.mark.parametrize("form", SCALED, ids=named)
def test_stochastic_rounding_is_unbiased(form):
    x = samples()[: 4 * BLOCK]
    rounds = 600
    total = sum(back(x, form, block=BLOCK, rounding="stochastic", seed=seed).double() for seed in range(rounds))
    step = x.view(-1, BLOCK).abs().amax(1, keepdim=True).expand(-1, BLOCK).reshape(-1) / form.top * 1.02
    # A step's fraction has at most a standard deviation of half a step: five of them for the mean of so many.
    assert ((total / rounds - x).abs() <= 5 * 0.5 * step / math.sqrt(rounds) + 1e-7 * step).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_stochastic_rounding_does_not_depend_on_the_layout(compiled):
    x = samples()
    whole = quantise(x, "int4", block=BLOCK, rounding="stochastic", seed=2**40 + 7, compiled=compiled)
    pieces = [
        quantise(x[a:b], "int4", block=BLOCK, rounding="stochastic", seed=2**40 + 7, first_block=a // BLOCK)
        for a, b in [(0, 3 * BLOCK), (3 * BLOCK, 100 * BLOCK), (100 * BLOCK, x.numel())]
    ]
    assert torch.equal(whole.codes, torch.cat([piece.codes for piece in pieces]))
    other = quantise(x, "int4", block=BLOCK, rounding="stochastic", seed=7)
    assert not torch.equal(whole.codes, other.codes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=100),
    st.sampled_from(FORMS),
)
def test_no_block_comes_back_with_more_error_than_it_had_energy(values, form):
    x = torch.tensor(values)
    y = back(x, form, block=BLOCK).double()
    assert (y - x.double()).norm() <= x.double().norm() * (1 + 2**-8) + 2**-90
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: quantise(torch.ones(8), "int5"), "did you mean"),
        (lambda: quantise(torch.ones(8), 5), "no block format 5"),
        (lambda: quantise(torch.arange(8), "int8"), "only float tensors"),
        (lambda: quantise(torch.ones(8), "int8", block=12), "multiples of 8"),
        (lambda: quantise(torch.ones(8), "sign", rounding="stochastic"), "unequal"),
        (lambda: quantise(torch.ones(8), "int8", rounding="up"), "nearest, stochastic"),
        (lambda: uniform(3.0), "steps lie"),
        (
            lambda: dequantise(
                quantise(torch.ones(8), 8).__class__(torch.ones(3).byte(), torch.ones(1), block_format(8), 8, 8)
            ),
            "8 bytes",
        ),
    ],
)
def test_mistakes_are_explained(call, told):
    with pytest.raises(ThriftyError, match=told):
        call()


@pytest.mark.parametrize("form", [ROOT8, ROOT4], ids=lambda form: form.name)
def test_roots_come_back_as_doubles_say_and_never_as_zero(form):
    x = samples().square().clamp(max=1e37)
    found = back(x, form, block=BLOCK).double()
    for row, got in zip(x.double().view(-1, BLOCK), found.view(-1, BLOCK), strict=True):
        told = torch.tensor(round_trip(row.tolist(), form), dtype=torch.float64)
        step = row.max().sqrt() / form.top if row.max() >= SMALLEST else 0.0
        assert ((got.sqrt() - told.sqrt()).abs() <= 1.01 * step).all()  # at an edge of a code, on either side
        assert ((got - told).abs() <= 1e-5 * row.max()).sum() >= BLOCK - 2
        if row.max() >= SMALLEST:
            assert (got > 0).all()
        again = back(got.float(), form, block=BLOCK).double()
        assert ((again.sqrt() - got.sqrt()).abs() <= 0.51 * step).all()  # no drift from being read and written


def test_squares_come_back_as_doubles_say():
    x = samples()
    found = back(x, SQUARE4, block=BLOCK).double()
    for row, got in zip(x.double().view(-1, BLOCK), found.view(-1, BLOCK), strict=True):
        told = torch.tensor(round_trip(row.tolist(), SQUARE4), dtype=torch.float64)
        assert ((got - told).abs() <= 1e-5 * row.abs().max()).sum() >= BLOCK - 2  # the rest at an edge of a code
        again = back(got.float(), SQUARE4, block=BLOCK).double()
        assert ((again - got).abs() <= 0.51 * 13 / 49 * row.abs().max()).all()


def test_squares_by_chance_are_right_on_the_average():
    x = torch.cat([torch.linspace(-1, 1, 62), torch.tensor([1e-3, 0.0])]).expand(4096, -1).contiguous()
    u = (torch.arange(4096) + 0.5)[:, None] / 4096 * (1 - 2.0**-12)
    scales = state_scales(x, SQUARE4)
    codes = state_codes(x, inverse(scales), u, SQUARE4)
    drawn = decode_rows(scales, codes, SQUARE4, 64, torch.float32).double()
    assert ((drawn.mean(0) - x[0].double()).abs() <= 13 / 49 * 2.0**-11).all()
    assert ((drawn - x).abs() <= 1.001 * 13 / 49).all()


def test_bfloat16_by_chance_is_right_on_the_average():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-32, 32)
    u = (torch.arange(4096) + 0.5)[:, None] / 4096
    drawn = dithered_bfloat16(x.expand(4096, -1), u).double()
    assert ((drawn.mean(0) - x.double()).abs() <= 2.0**-8 * x.abs() / 2048).all()
    assert ((drawn - x).abs() <= 2.0**-7 * x.abs()).all()
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0])
    assert torch.equal(dithered_bfloat16(odd, torch.full((4,), 0.999)).float()[[0, 1, 3]], odd[[0, 1, 3]])
    assert dithered_bfloat16(odd, torch.full((4,), 0.999))[2].isnan()
