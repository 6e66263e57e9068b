"""The null: a careful hand-written training loop of one GPT, without plan, meter or log.

What Thrifty's trainer must at least match in tokens/s. One file, the usual good practice: fused q/k/v, flash attention,
fused AdamW, zero_grad(set_to_none), clipping, autocast for bf16, torch.compile on request, pre-tokenised memory.

    python benchmarks/handwritten.py --shape shakespeare --data FILE --steps 2000
    python benchmarks/handwritten.py --shape 19m --precision bf16 --compile --steps 40
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPES = {
    "shakespeare": {"layers": 4, "heads": 4, "hidden": 128, "block": 64, "batch": 12},
    "19m": {"layers": 6, "heads": 8, "hidden": 512, "block": 256, "batch": 8},
}


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden, bias=False), nn.LayerNorm(hidden, bias=False)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 4 * hidden, bias=False), nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, seq, hidden)
        batch, seq, hidden = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(hidden, dim=2)
        q, k, v = (t.view(batch, seq, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, seq, hidden))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocab: int, layers: int, heads: int, hidden: int, block: int) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocab, hidden), nn.Embedding(block, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, bias=False)
        self.head = nn.Linear(hidden, vocab, bias=False)
        self.head.weight = self.embed.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(
                    p, std=0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                )

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


def load(path: str | None, shape: str) -> tuple[np.ndarray, int]:
    if shape == "shakespeare":
        if path is None or not Path(path).is_file():
            raise SystemExit(f"--data must name the tinyshakespeare text; got {path}")
        text = Path(path).read_text()
        ids = {c: i for i, c in enumerate(sorted(set(text)))}
        return np.array([ids[c] for c in text], dtype=np.int64), len(ids)
    return np.frombuffer(Path(json.__file__).read_bytes() * 400, dtype=np.uint8).astype(np.int64), 272


def run(args: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    shape = dict(SHAPES[args.shape])
    batch, block = shape.pop("batch"), shape["block"]
    ids, vocab = load(args.data, args.shape)
    cut = int(0.9 * len(ids))
    train, val = torch.from_numpy(ids[:cut]), torch.from_numpy(ids[cut:])
    model: nn.Module = GPT(vocab, **shape)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), fused=True)
    step_model = torch.compile(model) if args.compile else model
    amp = torch.autocast("cpu", torch.bfloat16) if args.precision == "bf16" else nullcontext()

    def sample(source: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(source) - block, (batch,))
        return torch.stack([source[i : i + block] for i in starts]), torch.stack(
            [source[i + 1 : i + 1 + block] for i in starts]
        )

    durations = []
    for step in range(args.steps):
        begin = time.perf_counter()
        ratio = (step - 100) / max(1, args.steps - 100)
        lr = args.lr * (step + 1) / 100 if step < 100 else args.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * ratio)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = sample(train)
        with amp:
            loss = step_model(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        durations.append(time.perf_counter() - begin)
    with torch.no_grad(), amp:
        final = (
            float(np.mean([float(model(*sample(val))) for _ in range(args.eval_batches)]))
            if args.eval_batches
            else math.nan
        )
    counted = durations[len(durations) // 5 :]  # the first fifth warms up, and compiles
    whole = math.nan
    if args.eval_batches:  # every window of the validation text, each target once: what the trainer evaluates too
        rows = [i * block for i in range((len(val) - 1) // block)]
        with torch.no_grad(), amp:
            parts = [
                (len(some), model(*(torch.stack([val[i + d : i + d + block] for i in some]) for d in (0, 1))))
                for some in (rows[k : k + batch] for k in range(0, len(rows), batch))
            ]
        whole = sum(n * float(loss) for n, loss in parts) / len(rows)
    median, mean = float(np.median(counted)), float(np.mean(counted))
    return {
        "tokens_per_second": batch * block / mean,
        "step_seconds": median,
        "val_loss": final,
        "val_loss_whole": whole,
        "train_loss": float(loss.detach()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="shakespeare")
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eval-batches", type=int, default=0)
    print(json.dumps(run(parser.parse_args())))
