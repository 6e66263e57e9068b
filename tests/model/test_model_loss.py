"""The chunked cross entropy beside torch's own, whatever the chunks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.model import loss as module
from thrifty.model.loss import chunk_rows, linear_cross_entropy


def case(tokens, hidden, vocab, dtype, ignored=0.3):
    random = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, hidden, generator=random).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=random).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (tokens,), generator=random)
    targets[torch.rand(tokens, generator=random) < ignored] = -100
    return x, weight, targets


def reference(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight), targets, reduction="sum", ignore_index=-100)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 20), rows=st.integers(1, 25), vocab=st.integers(1, 9), scale=st.floats(-3, 3))
def test_value_and_gradients_do_not_depend_on_the_chunks(tokens, rows, vocab, scale):
    x, weight, targets = case(tokens, 5, vocab, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ROWS", rows)
        patch.setattr(module, "CHUNK_BYTES", 0)
        got = linear_cross_entropy(x, weight, targets)
        with torch.no_grad():
            assert linear_cross_entropy(x, weight, targets).item() == pytest.approx(got.item(), rel=1e-13, abs=1e-13)
    want = reference(x, weight, targets)
    assert got.item() == pytest.approx(want.item(), rel=1e-12, abs=1e-12)
    grads = [torch.autograd.grad(loss * scale, (x, weight)) for loss in (got, want)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_counts_when_every_target_is_masked():
    x, weight, targets = case(6, 4, 5, torch.float32, ignored=2.0)
    loss = linear_cross_entropy(x, weight, targets)
    assert loss.item() == 0
    assert all(not grad.any() for grad in torch.autograd.grad(loss, (x, weight)))


def test_bf16_activations_meet_fp32_masters():
    x, weight, targets = case(40, 16, 30, torch.float32)
    x = x.detach().to(torch.bfloat16).requires_grad_()
    loss = linear_cross_entropy(x, weight, targets)
    assert loss.dtype == torch.float32
    grad_x, grad_weight = torch.autograd.grad(loss, (x, weight))
    assert grad_x.dtype == torch.bfloat16
    assert grad_weight.dtype == torch.float32
    exact_x, exact_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = torch.autograd.grad(reference(exact_x, exact_weight, targets), (exact_x, exact_weight))
    for got, want in zip((grad_x, grad_weight), exact, strict=True):
        # A logit of size 16 rounded to bf16 is off by up to 2^-5, which the softmax turns into its relative error.
        assert (got.double() - want).norm() / want.norm() < 2**-5


def test_a_second_backward_is_refused_not_wrong():
    x, weight, targets = case(6, 4, 5, torch.float32)
    loss = linear_cross_entropy(x, weight, targets)
    (loss * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@given(tokens=st.integers(1, 10**6), vocab=st.integers(1, 300_000))
def test_chunks_are_equal_parts_of_bounded_size(tokens, vocab):
    rows = chunk_rows(tokens, vocab)
    assert 1 <= rows <= max(512, 2**24 // (4 * vocab))
    parts = -(-tokens // rows)
    assert parts == -(-tokens // max(512, 2**24 // (4 * vocab)))


def test_no_tensor_of_all_tokens_by_the_vocabulary_is_made():
    tokens, vocab = 4096, 3000
    x, weight, targets = case(tokens, 2, vocab, torch.float32)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Largest():
        linear_cross_entropy(x, weight, targets).backward()
    assert largest <= chunk_rows(tokens, vocab) * vocab < tokens * vocab
