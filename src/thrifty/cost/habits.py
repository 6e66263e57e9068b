"""What each software keeps in memory: facts of its code, beside the few fitted numbers of `memory_constants.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from thrifty.cost import memory_constants


@dataclass(frozen=True, slots=True)
class Habits:
    """How one software uses memory.

    Attributes:
        source: where the facts were read.
        flash: attention in one kernel that keeps a log-sum-exp instead of scores.
        dropout: masks are kept: a byte for each element of the stream after attention and MLP, and of the scores.
        gathered: the input of a column-parallel layer is kept as gathered over the tensor ranks, not as their part.
        inner: tensors as wide as the MLP that SwiGLU keeps: gate, up, product, and silu(gate) where it is not fused.
        inner_compiled: the same under torch.compile.
        by_operation: `recompute: selective` keeps the results of every second matrix product and of attention
            (torchtitan's `op`); otherwise it computes attention alone again.
        kept_stages: buffers for what stages of a pipeline hand on, one for each microbatch, and outputs kept beside.
        logits: bytes for each logit at the loss, all copies together.
        logits_split: the same where tensor ranks split the vocabulary.
        logits_compiled: the same where the loss is compiled or fused.
        weight_gradients: 16-bit buffers for the gradients of a block's matrices, one for each shape, and for the head's
            while its gradient is made (Transformer Engine returns them beside the fp32 gradients that it adds up).
        buckets: bytes of a second buffer for each element's gradient, where several ranks see different samples.
        bucket_bytes: of fixed communication buffers.
        round_vocabulary: the vocabulary is padded to a multiple of this and of the tensor ranks.
        fixed_bytes: allocated beside all that is counted: workspaces, tables, small tensors.
        allocator: what the allocator reserves over what is allocated; eager, and compiled.
    """

    source: str
    flash: bool = True
    dropout: bool = False
    gathered: bool = True
    inner: int = 4
    inner_compiled: int = 3
    by_operation: bool = False
    kept_stages: bool = False
    logits: float = 12.0
    logits_split: float = 12.0
    logits_compiled: float | None = None
    weight_gradients: bool = False
    buckets: float = 0.0
    bucket_bytes: float = 0.0
    round_vocabulary: int = 1
    fixed_bytes: float = 0.0
    allocator: tuple[float, float] = (1.05, 1.05)


_FACTS: Final = {
    "thrifty": Habits("own code, and tests that count what autograd keeps", inner=3, kept_stages=True),
    # cross_entropy(logits.float()): the bf16 logits, whose place the allocator keeps, then in fp32 log-probabilities,
    # their gradient, and the logits'; DTensor's loss-parallel log-softmax writes each step to a tensor of its own.
    # Compiled, all but the bf16 logits and their gradient are fused away (compiled since 2025-01).
    "torchtitan": Habits(
        "torchtitan components/loss.py, distributed/activation_checkpoint.py; torch tensor/parallel/loss.py",
        by_operation=True, kept_stages=True, logits=14.0, logits_split=20.0, logits_compiled=4.0,
    ),
    # Loss fused by Transformer Engine: the gradient takes the logits' place.
    "megatron": Habits(
        "Megatron-LM core/transformer, Transformer Engine module/linear.py and layernorm_mlp.py",
        gathered=False, inner=3, logits=4.0, logits_split=4.0, weight_gradients=True, round_vocabulary=128,
    ),
    # fp32 copy, the same less its maximum (exponentials and softmax in place), and bf16 logits.
    "nanotron": Habits(
        "nanotron models/llama.py, parallel/tensor_parallel/functional.py, optim/gradient_accumulator.py",
        logits=10.0, logits_split=10.0, buckets=2.0,
    ),
    "deepspeed": Habits(
        "DeepSpeed docs: reduce_bucket_size and allgather_bucket_size 5e8 elements; transformers' cross-entropy",
        bucket_bytes=2e9,
    ),
    "accelerate": Habits("transformers' cross-entropy in fp32"),
}  # fmt: skip
# Earlier releases, by a name for those who score against them: the loss was not compiled.
_EARLIER: Final = {"torchtitan-2024": replace(_FACTS["torchtitan"], logits_compiled=None)}


def _with_fit(name: str, facts: Habits) -> Habits:
    fitted = memory_constants.FITTED.get(name.split("-")[0])
    if fitted is None:
        return facts
    return replace(facts, fixed_bytes=fitted["fixed_bytes"], allocator=(fitted["eager"], fitted["compiled"]))


HABITS: Final = {name: _with_fit(name, facts) for name, facts in (_FACTS | _EARLIER).items()}
