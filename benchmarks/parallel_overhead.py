"""What the wiring of tensor parallelism costs beside hand-written torch that does the same products and collectives.

    python benchmarks/parallel_overhead.py [--pairs 12] [--hidden 512] [--json FILE]

Two ranks over gloo, one thread each, take steps in turn: with the trainer's model, DTensor parameters and hooks, and
with a model of plain parameters that calls the collectives itself. Both use the same kernels (`thrifty.model.layers`),
start from the same numbers and must agree on the loss. Processor time of a step is compared, pair by pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from thrifty.model.attention import make_context
from thrifty.model.layers import _EagerRMSNorm, rotate, swiglu
from thrifty.model.loss import linear_cross_entropy
from thrifty.parallel.loss import SplitVocabulary
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Batch, Layout, Recipe
from thrifty.trainer.build import Built, build
from thrifty.trainer.clip import clip_gradients
from thrifty.trainer.world import World

RANKS = 2


class Enter(torch.autograd.Function):
    """Identity forward, sum backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        dist.all_reduce(grad)
        return grad


class Leave(torch.autograd.Function):
    """Sum forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.detach()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class ByHand(nn.Module):
    """The same decoder over plain parameters, copied from this rank's parts of the built model."""

    def __init__(self, built: Built, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        for name, parameter in built.model.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(parameter.to_local().detach().clone()))
        self.vocabulary = SplitVocabulary(shape.vocab_size, dist.group.WORLD)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return _EagerRMSNorm.apply(x, weight, self.shape.norm_eps)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        ids = self.vocabulary.here(tokens)
        rows = F.embedding(ids.clamp_min(0), self.embed_weight)
        x = Leave.apply(rows * (ids >= 0)[..., None])
        batch, seq, _ = x.shape
        context = make_context(self.shape, None, seq, 0, x.dtype, x.device)
        for layer in range(self.shape.layers):
            w = {name: getattr(self, f"blocks_{layer}_{name}_weight") for name in NAMES}
            h = Enter.apply(self.norm(x, w["attention_norm"]))
            q, k, v = (F.linear(h, w[f"attention_{p}"]).view(batch, seq, -1, self.shape.head_dim)
                       for p in ("query", "key", "value"))  # fmt: skip
            q, k = rotate(q, *context.rope), rotate(k, *context.rope)
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + Leave.apply(F.linear(y.transpose(1, 2).reshape(batch, seq, -1), w["attention_output"]))
            h = Enter.apply(self.norm(x, w["mlp_norm"]))
            x = x + Leave.apply(F.linear(swiglu(F.linear(h, w["mlp_gate"]), F.linear(h, w["mlp_up"])), w["mlp_down"]))
        x = Enter.apply(self.norm(x, self.norm_weight)).flatten(0, 1)
        return linear_cross_entropy(x, self.head_weight, targets.flatten(), self.vocabulary)


NAMES = (
    "attention_norm", "attention_query", "attention_key", "attention_value", "attention_output", "mlp_norm", "mlp_gate",
    "mlp_up", "mlp_down",
)  # fmt: skip


def step_of(model: Callable[..., Tensor], parameters: list[Tensor], optimizer: Any, groups: list[Any]) -> Any:
    def step(tokens: Tensor, targets: Tensor) -> float:
        loss = model(tokens, targets)
        (loss / targets.numel()).backward()
        clip_gradients(parameters, 1.0, groups)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def rank_main(rank: int, store: str, pairs: int, hidden: int, result: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    shape = ModelShape(
        layers=4, hidden=hidden, heads=8, kv_heads=4, ffn=4 * hidden, vocab_size=4096, max_positions=256
    )  # fmt: skip
    recipe = Recipe(
        layout=Layout(tensor=RANKS, sequence_parallel=False), batch=Batch(sequences=2, micro_sequences=2),
        precision="fp32",
    )  # fmt: skip
    job = Job(model=shape, steps=1, sequence_length=256)
    built = build(job, recipe, World(rank, RANKS, rank, RANKS, torch.device("cpu"), layout=recipe.layout))
    hand = ByHand(built, shape)
    plain = list(hand.parameters())
    adam = {"lr": 1e-3, "fused": True}
    wired = step_of(built.model, list(built.model.parameters()), torch.optim.AdamW(built.model.parameters(), **adam),
                    built.norm_groups)  # fmt: skip
    by_hand = step_of(hand, plain, torch.optim.AdamW(plain, **adam), [dist.group.WORLD])
    generator = torch.Generator().manual_seed(1)
    seconds: dict[str, list[float]] = {"wired": [], "by hand": []}
    for number in range(pairs + 2):
        drawn = torch.randint(0, shape.vocab_size, (2, 257), generator=generator)
        ways = [("wired", wired), ("by hand", by_hand)]
        losses = []
        for name, step in ways if number % 2 else ways[::-1]:
            begin = time.process_time()
            losses.append(step(drawn[:, :-1], drawn[:, 1:]))
            seconds[name].append(time.process_time() - begin)
        if number == 0 and abs(losses[0] - losses[1]) > 1e-5 * abs(losses[0]):
            raise SystemExit(f"the two do not compute the same: {losses}")
    if rank == 0:
        ratios = [a / b for a, b in zip(seconds["wired"][2:], seconds["by hand"][2:], strict=True)]
        result.put({
            "layout": "tensor 2", "hidden": hidden, "layers": shape.layers, "tokens": 512, "pairs": pairs,
            "wired_cpu_seconds": statistics.median(seconds["wired"][2:]),
            "by_hand_cpu_seconds": statistics.median(seconds["by hand"][2:]),
            "overhead_median": statistics.median(ratios) - 1,
            "overhead_quartiles": [q - 1 for q in statistics.quantiles(ratios, n=4)],
        })  # fmt: skip
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12, help="paired steps")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--json", type=Path, help="also write the result here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        result = context.SimpleQueue()
        arguments = (str(Path(folder) / "store"), asked.pairs, asked.hidden, result)
        ranks = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise SystemExit("a rank failed")
        found = result.get()
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
