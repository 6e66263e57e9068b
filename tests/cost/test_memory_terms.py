"""Memory: exact states, activations against a published formula and against what the real module keeps."""

from __future__ import annotations

import math

import pytest
from cost_examples import cores, gpt, gpus, job, recipe, recipes, shape, shapes
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.cost import constants
from thrifty.cost.activations import activation_bytes_per_token, block_activation_bytes_per_token
from thrifty.cost.held import held, states
from thrifty.cost.memory import memory, usable_bytes
from thrifty.cost.optimizer import Kept
from thrifty.cost.params import parameter_shapes, shard_rows
from thrifty.cost.work import chunk_rows
from thrifty.spec import ModelShape, Recipe
from thrifty.spec.bill import MEMORY_TERMS
from thrifty.spec.recipe import Layout


def test_gpt_keeps_32_bytes_a_token_and_column() -> None:
    """Korthikanti et al. 2022 (arXiv:2205.05198): 34 s b h without the scores, which flash attention does not keep.

    Two of the 34 are dropout masks, which this model does not have; scales of norms and log-sum-exps come on top.
    """
    model = gpt(hidden=1024, heads=16, ffn=4096)
    scales, log_sum_exps = 2 * 2 * 2, 4 * model.heads
    assert block_activation_bytes_per_token(model, 2048, 2, False) == 32 * model.hidden + scales + log_sum_exps


@given(shapes(), st.integers(1, 9), recipes())
def test_states_are_exact_on_the_fullest_rank(model: ModelShape, shards: int, how: Recipe) -> None:
    layout = how.layout.model_copy(update={"island": 1, "shard": shards})
    how = how.model_copy(update={"layout": layout, "batch": how.batch.model_copy(update={"sequences": shards * 4})})
    elements = sum(shard_rows(size[0], shards)[0] * math.prod(size[1:]) for _, size in parameter_shapes(model))
    used = memory(job(model), gpus(), how)
    assert used.parameters == used.gradients == 4 * elements
    assert used.optimizer == 8 * elements + 4 * len(parameter_shapes(model))


@given(shapes(), recipes())
def test_the_peak_holds_all_that_must_coexist(model: ModelShape, how: Recipe) -> None:
    used = memory(job(model), gpus(), how)
    assert set(used.terms()) == set(MEMORY_TERMS)
    assert used.peak >= used.parameters + used.optimizer + used.runtime + max(used.gradients, used.activations)
    # Casts of weights on one rank are in the peak and in no term, as is the head's gradient beside the loss.
    loose = 8 * sum(math.prod(size) for _, size in parameter_shapes(model))
    working = 3 * block_activation_bytes_per_token(model, 128, 4, False) * how.batch.micro_sequences * 128
    assert used.peak <= sum(used.terms().values()) + loose + working


@given(shapes(), recipes(), st.integers(2, 8))
def test_more_shards_never_need_more_memory(model: ModelShape, how: Recipe, times: int) -> None:
    def peak(shards: int) -> float:
        layout = how.layout.model_copy(update={"island": 1, "shard": shards})
        batch = how.batch.model_copy(update={"sequences": how.batch.micro_sequences * shards})
        return memory(job(model), gpus(), how.model_copy(update={"layout": layout, "batch": batch})).peak

    assert peak(2 * times) <= peak(2)


@given(shapes(), st.integers(1, 200))
def test_activations_fall_with_recomputation_and_with_the_element(model: ModelShape, s: int) -> None:
    kept = activation_bytes_per_token(model, s, 2, "none", False)
    assert activation_bytes_per_token(model, s, 2, "full", False) < kept
    assert kept < activation_bytes_per_token(model, s, 4, "none", False) <= 2 * kept


def test_gathering_once_keeps_every_block() -> None:
    model = shape(layers=10)
    twice, once = (memory(job(model), gpus(), recipe(shard=4, reshard=again)).communication for again in (True, False))
    block = sum(math.prod(size) for name, size in parameter_shapes(model) if name.startswith("blocks.0."))
    assert once - twice == 8 * 2 * block  # two of the ten are gathered anyway, in bf16


def test_a_cpu_rank_has_the_memory_of_its_cores() -> None:
    machine = cores(4)
    assert usable_bytes(machine, 2) == 2 * usable_bytes(machine, 4)
    assert usable_bytes(machine, 1) == 4 * 8 * 2**30 * constants.USABLE_MEMORY["cpu"]
    assert usable_bytes(gpus(8), 4) == usable_bytes(gpus(8), 8)


def test_the_model_s_own_kernels_have_the_same_constants() -> None:
    pytest.importorskip("torch")
    from thrifty.model import loss, short_attention

    assert short_attention.LONGEST == constants.SHORT_ATTENTION_LONGEST
    assert short_attention.BLOCK == constants.SHORT_ATTENTION_BLOCK

    for tokens in (1, 64, 513, 768, 4096, 100_001):
        for vocab in (65, 1024, 50257, 128256):
            assert chunk_rows(tokens, vocab) == loss.chunk_rows(tokens, vocab)


@settings(deadline=None, max_examples=40)
@given(shapes(), st.integers(2, 150), st.sampled_from(["fp32", "bf16"]))
def test_activations_are_what_the_module_keeps(model: ModelShape, s: int, precision: str) -> None:
    """What autograd saves for two sequences more: weights, their casts and rotary tables do not grow with them."""
    torch = pytest.importorskip("torch")
    from thrifty.model.transformer import Transformer

    module = Transformer(model, precision=precision)  # type: ignore[arg-type]

    def kept(sequences: int) -> int:
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        tokens = torch.zeros(sequences, s, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = module(tokens, tokens.clone())
        assert loss.requires_grad
        return sum(storage.nbytes() for storage in storages.values())

    element = {"fp32": 4, "bf16": 2}[precision]
    predicted = 2 * s * activation_bytes_per_token(model, s, element, "none", keeps_scores=True)
    assert kept(3) - kept(1) == pytest.approx(predicted, rel=1e-12)


def test_the_trainer_s_own_layouts_are_counted_as_before() -> None:
    """The counts that its meter checks to the byte and those of `held.py` are one."""
    for shards in (1, 3, 8):
        used = memory(job(shape()), gpus(), recipe(shard=shards))
        piece = held(shape(), Layout(shard=shards), "thrifty")[0]
        own = states(piece, "thrifty", "bf16", 3, Kept())
        assert (used.parameters, used.gradients, used.optimizer) == (own.parameters, own.gradients, own.optimizer)
        assert used.reserved >= used.peak


def test_a_cpu_reserves_what_it_allocates() -> None:
    used = memory(job(shape()), cores(2), recipe(shard=2))
    assert used.reserved == used.peak
