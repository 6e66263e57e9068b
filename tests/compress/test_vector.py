"""Learned codebooks: sent, shared, refreshed."""

from __future__ import annotations

import pytest
import torch

from thrifty.compress import Blockwise, KMeans
from thrifty.spec.errors import ThriftyError


def gaussian(seed: int) -> torch.Tensor:
    return torch.randn(1 << 15, generator=torch.Generator().manual_seed(seed))


def error(codec, x: torch.Tensor) -> float:
    return float((codec.decode(codec.encode(x), like=x) - x).square().sum() / x.square().sum())


def test_a_shared_codebook_is_what_every_rank_makes_of_its_bytes() -> None:
    x, y = gaussian(1), gaussian(2)
    mine = KMeans().refresh(x)
    theirs = KMeans(codebook=mine.codebook)
    assert len(mine.codebook) == 256 * 4 * 2
    assert torch.equal(theirs.decode(mine.encode(y), like=y), mine.decode(mine.encode(y), like=y))
    with pytest.raises(ThriftyError, match="another codec"):
        KMeans().refresh(y).decode(mine.encode(y), like=y)


def test_its_bytes_are_counted_where_it_is_sent() -> None:
    x = gaussian(1)
    assert KMeans().encode(x).nbytes == KMeans().refresh(x).encode(x).nbytes + 256 * 4 * 2 + 8


def test_two_learned_bits_lose_less_than_two_fixed_ones() -> None:
    x = gaussian(3)
    assert error(KMeans(), x) < error(Blockwise("lloyd2"), x)
    assert error(KMeans().refresh(gaussian(4)), x) < error(Blockwise("lloyd2"), x)


def test_a_codebook_learns_what_vectors_there_are() -> None:
    x = torch.randint(0, 2, (1 << 14,), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    assert error(KMeans(16, 4), x) < 1e-4
