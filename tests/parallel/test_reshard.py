"""Layouts, products of split tensors, and moves: exact, in whole numbers, against the tensor that was never split."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.parallel.reshard import (
    Move,
    Part,
    TensorLayout,
    bytes_to_send,
    chunk,
    lay_out,
    moves,
    product,
    rebuild,
    split,
)
from thrifty.spec.errors import ThriftyError

AXES = ("outer", "inner")


def slices(box):
    return tuple(slice(side.start, side.stop) for side in box)


def numbers(*shape, seed=0):
    """Whole numbers in float64: sums of products are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).double()


@st.composite
def layouts(draw, shape, *, sums=True):
    """Any nesting of splits, copies and terms on a grid of up to 3 x 3 ranks, in any order."""
    axes = {axis: draw(st.integers(1, 3)) for axis in AXES}
    kinds = {axis: draw(st.sampled_from(["split", "copy", "sum"] if sums else ["split", "copy"])) for axis in AXES}
    order = draw(st.permutations(AXES))
    splits = [(axis, draw(st.integers(0, len(shape) - 1))) for axis in order if kinds[axis] == "split"]
    ranks = draw(st.permutations(range(9)))[: axes["outer"] * axes["inner"]]
    unit = draw(st.integers(1, 2))
    return lay_out(shape, axes, splits, sums=[a for a in AXES if kinds[a] == "sum"], unit=unit, ranks=ranks)


@st.composite
def pairs(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    source = draw(layouts(shape))
    target = draw(st.one_of(layouts(shape, sums=False), st.just(source)))
    return source, target


def terms_of(layout):
    """Random terms, and the values that ranks then hold."""
    terms = [numbers(*layout.shape, seed=term) for term in range(layout.terms)]
    return terms, {part.rank: terms[part.term][slices(part.box)] for part in layout.parts}


# --- layouts ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 4))
def test_chunks_cover_a_range_in_order_and_cut_no_unit(size, parts, unit):
    chunks = [chunk(range(size), parts, index, unit) for index in range(parts)]
    assert [i for one in chunks for i in one] == list(range(size))
    assert all(one.start % unit == 0 for one in chunks if one)
    assert all(len(a) >= len(b) for a, b in pairwise(chunks))


@given(st.integers(1, 40), st.integers(1, 6))
def test_chunks_are_those_of_torch(size, parts):
    expected = [list(one) for one in torch.arange(size).chunk(parts)]
    expected += [[]] * (parts - len(expected))
    assert [list(chunk(range(size), parts, index)) for index in range(parts)] == expected


@given(pairs())
def test_split_and_rebuild_are_inverse(pair):
    _, layout = pair
    if layout.terms > 1:
        with pytest.raises(ThriftyError, match="of which terms"):
            split(numbers(*layout.shape), layout)
        return
    whole = numbers(*layout.shape)
    parts = split(whole, layout)
    assert torch.equal(rebuild(parts, layout), whole)


def test_nested_splits_are_those_of_sharding_over_tensor_parallelism():
    layout = lay_out((8, 4), {"shard": 2, "tensor": 2}, [("tensor", 0), ("shard", 0)])
    assert [part.box[0] for part in layout.parts] == [range(0, 2), range(4, 6), range(2, 4), range(6, 8)]
    other = lay_out((8, 4), {"shard": 2, "tensor": 2}, [("shard", 0), ("tensor", 0)])
    assert [part.box[0] for part in other.parts] == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]


def test_uneven_parts_may_be_short_or_empty():
    layout = lay_out((5,), {"shard": 4}, [("shard", 0)])
    assert [len(part.box[0]) for part in layout.parts] == [2, 2, 1, 0]
    assert torch.equal(rebuild(split(numbers(5), layout), layout), numbers(5))


def test_a_rank_holds_one_part():
    with pytest.raises(ThriftyError, match="two parts"):
        TensorLayout((2,), (Part(0, (range(0, 1),)), Part(0, (range(1, 2),))))


# --- products: what is concatenated, what is added up -----------------------------------------------------------------


def multiply(x_parts, w_parts):
    return {rank: x_parts[rank] @ w_parts[rank] for rank in x_parts if rank in w_parts}


def flat(layout):
    """(batch, seq, width) as (batch x seq, width), where the batch is 1."""
    parts = tuple(Part(part.rank, part.box[1:], part.term) for part in layout.parts)
    return TensorLayout(layout.shape[1:], parts)


sizes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


@given(sizes)
def test_outputs_split_concatenate_forward_and_add_up_backward(drawn):
    seq, inputs, outputs, ranks = drawn
    axes = {"tensor": ranks}
    x, w, dy = numbers(1, seq, inputs), numbers(inputs, outputs, seed=1), numbers(1, seq, outputs, seed=2)
    x_at, w_at = lay_out(x.shape, axes), lay_out(w.shape, axes, [("tensor", 1)])
    y_at = product(x_at, w_at)
    assert y_at == lay_out(dy.shape, axes, [("tensor", 2)])  # parts to concatenate
    w_parts, dy_parts = split(w, w_at), split(dy, y_at)  # the gradient of the result: a slice for each
    assert torch.equal(rebuild(multiply(split(x, x_at), w_parts), y_at), x @ w)
    dx_at = product(y_at, w_at.transposed)
    assert dx_at.terms == sum(1 for part in w_at.parts if part.box[1])  # terms to add up
    dx = multiply(dy_parts, {rank: part.t() for rank, part in w_parts.items()})
    assert torch.equal(rebuild(dx, dx_at), dy @ w.t())
    dw_at = product(flat(x_at).transposed, flat(y_at))
    assert dw_at == w_at  # each rank has the gradient of its own columns
    assert torch.equal(rebuild({rank: x[0].t() @ part[0] for rank, part in dy_parts.items()}, dw_at), x[0].t() @ dy[0])


@given(sizes)
def test_the_reduction_split_adds_up_forward_and_sends_nothing_backward(drawn):
    seq, inputs, outputs, ranks = drawn
    axes = {"tensor": ranks}
    x, w, dy = numbers(1, seq, inputs), numbers(inputs, outputs, seed=1), numbers(1, seq, outputs, seed=2)
    x_at, w_at = lay_out(x.shape, axes, [("tensor", 2)]), lay_out(w.shape, axes, [("tensor", 0)])
    y_at = product(x_at, w_at)
    terms = multiply(split(x, x_at), split(w, w_at))
    assert all(part.box == (range(1), range(seq), range(outputs)) for part in y_at.parts)
    assert torch.equal(rebuild(terms, y_at), x @ w)
    dy_at = lay_out(dy.shape, axes)  # the gradient of each term is that of the sum
    dx_at = product(dy_at, w_at.transposed)
    assert dx_at == x_at
    dx = multiply(split(dy, dy_at), {rank: part.t() for rank, part in split(w, w_at).items()})
    assert torch.equal(rebuild(dx, dx_at), dy @ w.t())


@given(sizes)
def test_a_sequence_split_sends_nothing_forward_and_adds_up_the_gradient_of_the_weight(drawn):
    seq, inputs, outputs, ranks = drawn
    axes = {"context": ranks}
    x, w, dy = numbers(1, seq, inputs), numbers(inputs, outputs, seed=1), numbers(1, seq, outputs, seed=2)
    x_at, w_at = lay_out(x.shape, axes, [("context", 1)]), lay_out(w.shape, axes)
    y_at = product(x_at, w_at)
    assert y_at == lay_out(dy.shape, axes, [("context", 1)])
    assert torch.equal(rebuild(multiply(split(x, x_at), split(w, w_at)), y_at), x @ w)
    dw_at = product(flat(x_at).transposed, flat(y_at))
    x_parts, dy_parts = split(x, x_at), split(dy, y_at)
    dw = {rank: x_parts[rank][0].t() @ dy_parts[rank][0] for rank in x_parts}
    assert torch.equal(rebuild(dw, dw_at), x[0].t() @ dy[0])
    assert dw_at.terms == sum(1 for part in x_at.parts if part.box[1])


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_attention_heads_are_split_whole_and_need_nobody_else(heads, head_dim, ranks):
    """Queries, keys and values by outputs in units of a head, scores of own heads, the last product by its inputs."""
    hidden, seq = 6, 3
    x, w = numbers(seq, hidden), [numbers(hidden, heads * head_dim, seed=i) for i in (1, 2, 3)]
    out = numbers(heads * head_dim, hidden, seed=4)
    by_head = lay_out(w[0].shape, {"tensor": ranks}, [("tensor", 1)], unit=head_dim)
    out_at = lay_out(out.shape, {"tensor": ranks}, [("tensor", 0)], unit=head_dim)

    def attend(query, key, value):  # without softmax, which rounds
        q, k, v = (
            t.unflatten(-1, (-1, head_dim)).transpose(0, 1) for t in (query, key, value)
        )  # (heads, seq, head_dim)
        return (q @ k.transpose(1, 2) @ v).transpose(0, 1).flatten(1)

    attended = {}
    for part in by_head.parts:
        if part.box[1]:
            attended[part.rank] = attend(*(x @ matrix[:, slices(part.box)[1]] for matrix in w))
    qkv_at = product(lay_out(x.shape, {"tensor": ranks}), by_head)
    y_at = product(qkv_at, out_at)
    terms = multiply(attended, split(out, out_at))
    assert torch.equal(rebuild(terms, y_at), attend(*(x @ matrix for matrix in w)) @ out)


def test_factors_split_differently_are_refused():
    x, w = lay_out((4, 6), {"a": 2}, [("a", 0)]), lay_out((6, 4), {"a": 2}, [("a", 0)])
    with pytest.raises(ThriftyError, match="of the reduction dimension"):
        product(x, w)


def test_a_sum_that_was_not_taken_is_no_factor():
    with pytest.raises(ThriftyError, match="terms of a sum"):
        product(lay_out((4, 6), {"a": 2}, sums=["a"]), lay_out((6, 4), {"a": 2}))


# --- moves ------------------------------------------------------------------------------------------------------------


def carry_out(source, target, held):
    """The moves, in one process: what every rank holds afterwards."""
    found = {}
    for part in target.parts:
        parts = {}
        for term in range(source.terms) if target.terms == 1 else [part.term]:
            buffer = torch.full(source.shape, torch.nan, dtype=torch.float64)
            own = source.part_of(part.rank)
            if own is not None and own.term == term:
                buffer[slices(own.box)] = held[part.rank]
            for move in moves(source, target):
                if move.destination == part.rank and move.term == term:
                    sender = source.part_of(move.source)
                    whole = torch.full(source.shape, torch.nan, dtype=torch.float64)
                    whole[slices(sender.box)] = held[move.source]
                    buffer[slices(move.box)] = whole[slices(move.box)]
            parts[term] = buffer[slices(part.box)]
        found[part.rank] = sum(parts.values())
    return found


@given(pairs())
def test_moves_make_the_target(pair):
    source, target = pair
    terms, held = terms_of(source)
    got = carry_out(source, target, held)
    for part in target.parts:
        expected = terms[part.term] if target.terms > 1 else sum(terms)
        assert torch.equal(got[part.rank], expected[slices(part.box)])


@given(pairs())
def test_moves_send_what_is_lacking_and_no_more(pair):
    source, target = pair

    def values(part, terms):
        index = torch.arange(torch.Size(source.shape).numel()).view(source.shape)[slices(part.box)].flatten().tolist()
        return {(term, i) for term in terms for i in index}

    lacking = {}
    for part in target.parts:
        own = source.part_of(part.rank)
        needed = values(part, range(source.terms) if target.terms == 1 else [part.term])
        lacking[part.rank] = len(needed - (values(own, [own.term]) if own is not None else set()))
    received = Counter()
    for move in moves(source, target):
        received[move.destination] += move.elements
    assert {rank: received[rank] for rank in lacking} == lacking
    assert bytes_to_send(source, target, 4) == 4 * sum(lacking.values())


@given(pairs())
def test_a_layout_moved_to_itself_sends_nothing(pair):
    source, _ = pair
    assert moves(source, source) == ()


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 30))
def test_copies_share_the_sending(copies, destinations, size):
    """Of interchangeable senders none sends more than one box more than another."""
    source = lay_out((size,), {"copy": copies})
    target = lay_out((size,), {"split": destinations}, [("split", 0)], ranks=range(100, 100 + destinations))
    sent = Counter()
    for move in moves(source, target):
        sent[move.source] += move.elements
    largest = max(move.elements for move in moves(source, target))
    assert max(sent.values()) - min(sent[rank] for rank in range(copies)) <= largest


def test_the_sender_is_on_the_same_node_where_one_is():
    source = lay_out((4,), {"island": 2, "shard": 2}, [("shard", 0)])
    target = lay_out((4,), {"all": 4})
    found = moves(source, target, node_of=lambda rank: rank // 2)
    assert {(move.source, move.destination) for move in found} == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_what_nobody_holds_is_named():
    first = TensorLayout((4,), (Part(0, (range(0, 2),)),))
    with pytest.raises(ThriftyError, match=r"of \[0:4\] the ranks hold 2 values in place of 4"):
        moves(first, lay_out((4,), {"all": 2}))


def test_other_terms_and_other_shapes_are_refused():
    values = lay_out((4,), {"a": 2})
    with pytest.raises(ThriftyError, match="cannot become 2"):
        moves(values, lay_out((4,), {"a": 2}, sums=["a"]))
    with pytest.raises(ThriftyError, match="the other of"):
        moves(values, lay_out((5,), {"a": 2}))


def test_the_messages_of_a_small_example():
    """Columns to rows on two ranks: each keeps a quarter and sends one."""
    found = moves(lay_out((2, 4), {"a": 2}, [("a", 1)]), lay_out((2, 4), {"a": 2}, [("a", 0)]))
    assert set(found) == {
        Move(1, 0, (range(0, 1), range(2, 4))),
        Move(0, 1, (range(1, 2), range(0, 2))),
    }
