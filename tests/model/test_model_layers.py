"""Each hand-made kernel beside the torch function that says what it should be, values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.model.layers import LayerNorm, Linear, RMSNorm, gelu_, rope_tables, rotate, swiglu
from thrifty.model.short_attention import BLOCK, LONGEST, short_attention, suits
from thrifty.spec.job import ModelShape

EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


def drawn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def values_and_gradients(function, inputs):
    y = function(*inputs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    return [y, *torch.autograd.grad(y, inputs, grad)]


def assert_alike(fast, reference, inputs, roundings):
    """Both against the reference in fp64, within so many roundings of the inputs' dtype, and the dtype is kept."""
    exact = values_and_gradients(reference, [x.detach().double().requires_grad_() for x in inputs])
    for got, want, source in zip(values_and_gradients(fast, inputs), exact, [inputs[0], *inputs], strict=True):
        assert got.dtype == source.dtype
        error = (got.double() - want).norm() / (want.norm() + 1e-300)
        assert error <= roundings * EPS[source.dtype], (got.shape, float(error))


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 8), (1, 64)])
def test_rms_norm(dtype, shape):
    x, weight = drawn(*shape, dtype=dtype), drawn(shape[-1], dtype=dtype, seed=1)
    module = RMSNorm(shape[-1], eps=1e-3)

    def fast(x, weight):
        return torch.func.functional_call(module, {"weight": weight}, x)

    assert_alike(fast, lambda x, w: F.rms_norm(x, (shape[-1],), w, 1e-3), [x, weight], roundings=8)


@pytest.mark.parametrize("dtype", EPS)
def test_gelu(dtype):
    x = torch.linspace(-9, 9, 301, dtype=torch.float64).to(dtype).requires_grad_()
    # The slope takes 1 - gate times up to 2 sqrt(2/pi) x (1 + 3 c x^2), which is 60 where it still counts, at x = 6.
    assert_alike(lambda x: gelu_(x.clone()), lambda x: F.gelu(x, approximate="tanh"), [x], roundings=60)


@pytest.mark.parametrize("dtype", EPS)
def test_swiglu(dtype):
    gate, up = drawn(5, 8, dtype=dtype), drawn(5, 8, dtype=dtype, seed=1)
    assert_alike(swiglu, lambda g, u: F.silu(g) * u, [gate, up], roundings=8)


def test_fast_kernels_pass_the_gradient_check():
    x, w = drawn(3, 6), drawn(6, seed=1)
    module = RMSNorm(6, eps=1e-5).double()
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(module, {"weight": w}, x), (x, w))
    assert torch.autograd.gradcheck(swiglu, (x, drawn(3, 6, seed=2)))
    q, k = drawn(2, 4, 5, 2), drawn(2, 2, 5, 2, seed=1)
    assert torch.autograd.gradcheck(short_attention, (q, k, drawn(2, 2, 5, 2, seed=2)))


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    seq=st.sampled_from([1, 2, 63, 64, 65, 130]),
    head_dim=st.sampled_from([1, 3, 8]),
    dtype=st.sampled_from(list(EPS)),
)
def test_short_attention(batch, kv_heads, group, seq, head_dim, dtype):
    # As the model hands them over: transposed views of (batch, seq, heads, head_dim).
    q = drawn(batch, seq, kv_heads * group, head_dim, dtype=dtype)
    k, v = (drawn(batch, seq, kv_heads, head_dim, dtype=dtype, seed=s) for s in (1, 2))

    def reference(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    if seq == 1:  # one key: the scores' gradient is zero, and what is left of it is rounding
        fast = short_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        assert torch.equal(fast, reference(q, k, v))
        return
    assert_alike(lambda *x: short_attention(*(t.transpose(1, 2) for t in x)), reference, [q, k, v], roundings=24)


def test_short_attention_is_for_short_sequences_read_at_once():
    def query(seq, dtype=torch.bfloat16, device="cpu"):
        return torch.empty(1, 2, seq, 4, dtype=dtype, device=device)

    assert suits(query(64), query(64))
    assert suits(query(LONGEST), query(LONGEST))
    assert not suits(query(LONGEST + 1), query(LONGEST + 1))
    assert suits(query(BLOCK, torch.float32), query(BLOCK, torch.float32))
    assert not suits(query(BLOCK + 1, torch.float32), query(BLOCK + 1, torch.float32))
    assert not suits(query(64, torch.float64), query(64, torch.float64))
    assert not suits(query(3), query(64))
    assert not suits(query(64, device="meta"), query(64, device="meta"))


@pytest.mark.parametrize("module", [Linear(6, 4, bias=True), LayerNorm(6, eps=1e-5)])
def test_layers_compute_in_the_dtype_of_their_input_and_leave_weights_alone(module):
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    x = drawn(3, 6, dtype=torch.bfloat16)
    y = module(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert module.weight.dtype == module.weight.grad.dtype == torch.float32
    assert torch.equal(y, module.to(torch.bfloat16)(x))


def test_scores_of_rotated_vectors_depend_on_distance_alone():
    shape = ModelShape(layers=1, hidden=8, heads=1, ffn=8, vocab_size=8, rope_theta=100.0)
    q, k = drawn(1, 1, 1, 8), drawn(1, 1, 1, 8, seed=1)
    cos, sin = rope_tables(shape, torch.arange(40), torch.float64)
    turned_q, turned_k = (rotate(x.expand(1, 40, 1, 8), cos, sin)[0, :, 0] for x in (q, k))  # (40, 8)
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 7):
        along = scores.diagonal(-distance)
        assert torch.allclose(along, along[0].expand_as(along), rtol=1e-12)
    assert torch.allclose(turned_q[0], q.flatten())


def test_rotary_tables_are_wider_than_16_bit():
    shape = ModelShape(layers=1, hidden=8, heads=1, ffn=8, vocab_size=8)
    wide = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    for dtype, expected in wide.items():
        assert {table.dtype for table in rope_tables(shape, torch.arange(3), dtype)} == {expected}
    cos, _ = rope_tables(shape, torch.tensor([1000]), torch.float64)
    assert cos[0, 0, 1].item() == pytest.approx(math.cos(1000 * 10000 ** (-2 / 8)), rel=1e-12)
