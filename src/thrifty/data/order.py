"""The order of samples: a keyed permutation that needs no table, so any position of any epoch is known at once.

A Feistel network (Luby & Rackoff 1988) permutes the integers of `bits` bits; cycle walking (Black & Rogaway 2002)
applies it again to whatever falls outside the range until it falls inside, which leaves a permutation of the range.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

_ROUNDS = 8


def random_words(*key: int | str) -> np.ndarray:
    """Eight 64-bit words that a key determines, alike on every machine and in every version: uint64 (8,)."""
    digest = hashlib.sha512(":".join(map(str, key)).encode()).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a permutation of range(size) sends each position.

    Args:
        positions: integers in [0, size), (count,).
        size: of the range permuted.
        keys: uint64 (8,) of `random_words`.

    Returns:
        int64 (count,). All positions together give each integer of the range once.
    """
    bits = max(2, (size - 1).bit_length())
    values = _network(positions.astype(np.uint64), bits, keys)  # (count,)
    outside = np.flatnonzero(values >= size)
    while outside.size:  # the range fills over half of 2^bits (or 2 of 4), so this halves at least, on average
        values[outside] = _network(values[outside], bits, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def spread(positions: np.ndarray, size: int) -> np.ndarray:
    """A fixed permutation of range(size) whose first positions, however many, lie evenly over the range.

    Steps by the size divided by the golden ratio, moved to the next number without a factor in common with the size.

    Returns:
        int64 (count,).
    """
    step = max(1, round(size * 0.6180339887498949))
    while math.gcd(step, size) != 1:
        step += 1
    return positions.astype(np.int64) * step % size


def _network(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << bits // 2) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for number in range(0, _ROUNDS, 2):
        high ^= _mix(low, keys[number]) & high_mask
        low ^= _mix(high, keys[number + 1]) & low_mask
    return high << low_bits | low


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Hashes each value with a key: the finalizer of SplitMix64 (Steele et al. 2014), arithmetic modulo 2^64."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
