"""Codecs by their text."""

from __future__ import annotations

import pytest

from thrifty.compress import (
    Blockwise,
    Cast,
    Codec,
    KMeans,
    RandomK,
    Threshold,
    TopK,
    Zstd,
    chain,
    codec_of,
    lattice,
    uniform,
)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("topk(1/64) + means2 + zstd", chain(TopK(1 / 64), Blockwise(2), Zstd())),
        ("randomk(64)", chain(RandomK(64))),
        ("threshold(1/64) + means2", chain(Threshold(1 / 64), Blockwise(2))),
        ("bf16", chain(Cast("bf16"))),
        ("topk(0.1, 256) + fp16 + zstd", chain(TopK(0.1, 256), Cast("fp16"), Zstd())),
        ("e8", chain(Blockwise("e8"))),
        ("lattice(0.7) + zstd", chain(Blockwise(lattice(0.7)), Zstd())),
        ("kmeans", chain(KMeans())),
        ("kmeans(16, 2)", chain(KMeans(16, 2))),
        ("int4", chain(Blockwise(4))),
        ("uniform(0.5)+zstd(3)", chain(Blockwise(uniform(0.5)), Zstd(3))),
    ],
)
def test_a_text_is_the_codec_that_code_would_make(text: str, codec: Codec) -> None:
    assert codec_of(text).descriptions() == codec.descriptions()
