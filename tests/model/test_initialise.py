"""Starting values are a function of (seed, name): not of order, device, dtype, or how the tensor is cut."""

import pytest
import torch
from torch import nn

from thrifty.model import initialise as module
from thrifty.model.initialise import initialise
from thrifty.model.transformer import Transformer
from thrifty.spec.job import ModelShape

SHAPE = ModelShape(layers=3, hidden=48, heads=4, ffn=96, vocab_size=400, max_positions=200)
GPT = SHAPE.model_copy(update={"norm": "layernorm", "mlp": "gelu", "positions": "learned", "bias": "all"})


def values(shape=SHAPE, seed=1, dtype=torch.float32):
    model = Transformer(shape).to(dtype)
    model.init_weights(seed)
    return dict(model.named_parameters())


def test_seeds_and_names_decide():
    first, again, other = values(), values(), values(seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert not torch.equal(first["blocks.0.attention.query.weight"], first["blocks.0.attention.key.weight"])
    assert not torch.equal(first["blocks.0.mlp.up.weight"], first["blocks.1.mlp.up.weight"])


def test_the_global_generator_and_the_order_do_not_matter():
    first = values()
    torch.manual_seed(123)
    torch.randn(7)
    backwards = Transformer(SHAPE)

    class Reversed(nn.Module):
        shape = SHAPE

        def named_parameters(self, *args, **kwargs):
            return iter(reversed(list(backwards.named_parameters())))

    initialise(Reversed(), 1)
    assert all(torch.equal(first[name], p) for name, p in backwards.named_parameters())


def test_dtypes_get_the_same_values_rounded():
    single, double, half = (values(dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16))
    for name, parameter in single.items():
        assert torch.equal(double[name], parameter.double())
        assert torch.equal(half[name], parameter.bfloat16())


def test_values_follow_gpt2():
    found = values(GPT)
    for name, parameter in found.items():
        if parameter.dim() == 2:
            std = 0.02 / 6**0.5 if name.endswith(("attention.output.weight", "mlp.down.weight")) else 0.02
            # Both estimates of n draws have deviation about std / sqrt(n) or less; allow five of them.
            bound = 5 * std / parameter.numel() ** 0.5
            assert parameter.std().item() == pytest.approx(std, abs=bound)
            assert parameter.mean().item() == pytest.approx(0, abs=bound)
        else:
            assert torch.all(parameter == (0 if name.endswith("bias") else 1)), name


def test_a_rank_draws_only_what_it_holds(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 48 * 10)
    whole = values()["embed.weight"]
    drawn = []
    original = torch.Tensor.normal_
    monkeypatch.setattr(torch.Tensor, "normal_", lambda t, *a, **k: drawn.append(t.shape[0]) or original(t, *a, **k))
    rows = slice(205, 260)
    monkeypatch.setattr(module, "held", lambda parameter: (rows, slice(0, 48)))

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(400, 48))

    part = Part()
    module._fill_normal(part.weight.data, 0.02, "1/embed.weight")
    assert torch.equal(part.weight[:55], whole[rows])
    assert sum(drawn) == 60  # rows 200 to 260, six blocks of ten
