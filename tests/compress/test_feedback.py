"""Error feedback against doubles: nothing that a codec drops is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.compress import Codec, Feedback, Identity, RandomK, codec_of
from thrifty.compress.exchange import feeds_back
from thrifty.compress.feedback import Kept
from thrifty.compress.unit import Unit
from thrifty.spec.errors import ThriftyError

NUMELS = st.lists(st.integers(0, 70), min_size=1, max_size=6)


def unit_of(numels: list[int], parts: int) -> Unit:
    return Unit(tuple(f"p{place}" for place in range(len(numels))), tuple(numels), parts)


@given(NUMELS, st.integers(1, 5))
def test_a_unit_taken_apart_is_whole_again(numels: list[int], parts: int) -> None:
    unit = unit_of(numels, parts)
    tensors = [torch.randn(values) for values in numels]
    flat = unit.joined(tensors)
    assert flat.numel() == unit.numel == sum(unit.sizes)
    assert all(torch.equal(one, two) for one, two in zip(unit.split(flat), tensors, strict=True))
    for part, values in enumerate(flat.split(unit.sizes)):
        assert unit.of_part(part).numel == values.numel()


@given(NUMELS, NUMELS, st.integers(1, 4))
def test_which_part_a_value_is_in_depends_on_its_tensor_alone(some: list[int], more: list[int], parts: int) -> None:
    alone, fused = unit_of(some, parts), unit_of([*some, *more], parts)
    for part in range(parts):
        assert fused.of_part(part).numels[: len(some)] == alone.of_part(part).numels


@given(
    st.sampled_from(["topk(1/4, 16)", "int4", "means2", "sign", "topk(1/8, 32) + means2"]),
    st.integers(1, 200),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_what_was_sent_and_what_is_kept_are_what_came_in(text: str, numel: int, steps: int, seed: int) -> None:
    """Classic feedback: decoded values and the last error sum to the inputs, to fp32's rounding."""
    codec, generator = codec_of(text), torch.Generator().manual_seed(seed)
    unit, kept = unit_of([numel], 1), Kept()
    came, went = torch.zeros(numel, dtype=torch.float64), torch.zeros(numel, dtype=torch.float64)
    largest = 0.0
    for _ in range(steps):
        x = torch.randn(numel, generator=generator)
        handed = x + kept.joined(unit, x.device)
        sent = codec.decode(codec.encode(handed), like=handed)
        kept.keep(unit, handed - sent)
        came += x.double()
        went += sent.double()
        largest = max(largest, float(handed.abs().max()), float(sent.abs().max()))
    error = kept.joined(unit, x.device).double()
    assert float((went + error - came).abs().max()) <= 4 * steps * largest * 2.0**-24


@pytest.mark.parametrize(("store", "bound"), [("fp32", 0.0), ("bf16", 2.0**-8), ("int8", 0.012)])
def test_what_is_kept(store: Any, bound: float) -> None:
    x = torch.randn(1000)
    unit, kept = unit_of([300, 0, 700], 3), Kept(store)
    assert not kept.joined(unit, x.device).any()
    kept.keep(unit, x)
    found = kept.joined(unit, x.device)
    assert float((found - x).norm() / x.norm()) <= bound
    again = Kept(store)
    again.load_state_dict(kept.state_dict())
    assert torch.equal(again.joined(unit, x.device), found)
    assert kept.nbytes <= {"fp32": 4, "bf16": 2, "int8": 1.05}[store] * 1000


@pytest.mark.parametrize("store", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("other", ["fp32", "bf16", "int8"])
def test_a_state_kept_in_another_type(store: Any, other: Any) -> None:
    unit, kept, again = unit_of([300], 1), Kept(store), Kept(other)
    kept.keep(unit, torch.randn(300))
    again.load_state_dict(kept.state_dict())
    one, two = (each.joined(unit, torch.device("cpu")) for each in (kept, again))
    assert float((one - two).norm() / one.norm()) < 0.012


def test_a_tensor_of_another_size_is_refused() -> None:
    kept = Kept()
    kept.keep(unit_of([8], 1), torch.ones(8))
    with pytest.raises(ThriftyError, match="8 values of error are kept, and 4"):
        kept.joined(unit_of([4], 1), torch.device("cpu"))


@pytest.mark.parametrize(
    ("codec", "fed"),
    [
        (Identity(), False),
        (RandomK(8), False),
        (RandomK(8, unbiased=False), True),
        (codec_of("int4"), True),
        (codec_of("topk(1/64) + zstd"), True),
        (codec_of("zstd"), False),
        (codec_of("lowrank(2)"), True),
    ],
)
def test_which_codecs_have_errors_to_feed_back(codec: Codec, fed: bool) -> None:
    assert feeds_back(codec) is fed


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "none"},
        {"store": "fp8"},
        {"decay": 0.0},
        {"decay": 1.5},
        {"kind": "ef21", "decay": 0.9},
        {"kind": "ef21", "two_sided": False},
        {"kind": "ef21", "store": "bf16"},
    ],
)
def test_feedback_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ThriftyError):
        Feedback(**settings)
