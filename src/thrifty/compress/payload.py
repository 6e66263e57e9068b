"""What goes over the wire: the parts of an encoded tensor, and their one contiguous buffer."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.cost.payload import HEADER_BYTES, LENGTH_BYTES
from thrifty.spec.errors import ThriftyError

MAGIC, VERSION = b"TP", 1
HEADER = struct.Struct("<2sBBIIQQ")
CHECKED_FROM = 8  # the checksum covers everything behind itself
WHERE = "payload"


@dataclass(frozen=True)
class Payload:
    """An encoded tensor.

    Args:
        parts: flat uint8 tensors: what each stage put beside the values, in their order, and the values last.
        numel: values of the tensor that was encoded.
        codec: fingerprint of the codec, which the decoder compares with its own.
        seed: of what the codec drew at random.
    """

    parts: tuple[Tensor, ...]
    numel: int
    codec: int
    seed: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes on the wire: header, lengths and parts."""
        return HEADER_BYTES + LENGTH_BYTES * len(self.parts) + sum(part.numel() for part in self.parts)

    def to_buffer(self) -> Tensor:
        """One contiguous uint8 tensor of `nbytes` on the CPU, with a checksum of all of it."""
        lengths = struct.pack(f"<{len(self.parts)}Q", *(part.numel() for part in self.parts))
        head = bytearray(HEADER.pack(MAGIC, VERSION, len(self.parts), 0, self.codec, self.seed, self.numel) + lengths)
        buffer = torch.cat([torch.frombuffer(head, dtype=torch.uint8), *(part.cpu() for part in self.parts)])
        checksum = zlib.crc32(memoryview(buffer.numpy())[CHECKED_FROM:])
        buffer[4:CHECKED_FROM] = torch.frombuffer(bytearray(struct.pack("<I", checksum)), dtype=torch.uint8)
        return buffer

    @staticmethod
    def from_buffer(buffer: Tensor) -> Payload:
        """The payload that `to_buffer` wrote; its parts are views of `buffer`.

        Raises:
            ThriftyError: not a payload, cut off, too long, or changed on its way.
        """
        if buffer.dtype != torch.uint8 or buffer.dim() != 1:
            raise ThriftyError(
                f"a buffer is one flat uint8 tensor, not {buffer.dtype} {tuple(buffer.shape)}", where=WHERE
            )
        buffer = buffer.cpu().contiguous()
        data = memoryview(buffer.numpy())
        if len(data) < HEADER_BYTES:
            raise ThriftyError(f"cut off: {len(data)} bytes, the header alone has {HEADER_BYTES}", where=WHERE)
        magic, version, count, checksum, codec, seed, numel = HEADER.unpack(data[:HEADER_BYTES])
        if magic != MAGIC or version != VERSION:
            raise ThriftyError("these bytes are no payload of this version", where=WHERE)
        start = HEADER_BYTES + LENGTH_BYTES * count
        if len(data) < start:
            raise ThriftyError(f"cut off: {len(data)} bytes, header and lengths have {start}", where=WHERE)
        lengths = struct.unpack(f"<{count}Q", data[HEADER_BYTES:start])
        if len(data) != start + sum(lengths):
            told = "cut off" if len(data) < start + sum(lengths) else "too long"
            raise ThriftyError(f"{told}: {len(data)} bytes, {start + sum(lengths)} announced", where=WHERE)
        if zlib.crc32(data[CHECKED_FROM:]) != checksum:
            raise ThriftyError("changed on its way: the checksum does not match", where=WHERE)
        return Payload(tuple(buffer[start:].split(list(lengths))), numel, codec, seed)
