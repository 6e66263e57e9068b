"""Packed codes: every width there and back, in exactly the bytes that were promised."""

from __future__ import annotations

import pytest
import torch

from thrifty.quant.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(1, 13))
@pytest.mark.parametrize("columns", [8, 24, 128])
def test_there_and_back(bits, columns):
    codes = torch.randint(0, 2**bits, (5, columns), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (5, packed_bytes(columns, bits))
    assert torch.equal(unpack(packed, bits, columns, torch.int32), codes)
    if bits <= 8:
        assert torch.equal(pack(codes.float(), bits), packed)
