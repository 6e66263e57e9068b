"""Text from a model, one token after another, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from thrifty.model.attention import Cache
from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError


def generate(
    model: Transformer,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    end_id: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yields token ids as they are made; the same seed gives the same ids.

    The model never sees more than its `max_positions` tokens: when they are full, the older half is dropped and the
    rest read again, so that each token costs about two, however long the text.

    Args:
        prompt_ids: at least one id.
        temperature: divides the logits before the softmax; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only; none = all.
        end_id: stop before this id.
        use_cache: off reads everything again for each token: slow, and the reference that the cache must equal.

    Raises:
        ThriftyError: an empty prompt, an id outside the vocabulary, or a temperature or top_k that says nothing.
    """
    _check(model, prompt_ids, temperature, top_k)
    return _stream(model, list(prompt_ids), max_new_tokens, temperature, top_k, seed, end_id, use_cache)


def _check(model: Transformer, prompt_ids: Sequence[int], temperature: float, top_k: int | None) -> None:
    vocab = model.shape.vocab_size
    if not prompt_ids:
        raise ThriftyError("the prompt is empty", hint="give at least one token")
    strange = [i for i in prompt_ids if not 0 <= i < vocab]
    if strange:
        hint = "is this the tokenizer that the model was trained with?"
        raise ThriftyError(f"token id {strange[0]} is outside the model's vocabulary of {vocab}", hint=hint)
    if not 0 <= temperature < float("inf"):
        raise ThriftyError(f"temperature must be 0 or more, got {temperature}", hint="0 takes the likeliest token")
    if top_k is not None and top_k < 1:
        raise ThriftyError(f"top_k must be 1 or more, got {top_k}", hint="leave it out to sample among all tokens")


def _stream(
    model: Transformer,
    ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    end_id: int | None,
    use_cache: bool,
) -> Iterator[int]:
    device = model.embed.weight.device
    random = torch.Generator().manual_seed(seed)  # on the host: the same draws on any device
    longest = model.shape.max_positions
    cache, start = None, -1
    for _ in range(max_new_tokens):
        moved = window_start(len(ids), longest)
        if use_cache and (cache is None or moved != start):
            cache = Cache(model.shape.layers, capacity=min(longest, len(ids) - moved + max_new_tokens))
        start = moved
        unread = ids[start + (cache.length if cache is not None else 0) :]
        with torch.no_grad():
            logits = model(torch.tensor([unread], device=device), cache=cache)[0, -1]  # (vocab,)
        chosen = _choose(logits.float().cpu(), temperature, top_k, random)
        if chosen == end_id:
            return
        ids.append(chosen)
        yield chosen


def window_start(length: int, longest: int) -> int:
    """First token that the model sees of a text of `length`: it moves on by half a window whenever that is full."""
    step = max(1, longest // 2)
    return max(0, -(-(length - longest) // step) * step)


def _choose(logits: Tensor, temperature: float, top_k: int | None, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        least = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=random))
