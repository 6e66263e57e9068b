"""Samples: a function of seed and index, each id a target once an epoch, and clear words where data are short."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.data import loader
from thrifty.data.loader import NO_TARGET, Samples, train_tokens
from thrifty.data.prepare import Prepared
from thrifty.data.shards import open_shards, write_shards
from thrifty.data.tokenizer import bytes_tokenizer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data

VOCABULARY = 60_000


def prepared(folder, lengths, **data) -> Prepared:
    """Documents whose ids count up through the stream, so that an id says where it stands."""
    edges = np.cumsum([0, *lengths])
    documents = [np.arange(low, high) for low, high in pairwise(edges)]
    write_shards(folder, documents, VOCABULARY, {}, shard_bytes=100)
    return Prepared(Data(**data), folder, bytes_tokenizer(), open_shards(folder), {})


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def at(lengths, **data):
        return prepared(tmp_path_factory.mktemp("s"), lengths, **data)

    return at


def one(samples, index):
    tokens, targets = samples.batch(index, 1)
    return tokens[0], targets[0]


seeds = st.integers(0, 2**63 - 1)
packings = st.sampled_from(["stream", "documents"])
lengths = st.lists(st.integers(1, 60), min_size=3, max_size=12).filter(lambda each: sum(each) > 80)


@settings(max_examples=40)
@given(lengths, packings, st.integers(1, 9), seeds, st.integers(0, 10**12), st.data())
def test_a_batch_is_its_samples_one_by_one(make, lengths, packing, length, seed, first, data):
    samples = Samples(make(lengths, packing=packing), "train", length, seed)
    count = data.draw(st.integers(1, len(samples)))
    tokens, targets = samples.batch(first, count)
    assert tokens.shape == targets.shape == (count, length)
    assert tokens.dtype == targets.dtype == np.int64
    fresh = Samples(make(lengths, packing=packing), "train", length, seed)
    for row in reversed(range(count)):
        alone = one(fresh, first + row)
        np.testing.assert_array_equal(tokens[row], alone[0])
        np.testing.assert_array_equal(targets[row], alone[1])
    assert samples.target_count(first, count) == (targets != NO_TARGET).sum()


@given(lengths, packings, st.integers(1, 9), st.sampled_from(["train", "val"]), st.sampled_from([0.2, 0.5]))
def test_an_epoch_uses_each_id_once(make, lengths, packing, length, split, fraction):
    data = make(lengths, packing=packing, validation_fraction=fraction)
    border = train_tokens(data.tokens, fraction)
    start, stop = (0, border) if split == "train" else (border, data.tokens)
    samples = Samples(data, split, length, seed=1)
    tokens, targets = samples.batch(0, len(samples))
    real = targets != NO_TARGET
    np.testing.assert_array_equal(tokens[real] + 1, targets[real])
    used = sorted(targets[real].tolist())
    if packing == "documents":
        firsts = {start, *data.shards.document_starts.tolist()}
        assert used == [i for i in range(start, stop) if i not in firsts]
    else:
        assert used == list(range(used[0], used[0] + len(samples) * length))
        assert start < used[0]
        assert used[-1] < stop
        assert len(used) > stop - start - 1 - 2 * length


def test_stream_epochs_shift_and_reach_both_ends(make):
    samples = Samples(make([1000]), "train", 16, seed=1)
    border = train_tokens(1000, 0.1)
    seen, phases = set(), set()
    for epoch in range(200):
        targets = samples.batch(epoch * len(samples), len(samples))[1]
        seen |= set(targets.ravel().tolist())
        phases.add(int(targets.min()))
    assert seen == set(range(1, border))
    assert len(phases) > 16


def test_documents_start_samples_and_padding_has_no_target(make):
    samples = Samples(make([3, 10, 1, 100], packing="documents", validation_fraction=0.5), "train", 4, seed=1)
    rows = {int(t[0]): (t.tolist(), y.tolist()) for t, y in (one(samples, i) for i in range(len(samples)))}
    assert rows[0] == ([0, 1, 256, 256], [1, 2, NO_TARGET, NO_TARGET])
    assert rows[3] == ([3, 4, 5, 6], [4, 5, 6, 7])
    assert rows[7] == ([7, 8, 9, 10], [8, 9, 10, 11])
    assert rows[11] == ([11, 256, 256, 256], [12, NO_TARGET, NO_TARGET, NO_TARGET])
    assert 13 not in rows  # a document of one id has nothing to predict
    assert rows[14] == ([14, 15, 16, 17], [15, 16, 17, 18])


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_the_order_follows_seed_and_epoch_and_not_the_validation(make, packing):
    data = make([20] * 50, packing=packing)
    orders = set()
    for seed in (1, 2):
        samples = Samples(data, "train", 8, seed)
        orders |= {samples.batch(epoch * len(samples), 20)[0].tobytes() for epoch in range(3)}
    assert len(orders) == 6
    first, second = (Samples(data, "val", 8, seed) for seed in (1, 2))
    np.testing.assert_array_equal(first.batch(0, 5), second.batch(0, 5))


def test_any_division_among_workers_gives_the_same_samples(make):
    data = make([700])
    together = Samples(data, "train", 8, seed=5).batch(120, 24)[0]
    for workers in (2, 3, 4):
        share = 24 // workers
        parts = [Samples(data, "train", 8, seed=5).batch(120 + rank * share, share)[0] for rank in range(workers)]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_blocks_are_only_a_way_to_compute(make, monkeypatch):
    data = make([700])
    whole = Samples(data, "train", 4, seed=5).batch(300, 100)[0]
    monkeypatch.setattr(loader, "_BLOCK", 7)
    np.testing.assert_array_equal(Samples(data, "train", 4, seed=5).batch(300, 100)[0], whole)


@pytest.mark.parametrize(("tokens", "fraction", "train"), [(1_115_394, 0.1, 1_003_854), (10, 0.5, 5), (100, 0.25, 75)])
def test_the_last_share_of_the_stream_validates(tokens, fraction, train):
    assert train_tokens(tokens, fraction) == train


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_one_sequence_is_enough(make, packing):
    samples = Samples(make([20], packing=packing, validation_fraction=0.55), "train", 8, seed=1)
    assert len(samples) == 1
    assert one(samples, 0)[1].tolist() == list(range(1, 9))
    assert one(samples, 12345)[1].tolist() == list(range(1, 9))


def test_data_shorter_than_a_sequence(make):
    with pytest.raises(ThriftyError, match="the training split has 90 tokens, fewer than one sequence of 90") as caught:
        Samples(make([100]), "train", 90, seed=1)
    assert "job.sequence_length to at most 89" in caught.value.hint
    assert len(Samples(make([100]), "train", 89, seed=1)) == 1
    with pytest.raises(ThriftyError, match="the validation split has 10 tokens") as caught:
        Samples(make([100]), "val", 12, seed=1)
    assert "data.validation_fraction to at least 0.14" in caught.value.hint
    assert len(Samples(make([100], validation_fraction=0.14), "val", 12, seed=1)) == 1


@pytest.mark.parametrize("length", [1, 8])
def test_a_split_without_a_target_in_any_document(make, length):
    with pytest.raises(ThriftyError, match="no document of the training split has two tokens"):
        Samples(make([1] * 30, packing="documents"), "train", length, seed=1)


def test_more_sequences_than_the_split_has(make):
    data = make([1000])
    train, val = Samples(data, "train", 16, seed=1), Samples(data, "val", 16, seed=1)
    said = f"56 sequences of 16 tokens asked for, the training split has {len(train)}"
    with pytest.raises(ThriftyError, match=said) as caught:
        train.batch(0, 56)
    assert "recipe.batch.sequences" in caught.value.where
    train.require(len(train))
    val.batch(2, len(val) - 2)
    with pytest.raises(ThriftyError, match="the validation split has 6") as caught:
        val.batch(3, len(val) - 2)
    assert "recipe.evaluation.sequences" in caught.value.where
