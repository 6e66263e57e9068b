"""What a tensor or context rank keeps for the backward pass, byte for byte; and logits of a head that is split."""

from __future__ import annotations

import pytest
import torch
from parity import SEQUENCE, SHAPES, Case, batch_of, build_case, whole

from thrifty.cost.activations import activation_bytes_per_token
from thrifty.trainer import memory

pytestmark = pytest.mark.dist


def kept_bytes(case: Case) -> tuple[int, int]:
    """Saved by a forward pass for each sequence more (weights and rotary tables do not grow); rows of the head."""
    built, world = build_case(case)
    tokens, targets = map(world.own_tokens, batch_of(case, 0))
    found = []
    for sequences in (1, 3):
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = built.model(tokens[:sequences].clone(), targets[:sequences].clone())
        assert loss.requires_grad
        found.append(sum(storage.nbytes() for storage in storages.values()))
    return (found[1] - found[0]) // 2, memory.head_rows(built.model)


def expected(case: Case) -> float:
    """Bytes a token of docs/parallel.md: `t` ranks split the matrices, and `s` the stream with what norms keep."""
    shape, t = case.job.model, case.recipe.layout.tensor
    s = t if case.recipe.layout.sequence_parallel else 1
    c = 2 if case.precision == "bf16" else 4
    scale = 2 * c if shape.norm == "layernorm" else 4
    hidden, inner, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    block = 2 * (c * hidden / s + scale / s + c * hidden) + c * (2 * inner + 2 * kv) / t
    block += c * shape.ffn * (3 if shape.mlp == "swiglu" else 2) / t
    if case.recompute == "none":
        block += shape.heads * c * SEQUENCE / t  # probabilities: so short a sequence is one block of queries
        block += (c * (inner + kv) + 4 * (shape.heads + shape.kv_heads)) / t if shape.qk_norm else 0
    if case.recompute == "full":
        block = c * hidden / s
    # Ids of the tokens and which of them this rank has rows of; the last norm; the gradient of the head's input.
    return shape.layers * block + 9 + (c * hidden + scale) / s + c * hidden


@pytest.mark.parametrize("sequence_parallel", [True, False])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("shape", "precision"), [("llama", "fp32"), ("gpt", "fp32"), ("qwen", "bf16")])
def test_what_a_tensor_rank_keeps(pool, shape, precision, recompute, sequence_parallel):
    layout = {"tensor": 2, "sequence_parallel": sequence_parallel}
    case = Case(shape=shape, layout=layout, dtype="float32", precision=precision, recompute=recompute)
    for activations, rows in pool(2).run(kept_bytes, case):
        assert activations == SEQUENCE * expected(case)
        assert rows == SHAPES[shape]["vocab_size"] // 2


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("shape", "precision"), [("llama", "fp32"), ("gpt", "fp32"), ("qwen", "bf16")])
@pytest.mark.parametrize("layout", [{"context": 2}, {"context": 2, "tensor": 2}], ids=str)
def test_what_a_context_rank_keeps(pool, shape, precision, recompute, layout):
    """Of its own tokens what one process would, with a log-sum-exp for each query and head; nothing of what goes by."""
    case = Case(shape=shape, layout=layout, dtype="float32", precision=precision, recompute=recompute)
    model, tensor = case.job.model, layout.get("tensor", 1)
    element = 2 if precision == "bf16" else 4
    each = activation_bytes_per_token(model, SEQUENCE, element, recompute, False, tensor, tensor)
    for activations, _ in pool(case.recipe.layout.ranks).run(kept_bytes, case):
        assert activations == SEQUENCE // 2 * each


def metered_bytes(case: Case, sequences: int) -> int:
    """What the trainer's meter finds in a first forward pass."""
    built, _ = build_case(case)
    tokens, targets = batch_of(case, 0)
    with memory.count_forward(built.model, compiled=False) as saved:
        loss = built.model(tokens[:sequences].clone(), targets[:sequences].clone())
    assert loss.requires_grad
    return saved.activation_bytes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [{"shard": 2, "reshard_after_forward": False}, {"tensor": 2}])
def test_the_meter_counts_a_batch_that_is_shaped_like_a_weight(pool, layout, precision):
    """Four sequences have as many tokens as the vocabulary has ids; inputs of the head are shaped like the embedding."""
    case = Case(layout=layout, dtype="float32", precision=precision)
    assert 4 * SEQUENCE == SHAPES["llama"]["vocab_size"]
    for four, three, two in zip(*(pool(2).run(metered_bytes, case, n) for n in (4, 3, 2)), strict=True):
        assert four - three == three - two


def logits_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    built, _ = build_case(case)
    tokens, _ = batch_of(case, 0)
    with torch.no_grad():
        logits = built.model(tokens)
    return logits, whole(built.model.embed.weight)


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"tensor": 4, "sequence_parallel": False}, {"shard": 2, "tensor": 2}])
def test_logits_of_a_split_head_are_whole(pool, layout):
    """Of a vocabulary that is not divided by the ranks."""
    case = Case(shape="odd", layout=layout, dtype="float32")
    reference, embedding = logits_of(Case(shape="odd", dtype="float32"))
    for logits, its_embedding in pool(case.recipe.layout.ranks).run(logits_of, case):
        assert torch.equal(its_embedding, embedding)
        assert torch.allclose(logits, reference, rtol=1e-4, atol=1e-6)
