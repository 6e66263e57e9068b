"""The decoder against loops in fp64 that follow the formulas letter by letter, and what its interface promises."""

import math
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.cost.params import parameter_shapes
from thrifty.model.attention import Cache, make_context
from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape

SMALL = {"layers": 2, "hidden": 24, "heads": 4, "ffn": 20, "vocab_size": 37, "max_positions": 16}
SCALING = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_positions": 16}
FAMILIES = {
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "tied_embeddings": True, "bias": "all"},
    "nanogpt": {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "tied_embeddings": True},
    "llama2": {},
    "llama3.1": {"kv_heads": 2, "rope_theta": 500.0, "rope_scaling": SCALING},
    "llama-biased": {"kv_heads": 2, "bias": "all"},
    "qwen2": {"kv_heads": 2, "bias": "qkv", "tied_embeddings": True},
    "qwen3": {"kv_heads": 1, "head_dim": 10, "qk_norm": True},
    "mistral": {"kv_heads": 2, "sliding_window": 5},
    "mistral, half windowed": {"kv_heads": 2, "sliding_window": 5, "full_attention_every": 2},
}


def shape_of(family: str, **changes) -> ModelShape:
    return ModelShape(**{**SMALL, **FAMILIES[family], **changes})


def randomised(shape: ModelShape, dtype=torch.float64, **options) -> Transformer:
    """A model whose every parameter, norms and biases too, is far from its starting value."""
    model = Transformer(shape, **options).to(dtype)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random).to(dtype)
            parameter.copy_(noise * 0.3 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def tokens_of(shape: ModelShape, batch=2, seq=11, seed=0) -> Tensor:
    return torch.randint(shape.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(seed))


# --- the oracle -------------------------------------------------------------------------------------------------------


def naive_norm(shape: ModelShape, p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if shape.norm == "layernorm" and "query_norm" not in name and "key_norm" not in name:
        x = x - x.sum() / len(x)
    x = x / torch.sqrt((x * x).sum() / len(x) + shape.norm_eps) * p[f"{name}.weight"]
    return x + p[f"{name}.bias"] if f"{name}.bias" in p else x


def naive_linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = p[f"{name}.weight"] @ x
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def naive_frequency(shape: ModelShape, i: int) -> float:
    frequency = shape.rope_theta ** (-2 * i / shape.head_dim)
    s = shape.rope_scaling
    if s is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    if wavelength < s.original_max_positions / s.high_freq_factor:
        return frequency
    if wavelength > s.original_max_positions / s.low_freq_factor:
        return frequency / s.factor
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    return (1 - smooth) * frequency / s.factor + smooth * frequency


def naive_rotate(shape: ModelShape, x: Tensor, position: int) -> Tensor:
    half = shape.head_dim // 2
    low, high = [], []
    for i in range(half):
        angle = position * naive_frequency(shape, i)
        low.append(x[i] * math.cos(angle) - x[i + half] * math.sin(angle))
        high.append(x[i] * math.sin(angle) + x[i + half] * math.cos(angle))
    return torch.stack(low + high)


def naive_attention(
    shape: ModelShape, p: dict[str, Tensor], name: str, rows: list[Tensor], window: int | None
) -> list[Tensor]:
    def heads(part: str, position: int) -> list[Tensor]:
        found = list(naive_linear(p, f"{name}.{part}", rows[position]).split(shape.head_dim))
        if part != "value" and shape.qk_norm:
            found = [naive_norm(shape, p, f"{name}.{part}_norm", h) for h in found]
        return (
            [naive_rotate(shape, h, position) for h in found]
            if shape.positions == "rope" and part != "value"
            else found
        )

    seq, group = len(rows), shape.heads // shape.kv_heads
    q, k, v = ([heads(part, t) for t in range(seq)] for part in ("query", "key", "value"))
    out = []
    for t in range(seq):
        first = 0 if window is None else max(0, t - window + 1)
        mixed = []
        for h in range(shape.heads):
            scores = [q[t][h] @ k[j][h // group] / math.sqrt(shape.head_dim) for j in range(first, t + 1)]
            weights = [torch.exp(s) for s in scores]
            mixed.append(sum(w * v[first + n][h // group] for n, w in enumerate(weights)) / sum(weights))
        out.append(naive_linear(p, f"{name}.output", torch.cat(mixed)))
    return out


def naive_mlp(shape: ModelShape, p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    up = naive_linear(p, f"{name}.up", x)
    if shape.mlp == "swiglu":
        gate = naive_linear(p, f"{name}.gate", x)
        return naive_linear(p, f"{name}.down", gate / (1 + torch.exp(-gate)) * up)
    inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
    return naive_linear(p, f"{name}.down", 0.5 * up * (1 + torch.tanh(inner)))


def naive_logits(shape: ModelShape, p: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """(batch, seq, vocab), one sample, head and position at a time."""
    head = p["embed.weight" if shape.tied_embeddings else "head.weight"]
    samples = []
    for sample in tokens.tolist():
        rows = [p["embed.weight"][i] for i in sample]
        if shape.positions == "learned":
            rows = [row + p["positions.weight"][t] for t, row in enumerate(rows)]
        for i in range(shape.layers):
            block = f"blocks.{i}"
            normed = [naive_norm(shape, p, f"{block}.attention_norm", row) for row in rows]
            every = shape.full_attention_every
            window = None if every and i % every == every - 1 else shape.sliding_window
            added = naive_attention(shape, p, f"{block}.attention", normed, window)
            rows = [row + a for row, a in zip(rows, added, strict=True)]
            rows = [r + naive_mlp(shape, p, f"{block}.mlp", naive_norm(shape, p, f"{block}.mlp_norm", r)) for r in rows]
        samples.append(torch.stack([head @ naive_norm(shape, p, "norm", row) for row in rows]))
    return torch.stack(samples)


def naive_loss(shape: ModelShape, p: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
    logits = naive_logits(shape, p, tokens)
    lost = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits.flatten(0, 1), targets.flatten().tolist(), strict=True):
        if target != -100:
            lost = lost + torch.log(torch.exp(row).sum()) - row[target]
    return lost


# --- values and gradients ---------------------------------------------------------------------------------------------


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).detach().norm() / (b.detach().norm() + 1e-300))


def compare_with_oracle(shape: ModelShape, tokens: Tensor, targets: Tensor) -> None:
    model = randomised(shape)
    p = dict(model.named_parameters())
    assert relative(model(tokens), naive_logits(shape, p, tokens)) < 1e-13
    loss, expected = model(tokens, targets), naive_loss(shape, p, tokens, targets)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=1e-13)
    for (name, _), got, want in zip(
        p.items(), torch.autograd.grad(loss, p.values()), torch.autograd.grad(expected, p.values()), strict=True
    ):
        # The keys' bias shifts every score of a query alike: its gradient is exactly zero, up to rounding.
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-12 * float(loss.detach())), name


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_and_all_gradients_equal_the_loops(family):
    shape = shape_of(family)
    targets = tokens_of(shape, seed=1)
    targets[0, 3:6] = -100
    compare_with_oracle(shape, tokens_of(shape), targets)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_mix_of_switches_equals_the_loops(data):
    draw = lambda *choices: data.draw(st.sampled_from(choices))  # noqa: E731
    kv_heads = draw(1, 2, 3)
    positions = draw("rope", "learned")
    window = draw(None, 1, 3, 9)
    shape = ModelShape(
        layers=draw(1, 2),
        hidden=draw(5, 8),
        heads=kv_heads * draw(1, 2),
        kv_heads=kv_heads,
        head_dim=draw(2, 6),
        ffn=draw(3, 7),
        vocab_size=11,
        max_positions=9,
        norm=draw("rmsnorm", "layernorm"),
        mlp=draw("swiglu", "gelu"),
        positions=positions,
        rope_scaling=draw(None, SCALING) if positions == "rope" else None,
        qk_norm=draw(True, False),
        tied_embeddings=draw(True, False),
        bias=draw("none", "qkv", "all"),
        sliding_window=window,
        full_attention_every=draw(None, 1, 2) if window else None,
    )
    seq = data.draw(st.integers(1, 9))
    compare_with_oracle(shape, tokens_of(shape, 2, seq), tokens_of(shape, 2, seq, seed=1))


# Unit roundoff times a few roundings per layer in each of the ~12 operations of a block; errors add up at random signs.
ROUNDINGS = 16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rounding_stays_within_what_the_dtype_explains(family, precision):
    shape = shape_of(family)
    exact, model = randomised(shape), randomised(shape, torch.float32, precision=precision)
    bound = ROUNDINGS * shape.layers * torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps / 2
    errors = []
    for seed in range(0, 10, 2):
        tokens, targets = tokens_of(shape, seed=seed), tokens_of(shape, seed=seed + 1)
        assert relative(model(tokens), exact(tokens)) < bound
        losses = model(tokens, targets), exact(tokens, targets)
        grads = [torch.autograd.grad(loss, [*m.parameters()]) for loss, m in zip(losses, (model, exact), strict=True)]
        got, want = (torch.cat([g.flatten() for g in each]) for each in grads)
        assert got.dtype == torch.float32
        errors.append(float(relative(got, want)))
    # The median: now and then the softmax of one batch is ill-conditioned, and any order of sums shows it.
    assert sorted(errors)[2] < 2 * bound


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_gathered_parameters_give_the_same_bits_as_fp32_masters(family):
    """What lets FSDP gather in bf16: rounding a weight before or at its use is the same."""
    shape = shape_of(family)
    masters = randomised(shape, torch.float32, precision="bf16")
    gathered = randomised(shape, torch.float32, precision="bf16").to(torch.bfloat16)
    tokens, targets = tokens_of(shape), tokens_of(shape, seed=1)
    assert torch.equal(masters(tokens), gathered(tokens))
    assert torch.equal(masters(tokens, targets), gathered(tokens, targets))
    assert masters(tokens).dtype == torch.bfloat16
    assert masters(tokens, targets).dtype == torch.float32


def test_a_tied_weight_gets_the_gradient_of_both_its_uses():
    shape = shape_of("llama2", tied_embeddings=True)
    tied, untied = randomised(shape), randomised(shape_of("llama2"))
    untied.load_state_dict({**tied.state_dict(), "head.weight": tied.embed.weight})
    tokens, targets = tokens_of(shape), tokens_of(shape, seed=1)
    for model in (tied, untied):
        model(tokens, targets).backward()
    assert torch.allclose(tied.embed.weight.grad, untied.embed.weight.grad + untied.head.weight.grad, rtol=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_changes_no_bit(precision):
    shape = shape_of("qwen3")
    tokens, targets = tokens_of(shape), tokens_of(shape, seed=1)
    modes = ("none", "selective", "full")
    kept, *again = (randomised(shape, torch.float32, precision=precision, recompute=mode) for mode in modes)
    for model in (kept, *again):
        model(tokens, targets).backward()
    for other in again:
        for a, b in zip(kept.parameters(), other.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


def kept_storages(forward: Callable[[], Tensor], apart: Iterable[Tensor]) -> list[Tensor]:
    """One tensor for each storage that a forward pass saves for the backward pass, those of `apart` left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in apart}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            known.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return kept


def test_recomputing_keeps_one_activation_per_block():
    shape = shape_of("llama2", layers=4)
    tokens, targets = tokens_of(shape), tokens_of(shape, seed=1)

    def saved_bytes(recompute: str) -> int:
        model = Transformer(shape, recompute=recompute)
        kept = kept_storages(lambda: model(tokens, targets), model.parameters())
        return sum(tensor.untyped_storage().nbytes() for tensor in kept)

    block_input = tokens.numel() * shape.hidden * 4
    assert saved_bytes("full") - 4 * block_input < saved_bytes("none") / 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize(("precision", "seq"), [("fp32", 64), ("bf16", 192), ("bf16", 576)])
def test_a_block_keeps_what_the_guide_lists(family, precision, seq, recompute):
    """docs/model.md, section "What a block keeps for its backward pass"; the cost model counts the same."""
    s = shape_of(family, layers=1, max_positions=600)
    dtype, c = (torch.bfloat16, 2) if precision == "bf16" else (torch.float32, 4)
    block = Transformer(s, precision=precision, recompute=recompute).blocks[0]
    context = make_context(s, s.window(0), seq, 0, dtype, torch.device("cpu"))
    x = torch.randn(3, seq, s.hidden, dtype=dtype, requires_grad=True)
    apart = [*block.parameters(), *(context.rope or ()), *([] if context.mask is None else [context.mask])]
    kept = kept_storages(lambda: block(x, context), apart)
    rows = {p.shape for p in block.parameters()} | {p.t().shape for p in block.parameters() if p.dim() == 2}
    total = sum(t.untyped_storage().nbytes() for t in kept if t.shape not in rows)  # without cast weights

    inner, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    expected = 4 * c * s.hidden + 2 * (4 if s.norm == "rmsnorm" else 2 * c) + c * (2 * inner + 2 * kv)
    if recompute == "none":
        short = {"bf16": (seq + 64) // 2 * (seq <= 512), "fp32": seq}[precision] if s.sliding_window is None else 0
        expected += s.heads * (c * short if short else 4)
        expected += c * (inner + kv) + 4 * (s.heads + s.kv_heads) if s.qk_norm else 0
    expected += c * s.ffn * (3 if s.mlp == "swiglu" else 2)
    assert total == 3 * seq * expected


# --- structure --------------------------------------------------------------------------------------------------------


def block_names(shape: ModelShape) -> set[str]:
    names = {"attention_norm.weight", "mlp_norm.weight", "mlp.up.weight", "mlp.down.weight"}
    names |= {f"attention.{part}.weight" for part in ("query", "key", "value", "output")}
    names |= {"mlp.gate.weight"} if shape.mlp == "swiglu" else set()
    names |= {"attention.query_norm.weight", "attention.key_norm.weight"} if shape.qk_norm else set()
    if shape.bias != "none":
        names |= {f"attention.{part}.bias" for part in ("query", "key", "value")}
    if shape.bias == "all":
        names |= {"attention.output.bias", "mlp.up.bias", "mlp.down.bias"}
        names |= {"mlp.gate.bias"} if shape.mlp == "swiglu" else set()
        names |= {"attention_norm.bias", "mlp_norm.bias"} if shape.norm == "layernorm" else set()
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_names_follow_the_switches(family):
    shape = shape_of(family)
    expected = {"embed.weight", "norm.weight"} | {f"blocks.{i}.{name}" for i in range(2) for name in block_names(shape)}
    expected |= {"positions.weight"} if shape.positions == "learned" else set()
    expected |= {"head.weight"} if not shape.tied_embeddings else set()
    expected |= {"norm.bias"} if shape.norm == "layernorm" and shape.bias == "all" else set()
    model = Transformer(shape)
    assert {name for name, _ in model.named_parameters()} == expected
    assert [(name, tuple(p.shape)) for name, p in model.named_parameters()] == parameter_shapes(shape)
    assert set(model.state_dict()) == expected  # no buffers: rotary tables are made anew where they are needed


def test_parameter_shapes_follow_the_shape():
    shape = shape_of("qwen3")  # 4 heads of 10 over one key head
    found = {name: tuple(p.shape) for name, p in Transformer(shape).named_parameters()}
    assert found["embed.weight"] == found["head.weight"] == (37, 24)
    assert found["blocks.1.attention.query.weight"] == (40, 24)
    assert found["blocks.1.attention.key.weight"] == found["blocks.1.attention.value.weight"] == (10, 24)
    assert found["blocks.1.attention.output.weight"] == (24, 40)
    assert found["blocks.1.attention.query_norm.weight"] == (10,)
    assert found["blocks.1.mlp.gate.weight"] == found["blocks.1.mlp.up.weight"] == (20, 24)
    assert found["blocks.1.mlp.down.weight"] == (24, 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_meta_device_then_init_equals_building_at_once(family):
    shape = shape_of(family)
    with torch.device("meta"):
        model = Transformer(shape)
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    model.init_weights(5)
    direct = Transformer(shape)
    direct.init_weights(5)
    tokens = tokens_of(shape)
    assert torch.equal(model(tokens), direct(tokens))


def test_a_fresh_model_predicts_nothing_in_particular():
    shape = shape_of("gpt2", vocab_size=500)
    tokens, targets = tokens_of(shape), tokens_of(shape, seed=1)
    loss = Transformer(shape)(tokens, targets) / targets.numel()
    assert loss.item() == pytest.approx(math.log(500), abs=0.05)


def test_linear_layers_are_ordinary_modules():
    """Low precision and tensor parallelism replace or hook them, so each must be called, and be an nn.Linear."""
    model = Transformer(shape_of("llama2"))
    called = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(tokens_of(model.shape))
    parts = [
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    ]
    assert sorted(called) == sorted([f"blocks.{i}.{part}" for i in range(2) for part in parts] + ["head"])


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_in_pieces_with_a_cache_equals_reading_at_once(family):
    shape = shape_of(family)
    model, tokens = randomised(shape), tokens_of(shape)
    cache, pieces = Cache(shape.layers, capacity=11), []
    for begin, end in ((0, 4), (4, 5), (5, 6), (6, 11)):
        pieces.append(model(tokens[:, begin:end], cache=cache))
    assert relative(torch.cat(pieces, 1), model(tokens)) < 1e-13


def test_more_tokens_than_learned_positions_are_refused():
    shape = shape_of("gpt2")
    with pytest.raises(ThriftyError, match="17 tokens, but the model has learned 16 positions"):
        Transformer(shape)(tokens_of(shape, seq=17))


def test_compiled_blocks_give_the_same_loss_and_gradients():
    shape = shape_of("qwen3", hidden=16, layers=2)
    tokens, targets = tokens_of(shape), tokens_of(shape, seed=1)
    eager, compiled = (randomised(shape, torch.float32) for _ in range(2))
    for block in compiled.blocks:
        block.compile(backend="aot_eager")
    for model in (eager, compiled):
        model(tokens, targets).backward()
    assert set(dict(compiled.named_parameters())) == set(dict(eager.named_parameters()))
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert relative(a.grad, b.grad.double()) < 100 * torch.finfo(torch.float32).eps


def test_loss_is_the_sum_over_targets_that_count():
    shape = shape_of("llama2")
    model, tokens, targets = randomised(shape), tokens_of(shape), tokens_of(shape, seed=1)
    targets[1] = -100
    expected = F.cross_entropy(model(tokens)[:1].flatten(0, 1), targets[:1].flatten(), reduction="sum")
    assert model(tokens, targets).item() == pytest.approx(expected.item(), rel=1e-13)
    with torch.no_grad():
        assert model(tokens, targets).item() == pytest.approx(expected.item(), rel=1e-13)
