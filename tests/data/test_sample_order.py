"""The keyed permutation: each position once, any of them alone, another order for another key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.data.order import permute, random_words, spread

sizes = st.integers(1, 5000)
seeds = st.integers(0, 2**63 - 1)


@given(sizes, seeds)
def test_each_position_once(size, seed):
    order = permute(np.arange(size), size, random_words(seed))
    assert sorted(order.tolist()) == list(range(size))


@given(sizes, seeds, st.data())
def test_any_position_alone(size, seed, data):
    keys = random_words(seed)
    chosen = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    np.testing.assert_array_equal(permute(chosen, size, keys), permute(np.arange(size), size, keys)[chosen])


def test_it_reaches_far_beyond_memory():
    size = 10**15 + 7
    order = permute(np.arange(1000, dtype=np.int64) * 10**12, size, random_words(3))
    assert len(set(order.tolist())) == 1000
    assert order.min() >= 0
    assert order.max() < size


def test_each_key_gives_another_order():
    orders = {tuple(permute(np.arange(64), 64, random_words("order", 1, epoch)).tolist()) for epoch in range(50)}
    assert len(orders) == 50


@pytest.mark.parametrize("size", [2, 3, 5, 16, 100])
def test_over_many_keys_each_position_goes_everywhere_alike(size):
    """Chi-square of where position 0 and the last one go, against its mean + 6 standard deviations."""
    keys = 2000
    for position in (0, size - 1):
        found = [int(permute(np.array([position]), size, random_words(key))[0]) for key in range(keys)]
        counts = np.bincount(found, minlength=size)
        expected = keys / size
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < (size - 1) + 6 * (2 * (size - 1)) ** 0.5


def test_neighbours_are_torn_apart():
    """A random order has correlation 0 with the positions and between neighbours, up to 1/sqrt(size)."""
    size = 10_000
    for key in range(10):
        order = permute(np.arange(size), size, random_words(key))
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 5 / size**0.5
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / size**0.5


@given(sizes)
def test_spread_visits_all(size):
    assert sorted(spread(np.arange(size), size).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [100, 610, 1742, 4096, 9973])
def test_spread_has_an_even_beginning(size):
    """No tenth of the range goes without, and none has more than three times its share, from 20 positions on."""
    for count in (20, 50, size):
        tenths = np.bincount(spread(np.arange(count), size) * 10 // size, minlength=10)
        assert tenths.min() > 0
        assert tenths.max() <= 3 * count / 10
