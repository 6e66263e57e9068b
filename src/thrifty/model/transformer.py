"""One dense decoder with switches, covering the GPT-2, Llama 2/3, Qwen 2/3 and Mistral families.

What a block saves for its backward pass is listed in `docs/model.md`; the cost model counts it from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from thrifty.model.attention import Attention, Cache, Context, LayerCache, make_context
from thrifty.model.initialise import initialise
from thrifty.model.layers import Embedding, Linear, Positions, gelu_, norm, part_here, swiglu
from thrifty.model.loss import VocabularyPart, linear_cross_entropy
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape
from thrifty.spec.trained import require_trained


class GeluMLP(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        bias = shape.bias == "all"
        self.up = Linear(shape.hidden, shape.ffn, bias=bias)
        self.down = Linear(shape.ffn, shape.hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (batch, seq, hidden)
        return self.down(gelu_(self.up(x)))


class SwigluMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        bias = shape.bias == "all"
        self.gate = Linear(shape.hidden, shape.ffn, bias=bias)
        self.up = Linear(shape.hidden, shape.ffn, bias=bias)
        self.down = Linear(shape.ffn, shape.hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (batch, seq, hidden)
        return self.down(swiglu(self.gate(x), self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = norm(shape)
        self.attention = Attention(shape)
        self.mlp_norm = norm(shape)
        self.mlp = SwigluMLP(shape) if shape.mlp == "swiglu" else GeluMLP(shape)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:  # (batch, seq, hidden)
        x = self.attention(self.attention_norm(x), context, cache).add_(x)
        return self.mlp(self.mlp_norm(x)).add_(x)


class Transformer(nn.Module):
    """A decoder of one shape, ready to train; on the meta device it holds no values until `init_weights`.

        with torch.device("meta"):
            model = Transformer(shape, precision="bf16")
        ...                                   # fully_shard(block) for each block, then fully_shard(model)
        model.to_empty(device=device)
        model.init_weights(seed)

    Args:
        precision: `bf16` keeps activations and does matrix products in bf16 and leaves the parameters as they are
            (fp32 master weights); `fp32` computes in the dtype of the parameters, so that `model.double()` is exact.
        recompute: `full` keeps only each block's input and computes the block again in the backward pass; `selective`
            computes again what lies between the projections of attention.

    Raises:
        ThriftyError: a shape that is priced but not trained, in the words of `spec.trained`.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
        recompute: Literal["none", "selective", "full"] = "none",
    ) -> None:
        super().__init__()
        require_trained(shape)
        self.shape = shape
        self.recompute = recompute
        self.sequence_parts = 1  # in which ranks that split the residual stream along the sequence hold it
        # Positions of the tokens that this rank holds, (tokens, device) -> (tokens,), where ranks share sequences.
        self.places: Callable[[int, torch.device], Tensor] | None = None
        self.twice = False  # whether a backward pass runs in two parts: see `linear_cross_entropy`
        self.compute_dtype = torch.bfloat16 if precision == "bf16" else None  # None: that of the parameters
        # A stage of a pipeline holds some of these alone: see `keep_stage`.
        self.embed: Embedding | None = Embedding(shape.vocab_size, shape.hidden)
        self.positions = Positions(shape.max_positions, shape.hidden) if shape.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm: nn.Module | None = norm(shape)
        self.head = None if shape.tied_embeddings else Linear(shape.hidden, shape.vocab_size, bias=False)
        self.vocabulary: VocabularyPart | None = None  # set where the head is split over ranks
        for block in self.blocks:
            block.attention.recompute = recompute == "selective"
        if self.embed.weight.device.type != "meta":
            self.init_weights(0)

    def init_weights(self, seed: int) -> None:
        """Fills the parameters in place; the values depend on seed and name alone, whatever the sharding."""
        initialise(self, seed)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits, or the loss when targets are given.

        A stage of a pipeline takes the hidden states of the stage before it for `tokens`, and returns its own,
        (batch, seq, hidden); the last one returns what the whole model returns.

        Args:
            tokens: ids, (batch, seq).
            targets: ids, (batch, seq); -100 counts nothing.
            cache: tokens continue what it holds, and are added to it. Not for training.

        Returns:
            Logits (batch, seq, vocab) in the compute dtype; with targets the sum of the cross entropy in nats over
            all targets but -100, in fp32 (fp64 for fp64).
        """
        x = self.trunk(tokens, cache)
        if self.norm is None:
            # torch's split backward pass detaches what a stage hands on in place, which a view does not allow.
            return x.clone() if self.twice and x._is_view() else x
        weight = part_here(self.embed.weight if self.head is None else self.head.weight)
        if targets is not None:
            return linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten(), self.vocabulary, twice=self.twice)
        logits = F.linear(x, weight.to(x.dtype)) if self.head is None else self.head(x)
        return logits if self.vocabulary is None else self.vocabulary.whole(logits)

    def trunk(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """The last hidden states after the final norm, (batch, seq, hidden): what the head reads."""
        seq = tokens.shape[1] * (self.sequence_parts if tokens.is_floating_point() else 1)
        start = 0 if cache is None else cache.length
        x = tokens if tokens.is_floating_point() else self.embed(tokens)  # (batch, seq, hidden)
        x = x.to(self.compute_dtype or x.dtype)
        if self.positions is not None:
            if start + seq > self.shape.max_positions:
                what = f"{start + seq} tokens, but the model has learned {self.shape.max_positions} positions"
                raise ThriftyError(what, hint="shorten the sequence, or train a model with more max_positions")
            x = x + self.positions(start, seq).to(x.dtype)
        blocks = [(int(name), block) for name, block in self.blocks.named_children()]
        windows = {index: self.shape.window(index) for index, _ in blocks}
        places = None if self.places is None else self.places(seq, x.device)
        contexts = {
            w: make_context(self.shape, w, seq, start, x.dtype, x.device, places)
            for w in dict.fromkeys(windows.values())
        }
        for index, block in blocks:
            context = contexts[windows[index]]
            if self.recompute == "full" and torch.is_grad_enabled():
                x = checkpoint(block, x, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, context, None if cache is None else cache.layers[index])
        if cache is not None:
            cache.length += seq
        return x if self.norm is None else self.norm(x)


def keep_stage(model: Transformer, layers: range, *, first: bool, last: bool) -> Transformer:
    """Takes from a model, in place, what other stages of a pipeline hold; names stay those of the whole model.

    The first stage keeps the embedding and the last one norm and head. A tied head is the embedding's matrix, so both
    keep that.

    Args:
        model: whole, and on the meta device, so that no stage ever holds it all.
        layers: the blocks that stay.
    """
    kept = nn.ModuleList()
    for index in layers:
        kept.add_module(str(index), model.blocks[index])  # not by append, which would number from 0
    model.blocks = kept
    if not first:
        model.positions = None
    if not (first or (last and model.shape.tied_embeddings)):
        model.embed = None
    if not last:
        model.norm = model.head = None
    return model
