"""The Recipe: how a job is run. Everything that a plan may choose, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from thrifty.spec.figure import Count, Noun, Number, PositiveCount, Ratio

NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]


class Layout(Noun):
    """Ranks as a grid, outermost axis first: island x shard x pipeline x tensor.

    Attributes:
        island: replicas that all-reduce their gradients (hybrid sharding; plain data parallel when shard is 1).
        shard: ranks that share one copy of parameters, gradients and optimizer state (fully sharded data parallel).
        pipeline: stages. This version runs 1.
        tensor: ranks that split each matrix. This version runs 1.
        reshard_after_forward: free gathered parameters after the forward pass and gather them again for the backward
            pass (ZeRO-3); off keeps them (ZeRO-2): less traffic, more memory.
    """

    island: PositiveCount = 1
    shard: PositiveCount = 1
    pipeline: PositiveCount = 1
    tensor: PositiveCount = 1
    reshard_after_forward: bool = True

    @property
    def ranks(self) -> int:
        return self.island * self.shard * self.pipeline * self.tensor

    @property
    def data_ranks(self) -> int:
        """Ranks that see different samples."""
        return self.island * self.shard

    @model_validator(mode="after")
    def _check(self) -> Self:
        for axis in ("pipeline", "tensor"):
            if getattr(self, axis) != 1:
                raise ValueError(
                    f"{axis} = {getattr(self, axis)} is not supported yet; use 1 and spread over shard or island"
                )
        return self


class Batch(Noun):
    """Sequences in one optimizer step. Accumulation is derived: sequences / (micro_sequences x data ranks).

    Attributes:
        sequences: in one optimizer step, over all ranks.
        micro_sequences: in one forward pass of one rank.
    """

    sequences: PositiveCount
    micro_sequences: PositiveCount


class Optimizer(Noun):
    """AdamW (Loshchilov & Hutter 2019) with fp32 states. Decay applies to matrices, not to norms and biases."""

    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    beta1: Annotated[Ratio, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Ratio, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    clip_norm: NonNegative = 1.0  # 0 = no clipping


class Schedule(Noun):
    """The learning rate over steps: linear warm-up, then a shape.

    `cosine` falls from lr to lr x final_ratio; `wsd` (warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395) holds lr
    and falls linearly over the last `decay_fraction` of the steps; `constant` holds lr.
    """

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: Annotated[Count, Field(ge=0)] = 100
    final_ratio: Annotated[Ratio, Field(ge=0, le=1)] = 0.1
    decay_fraction: Annotated[Ratio, Field(gt=0, le=1)] = 0.2


class Exchange(Noun):
    """How gradients cross between ranks."""

    dtype: Literal["fp32", "bf16"] = "fp32"


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
        precision: `bf16` does matrix products and the residual stream in bf16 with fp32 master weights, gradients
            and optimizer states; `fp32` does all in fp32.
        recompute: `full` keeps only each block's input and computes the block again in the backward pass.
        compile: torch.compile each block.
    """

    layout: Layout = Layout()
    batch: Batch
    precision: Literal["fp32", "bf16"] = "bf16"
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    exchange: Exchange = Exchange()
    recompute: Literal["none", "full"] = "none"
    compile: bool = False
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()

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
        return self
