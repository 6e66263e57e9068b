"""Codecs written as text."""

from __future__ import annotations

import pytest

from thrifty.spec.codec import BlocksStage, TopKStage, ZstdStage, stages_of
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import block_format, uniform


def test_a_chain_is_read_stage_by_stage() -> None:
    means = block_format("means2")
    assert stages_of("topk(1/64) + means2+zstd") == (TopKStage(1 / 64), BlocksStage(means, means.block), ZstdStage(1))
    assert stages_of("TopK(0.25, 128)") == (TopKStage(0.25, 128),)
    assert stages_of("uniform(0.5) + zstd(3)") == (BlocksStage(uniform(0.5), 4096), ZstdStage(3))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int5", "int8"),
        ("topk", "takes 1 to 2 numbers"),
        ("topk(1/0)", "not a number"),
        ("int8(3)", "nothing in brackets"),
        ("", "no codec ''"),
        ("topk(1/64) means2", "no codec"),
    ],
)
def test_what_is_no_codec_is_refused_in_words(text: str, told: str) -> None:
    with pytest.raises(ThriftyError) as caught:
        stages_of(text)
    assert told in str(caught.value) + (caught.value.hint or "")
