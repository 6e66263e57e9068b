"""The Recipe: how a job is run. Everything that a plan may choose, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from thrifty.spec.codec import stages_of
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Count, Noun, Number, PositiveCount, Ratio
from thrifty.spec.schedule import Ramp, Schedule

NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]


def _known_codec(text: str | None) -> str | None:
    """The text in its usual spelling; `none` is none.

    Raises:
        ValueError: no codec.
    """
    if text is None or text.strip().lower() == "none":
        return None
    try:
        stages_of(text)
    except ThriftyError as error:
        raise ValueError(f"{error.what}; {error.hint}") from None
    return " + ".join(part.strip().lower() for part in text.split("+"))


class Layout(Noun):
    """Ranks as a grid, outermost axis first: island x pipeline x shard x context x tensor.

    The inner an axis, the faster its links: pipelines send least, so their stages lie across nodes and a shard's ranks
    inside one, as in torchtitan and Megatron-LM. What a model, a job and the software allow of this is in `spec.legal`.

    Attributes:
        island: replicas that all-reduce their gradients (hybrid sharding; plain data parallel when shard is 1).
        shard: ranks that share one copy of what `zero` names.
        pipeline: stages, each a run of layers.
        context: ranks that split each sequence.
        tensor: ranks that split each matrix.
        expert: ranks that split the experts of a layer. They are taken from the data and context ranks, so this axis
            adds none.
        zero: what the shard axis divides (Rajbhandari et al. 2020, arXiv:1910.02054): 0 nothing, 1 optimizer states,
            2 and gradients, 3 and parameters.
        reshard_after_forward: under zero 3, free gathered parameters after the forward pass and gather them again for
            the backward pass; off keeps them: less traffic, more memory. A stage of a pipeline keeps them anyway.
        sequence_parallel: split along the sequence what tensor parallelism leaves whole (norms, residual stream):
            same traffic, less memory (Korthikanti et al. 2022, arXiv:2205.05198).
        tensor_overlap: hide tensor-parallel traffic behind the matrix products it feeds (asynchronous TP).
        schedule: order of microbatches in a pipeline. `zero_bubble` is ZB-H1, `zbv` the V shape of two chunks a stage
            (Qi et al. 2023, arXiv:2401.10241; 2024, arXiv:2405.15362).
        interleave: chunks of layers that each stage holds (`interleaved`; `zbv` has 2).
    """

    island: PositiveCount = 1
    shard: PositiveCount = 1
    pipeline: PositiveCount = 1
    context: PositiveCount = 1
    tensor: PositiveCount = 1
    expert: PositiveCount = 1
    zero: Literal[0, 1, 2, 3] = 3
    reshard_after_forward: bool = True
    sequence_parallel: bool = True
    tensor_overlap: bool = False
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"] = "1f1b"
    interleave: PositiveCount = 1

    @property
    def ranks(self) -> int:
        return self.island * self.shard * self.pipeline * self.context * self.tensor

    @property
    def data_ranks(self) -> int:
        """Ranks that see different samples."""
        return self.island * self.shard


class Batch(Noun):
    """Sequences in one optimizer step. Accumulation is derived: sequences / (micro_sequences x data ranks).

    Attributes:
        sequences: in one optimizer step, over all ranks.
        micro_sequences: in one forward pass of one rank.
        ramp: how the batch grows from there; none = it does not.
    """

    sequences: PositiveCount
    micro_sequences: PositiveCount
    ramp: Ramp | None = None


# Widths, in bits, that the moments of each optimizer are kept in. Without a choice of widths they are fp32.
STATE_BITS: dict[str, tuple[int, ...]] = {
    "adamw": (32, 16, 8, 4), "adam": (32, 8), "lion": (32, 8), "lamb": (32,), "muon": (32, 16, 8, 4),
}  # fmt: skip


class Optimizer(Noun):
    """What moves the parameters. Decay applies to matrices, not to norms and biases.

    Attributes:
        name: formulas and sources are in docs/optimizers.md. `muon` takes the matrices inside the blocks; AdamW takes
            embeddings, head, norms and biases, at the same rate.
        state_bits: of each moment; small tensors keep fp32. With `muon` and 4 its momentum has 8.
        momentum: of muon, sgd (Nesterov's), lars and rmsprop.
        stable: divides a tensor's rate by the root mean square of g / sqrt(v) where that is above 1 (StableAdamW,
            Wortsman et al. 2023, arXiv:2304.13013).
        clip_norm: of all gradients together; 0 leaves them as they are.
    """

    name: Literal["adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor", "lion", "lamb", "lars", "muon"] = "adamw"
    state_bits: Literal[32, 16, 8, 4] = 32
    lr: Positive = 1e-3
    beta1: Annotated[Ratio, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Ratio, Field(ge=0, lt=1)] = 0.95
    momentum: Annotated[Ratio, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    stable: bool = False
    clip_norm: NonNegative = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        widths = STATE_BITS.get(self.name, (32,))
        if self.state_bits not in widths:
            raise ValueError(
                f"{self.name} does not keep moments of {self.state_bits} bits; "
                f"set state_bits to {' or '.join(map(str, widths))}"
            )
        if self.stable and self.name not in ("adamw", "muon"):
            raise ValueError(f"stable goes with adamw and muon, not {self.name}; leave it out, or use adamw")
        return self


class Exchange(Noun):
    """How gradients cross between ranks.

    Attributes:
        dtype: of gradients while they are reduced, inside islands; between them too, in an all-reduce of every step.
        codec: of what islands send each other, as text (`spec.codec`), e.g. `topk(1/64) + means2`; none = not
            compressed.
        adaptive: after the warm-up each unit of the gradients takes the codec that reaches the target soonest, by its
            measured size (`cost.adaptive`), or 16 bits where none pays; plans price `codec`.
        feedback: what a codec lost is sent later: `classic` error feedback, `ef21` (Richtarik et al. 2021,
            arXiv:2106.05203), or `none`.
        decay: of what was lost, each time; below 1 it also takes the place of outer momentum (arXiv:2508.15706).
        residual: number format in which it is stored.
        warmup_steps: exchanges that are not compressed yet.
        local_steps: optimizer steps of an island between two exchanges with the others (DiLoCo, arXiv:2311.08105).
            Then islands exchange how far their parameters moved, and an outer optimizer takes the mean as its gradient.
        outer_lr: of the outer optimizer; 1 with momentum 0 averages the islands.
        outer_momentum: Nesterov's.
        fragments: parts of the model that are exchanged in turn, each every `local_steps` (arXiv:2501.18512).
        delay_steps: that training goes on before the result of an exchange is put in.
        alpha: share of its own parameters that an island keeps then.
    """

    dtype: Literal["fp32", "bf16"] = "fp32"
    codec: Annotated[str | None, AfterValidator(_known_codec)] = None
    adaptive: bool = False
    feedback: Literal["classic", "ef21", "none"] = "classic"
    decay: Annotated[Ratio, Field(gt=0, le=1)] = 1.0
    residual: Literal["fp32", "bf16", "int8"] = "fp32"
    warmup_steps: Annotated[Count, Field(ge=0)] = 0
    local_steps: PositiveCount = 1
    outer_lr: Positive = 0.7
    outer_momentum: Annotated[Ratio, Field(ge=0, lt=1)] = 0.9
    fragments: PositiveCount = 1
    delay_steps: Annotated[Count, Field(ge=0)] = 0
    alpha: Annotated[Ratio, Field(ge=0, lt=1)] = 0.0

    @property
    def between_islands(self) -> bool:
        """Whether islands exchange otherwise than by an all-reduce of every step's gradients."""
        return self.codec is not None or self.local_steps > 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fragments > self.local_steps or self.delay_steps >= self.local_steps > 1:
            raise ValueError(
                f"local_steps {self.local_steps} leave no time for fragments {self.fragments} and "
                f"delay_steps {self.delay_steps}: as many fragments at most, and a shorter delay"
            )
        if self.feedback == "ef21" and (self.decay < 1 or self.residual != "fp32"):
            told = f"decay is {self.decay:g} and residual {self.residual}"
            raise ValueError(f"{told}, and feedback ef21 runs with 1 and fp32; use these, or feedback classic")
        if self.adaptive and (self.codec is None or not self.warmup_steps or self.local_steps > 1):
            raise ValueError(
                "adaptive chooses in the place of a codec, from gradients of every step: "
                "set codec, warmup_steps of 1 or more, and local_steps 1"
            )
        if self.delay_steps and self.local_steps == 1:
            raise ValueError(f"delay_steps {self.delay_steps} goes with local_steps above 1; leave it at 0")
        return self


class Evaluation(Noun):
    """Validation during training; one more at the end gives the bill's loss.

    Attributes:
        every_steps: 0 = only at the end.
        sequences: validation sequences each time, at most what there is.
    """

    every_steps: Annotated[Count, Field(ge=0)] = 250
    sequences: PositiveCount = 256


class Checkpoint(Noun):
    """Checkpoints during training; one more is written at the end.

    Attributes:
        every_steps: 0 = only at the end.
        keep: how many of the latest stay on disk.
        asynchronous: copy the state, then write it while training goes on.
    """

    every_steps: Annotated[Count, Field(ge=0)] = 1000
    keep: PositiveCount = 2
    asynchronous: bool = False


class Recipe(Noun):
    """How a job is run.

    Attributes:
        software: what runs it. `thrifty` is this project's trainer; plans for the others are priced with their own
            constants and written as their configuration.
        precision: `bf16` does matrix products and the residual stream in bf16 with fp32 master weights, gradients
            and optimizer states; `fp32` does all in fp32; `fp8` and `nvfp4` do the blocks' matrix products in that.
        scaling: of low-precision matrix products: one scale a tensor, a row, or a block of values.
        recompute: `full` keeps only each block's input and computes the block again in the backward pass;
            `selective` computes only attention again.
        compile: torch.compile each block.
    """

    software: Literal["thrifty", "torchtitan", "megatron", "deepspeed", "accelerate", "nanotron"] = "thrifty"
    layout: Layout = Layout()
    batch: Batch
    precision: Literal["fp32", "bf16", "fp8", "nvfp4"] = "bf16"
    scaling: Literal["tensor", "row", "block"] = "tensor"
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    exchange: Exchange = Exchange()
    recompute: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def ranks_together(self) -> int:
        """Ranks that the sharding code joins: all, or one island's where islands exchange in a way of their own."""
        return self.layout.ranks // (self.layout.island if self.exchange.between_islands else 1)

    @property
    def accumulation(self) -> int:
        """Forward passes of one rank in one optimizer step."""
        return self.batch.sequences // (self.batch.micro_sequences * self.layout.data_ranks)

    @model_validator(mode="after")
    def _check(self) -> Self:
        together = self.batch.micro_sequences * self.layout.data_ranks
        if self.batch.sequences % together:
            lower = max(together, self.batch.sequences // together * together)
            micro = self.batch.micro_sequences
            raise ValueError(
                f"batch.sequences {self.batch.sequences} is not a multiple of micro_sequences {micro} "
                f"x {self.layout.data_ranks} data ranks = {together}; use {lower} or {lower + together}"
            )
        ramp = self.batch.ramp
        if ramp is not None and ramp.most_sequences < self.batch.sequences + together:
            raise ValueError(
                f"batch.ramp.most_sequences {ramp.most_sequences} leaves no room to grow from "
                f"{self.batch.sequences} by micro_sequences x data ranks = {together}; "
                f"use {self.batch.sequences + together} or more, or leave the ramp out"
            )
        if ramp is not None and ramp.name == "seesaw" and self.schedule.name == "constant":
            raise ValueError("ramp seesaw grows the batch where the schedule lowers the rate; constant never does")
        return self
