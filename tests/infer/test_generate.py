"""Generation: the cache changes nothing, seeds repeat, the window moves on."""

import pytest
import torch

from thrifty.infer.generate import generate, window_start
from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape

SMALL = {"layers": 2, "hidden": 24, "heads": 4, "ffn": 32, "vocab_size": 41, "max_positions": 16}
SHAPES = {
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "bias": "all", "tied_embeddings": True},
    "llama": {"kv_heads": 2},
    "qwen3": {"kv_heads": 1, "head_dim": 8, "qk_norm": True},
    "mistral": {"kv_heads": 2, "sliding_window": 5},
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def model_of(name: str, **changes) -> Transformer:
    """In fp64, so that the two ways of reading agree far beyond what could flip a choice, and with large weights."""
    model = Transformer(ModelShape(**{**SMALL, **SHAPES[name], **changes})).double()
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random).double() * 0.3)
    return model


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_with_and_without_cache_token_by_token(name, temperature):
    model = model_of(name)
    ways = [list(generate(model, PROMPT, 40, temperature=temperature, seed=5, use_cache=u)) for u in (True, False)]
    assert ways[0] == ways[1]
    assert len(ways[0]) == 40  # two and a half windows


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_takes_the_likeliest_token_each_time(name):
    model = model_of(name, max_positions=64)
    ids = list(PROMPT)
    for chosen in generate(model, PROMPT, 20, temperature=0):
        assert chosen == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(chosen)


def test_seeds_repeat_and_differ():
    model = model_of("llama")
    first, again, other = (list(generate(model, PROMPT, 30, seed=s)) for s in (1, 1, 2))
    assert first == again != other


def test_top_k_stays_among_the_k_likeliest():
    model = model_of("llama", max_positions=64)
    ids = list(PROMPT)
    for chosen in generate(model, PROMPT, 30, temperature=5.0, top_k=3, seed=1):
        assert chosen in model(torch.tensor([ids]))[0, -1].topk(3).indices
        ids.append(chosen)
    assert list(generate(model, PROMPT, 10, top_k=1, seed=4)) == list(generate(model, PROMPT, 10, temperature=0))


def test_temperature_follows_the_softmax():
    """Draws from one fixed distribution: frequencies lie within five deviations of its probabilities."""
    model = model_of("llama", vocab_size=4)
    draws = 2000
    counts = torch.zeros(4)
    for seed in range(draws):
        counts[next(generate(model, [1, 2], 1, temperature=3.0, seed=seed))] += 1
    p = (model(torch.tensor([[1, 2]]))[0, -1].detach() / 3.0).softmax(-1)
    assert ((counts / draws - p).abs() <= 5 * (p * (1 - p) / draws).sqrt() + 1e-9).all()


def test_it_stops_before_the_end_token():
    model = model_of("llama")
    free = list(generate(model, PROMPT, 30, temperature=0))
    end = free[7]
    assert list(generate(model, PROMPT, 30, temperature=0, end_id=end)) == free[: free.index(end)]


def test_it_streams():
    stream = generate(model_of("llama"), PROMPT, 10**9)
    assert all(0 <= next(stream) < 41 for _ in range(3))


def test_the_window_keeps_the_latest_tokens_and_moves_by_half():
    assert [window_start(n, 16) for n in (1, 16, 17, 24, 25, 32, 33)] == [0, 0, 8, 8, 16, 16, 24]
    for longest in (1, 2, 7, 16):
        for length in range(1, 60):
            seen = length - window_start(length, longest)
            assert min(length, longest - max(1, longest // 2) + 1) <= seen <= longest


def test_a_prompt_longer_than_the_window_is_read_from_its_end():
    model = model_of("gpt2")
    long = (PROMPT * 5)[:40]
    seen = long[window_start(40, 16) :]
    assert next(generate(model, long, 1, temperature=0)) == int(model(torch.tensor([seen]))[0, -1].argmax())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [41]}, "outside the model's vocabulary of 41"),
        ({"prompt_ids": [-1]}, "outside"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_arguments_that_say_nothing_are_refused_at_once(arguments, message):
    with pytest.raises(ThriftyError, match=message):
        generate(model_of("llama"), **{"prompt_ids": PROMPT, "max_new_tokens": 3} | arguments)
