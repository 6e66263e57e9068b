"""What optimizers keep, move and compute: against the trainer's own states, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
from cost_examples import gpt, gpus, job, recipe, shape
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost import muon
from thrifty.cost.held import held
from thrifty.cost.memory import memory
from thrifty.cost.optimizer import Kept, kept_of, state_bytes, tensor_bytes, update_bytes
from thrifty.cost.predict import predict
from thrifty.cost.step import step_seconds
from thrifty.cost.traffic import collectives
from thrifty.spec.recipe import STATE_BITS, Layout, Optimizer

NAMES = ("adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor", "lion", "lamb", "lars", "muon")
WIDTHS = [(n, b) for n in NAMES for b in STATE_BITS.get(n, (32,))]
MODELS = {
    "llama": shape(layers=2, hidden=64, heads=2, kv_heads=1, ffn=176),
    "gpt": gpt(layers=2, hidden=96, heads=2, ffn=384),
    "tied": shape(layers=1, hidden=130, heads=2, head_dim=32, ffn=99, tied_embeddings=True, bias="qkv"),
}


def stepped(model: Any, asked: Optimizer) -> int:
    """Bytes that the trainer counts after a step of the real module."""
    torch = pytest.importorskip("torch")
    from thrifty.model.transformer import Transformer
    from thrifty.trainer.memory import optimizer_bytes
    from thrifty.trainer.optimizers import build_optimizer

    module = Transformer(model)
    optimizer = build_optimizer(module, asked)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer_bytes(optimizer)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("optimizer", "bits"), WIDTHS)
def test_states_are_what_the_trainer_counts(name: str, optimizer: str, bits: int) -> None:
    asked, model = Optimizer(name=optimizer, state_bits=bits), MODELS[name]
    predicted = memory(job(model), gpus(1), recipe(optimizer=asked)).optimizer
    assert predicted == stepped(model, asked)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_no_momentum_is_kept_where_there_is_none(optimizer: str) -> None:
    asked = Optimizer(name=optimizer, momentum=0.0)
    assert memory(job(MODELS["gpt"]), gpus(1), recipe(optimizer=asked)).optimizer == stepped(MODELS["gpt"], asked)


def test_bytes_a_parameter_of_a_large_model() -> None:
    """Two moments of 4 bytes, 1 + 2/256 or 1/2 + 2/64; Muon one for the matrices of the blocks."""
    model = shape(layers=4, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab_size=1000)
    piece = held(model, Layout(), "thrifty")[0]

    def each(name: str, bits: int = 32) -> float:
        return state_bytes(Kept(name, bits), piece.pieces) / piece.shard

    expected = {("adamw", 32): 8, ("adamw", 16): 4, ("adamw", 8): 2.0157, ("adamw", 4): 1.0626, ("lion", 8): 1.0079,
                ("muon", 32): 4.04, ("muon", 8): 1.018, ("sgd", 32): 4}  # fmt: skip
    for (name, bits), value in expected.items():
        assert each(name, bits) == pytest.approx(value, rel=0.02), (name, bits)


@given(
    rows=st.integers(1, 300), columns=st.integers(1, 300), ranks=st.integers(1, 9),
    bits=st.sampled_from([32, 16, 8, 4]), name=st.sampled_from(NAMES),
)  # fmt: skip
def test_fewer_bits_never_keep_more(rows: int, columns: int, ranks: int, bits: int, name: str) -> None:
    plain, low = (tensor_bytes(Kept(name, width), (rows, columns)) for width in (32, bits))
    widths = STATE_BITS.get(name, (32,))
    assert bits not in widths or low <= plain


def test_bytes_of_an_update() -> None:
    """28 of AdamW, 16 of them moments read and written, and 12 of clipping; GPUs gain from fewer bits, CPUs do not."""
    assert [update_bytes(Optimizer(state_bits=b), "gpu") for b in (32, 16, 8, 4)] == [40, 32, 28, 26]
    assert {update_bytes(Optimizer(state_bits=b), "cpu") for b in (32, 8, 4)} == {40}
    assert update_bytes(Optimizer(name="lion"), "gpu") == update_bytes(Optimizer(name="sgd"), "gpu") == 32
    assert update_bytes(Optimizer(name="muon"), "gpu", 1.0) == 24 + 8 + 8
    assert update_bytes(Optimizer(name="muon"), "gpu", 0.5) == 40


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (64, 64), (96, 64), (64, 512), (4096, 1024), (100, 151)])
def test_work_is_that_of_the_optimizer(rows: int, columns: int) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from thrifty.optim.newton_schulz import orthogonalised

    with FlopCounterMode(display=False) as counted:
        orthogonalised(torch.ones(1, rows, columns))
    assert 2 * muon.work(rows, columns) == counted.get_total_flops()


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=20), ranks=st.integers(1, 6)
)
def test_the_next_largest_matrix_goes_to_the_rank_with_the_least_to_do(
    sizes: list[tuple[int, int]], ranks: int
) -> None:
    busy, taken = [0] * ranks, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda at: -muon.work(*sizes[at])):
        taken[place] = min(range(ranks), key=busy.__getitem__)
        busy[taken[place]] += muon.work(*sizes[place])
    assert list(muon.owners(tuple(sizes), ranks)) == taken


def test_what_ranks_send_for_muon_arrives() -> None:
    """All that leaves for the owners is what is not there already, and as much comes back."""
    matrices, ranks = ((10, 6), (7, 9), (5, 5), (12, 4)), 3
    every = [muon.messages(matrices, ranks, at) for at in range(ranks)]
    total = 2 * sum(rows * columns for rows, columns in matrices)
    assert sum(handed for (handed, _), _ in every) == sum(handed for _, (handed, _) in every) == total
    assert sum(sent for (_, sent), _ in every) == sum(sent for _, (_, sent) in every) < total


def test_muon_takes_longer_where_steps_are_short_and_its_work_is_shared() -> None:
    """5 steps a matrix cost as much as so many tokens more: little of a large batch, much of a small one."""
    model = shape(layers=8, hidden=1024, heads=8, kv_heads=8, ffn=4096)
    asked, adamw = Optimizer(name="muon"), Optimizer()

    def share(accumulation: int) -> float:
        plain, other = (
            step_seconds(job(model), gpus(8), recipe(shard=8, micro=1, accumulation=accumulation, optimizer=one)).total
            for one in (adamw, asked)
        )
        return other / plain - 1

    assert share(1) > 2 * share(8) > 0
    alone, shared = (
        step_seconds(job(model), gpus(n), recipe(shard=n, micro=8, optimizer=asked)).optimizer for n in (1, 8)
    )
    assert shared < alone / 3


def test_muon_sends_its_matrices_twice() -> None:
    model = shape(layers=8, hidden=256, heads=4, kv_heads=4, ffn=1024)
    asked = recipe(shard=8, optimizer=Optimizer(name="muon"))
    sent = [one for one in collectives(job(model), gpus(8), asked) if one.unit == "muon"]
    values = 8 * (4 * 256 * 256 + 3 * 256 * 1024)
    assert [one.kind for one in sent] == ["all_to_all"] * 2
    assert sent[0].payload_bytes == 2 * values / 8
    assert sum(one.sent_bytes for one in sent) == pytest.approx(2 * 2 * values / 8 * 7 / 8, rel=0.2)
    plain = predict(job(model), gpus(8), recipe(shard=8)).link_bytes["intra_node"].value
    more = predict(job(model), gpus(8), asked).link_bytes["intra_node"].value - plain
    assert more == pytest.approx(100 * sum(one.sent_bytes for one in sent))


def test_momentum_decides_nothing_of_adamw() -> None:
    assert kept_of(Optimizer(momentum=0.5)) == Kept()
