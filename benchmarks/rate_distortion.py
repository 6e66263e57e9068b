"""What codecs lose at their rate, in dB above the least that a code could lose.

    python benchmarks/rate_distortion.py [--values 4194304]

Data and bounds, R in bits a value, of the payload with header, scales, indices and codebooks:

- gaussian: no code has less mean squared error than 2^(-2R) of the variance (Shannon 1959).
- laplace: Shannon's lower bound for it, 0.104 bit, that is 0.63 dB, below the Gaussian's.
- gradient: of a model with a million parameters on the source text of Python's standard library, all parameters in one
  tensor, at three steps of its training. The bound of a Gaussian of their variance is no bound for them, but what the
  worst source of that variance could do: they may lie below it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from thrifty.catalog import lookup
from thrifty.compress import Codec, codec_of
from thrifty.model.transformer import Transformer
from thrifty.spec.job import ModelShape

RESULTS = Path(__file__).parent / "results" / "rate_distortion.json"
CODECS = (
    *("bf16", "bf16 + zstd", "int8", "int8 + zstd", "fp8_e4m3", "int4", "int4 + zstd", "lloyd3", "lloyd2", "means2"),
    *("sign", "e8", "kmeans", "kmeans(256, 8)"),
    *(f"uniform({step}) + zstd" for step in (1.1, 1.0, 0.75, 0.5, 0.35, 0.26)),
    *(f"lattice({step}) + zstd" for step in (1.1, 1.0, 0.75, 0.5, 0.35, 0.26)),
    *("topk(1/64) + bf16", "topk(1/64) + means2", "topk(1/64) + lloyd2", "topk(1/16) + means2"),
    *("threshold(1/64) + means2", "threshold(1/16) + means2"),
)
LAPLACE_DB = 10 * math.log10(math.pi / math.e)  # between Shannon's bound and the Gaussian's
STEPS = (1, 50, 150)
BATCH, LENGTH = 8, 64


def laplace(values: int, generator: torch.Generator) -> Tensor:
    """Values of unit scale by the inverse of the distribution function."""
    even = torch.rand(values, generator=generator, dtype=torch.float64) - 0.5
    return (-even.sign() * torch.log1p(-2 * even.abs() + 1e-12)).float()


def gradients(steps: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients of a tiny model, flat, at these steps of its training."""
    shape = ModelShape(**{**lookup.model("tiny-1m").tree, "vocab_size": 256})
    model = Transformer(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    folder = Path(sysconfig.get_path("stdlib"))
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))[:60])
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(0)
    found = {}
    for step in range(1, max(steps) + 1):
        starts = torch.randint(0, len(tokens) - LENGTH - 1, (BATCH,), generator=generator)
        rows = torch.stack([tokens[start : start + LENGTH + 1] for start in starts.tolist()])
        loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) / (BATCH * LENGTH)
        optimizer.zero_grad()
        loss.backward()
        if step in steps:
            print(f"step {step}: loss {loss.item():.2f}")
            found[f"gradient, step {step}"] = torch.cat([p.grad.reshape(-1).clone() for p in model.parameters()])
        optimizer.step()
    return found


def measured(codec: Codec, x: Tensor) -> tuple[float, float]:
    """Bits a value, and the squared error as a share of the energy."""
    payload = codec.encode(x)
    error = float((codec.decode(payload, like=x) - x).double().square().sum() / x.double().square().sum())
    return 8 * payload.nbytes / x.numel(), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1 << 22)
    values = parser.parse_args().values
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    sources = {"gaussian": torch.randn(values, generator=generator), "laplace": laplace(values, generator)}
    sources |= gradients(STEPS)
    rows = []
    print(f"{'codec':26}{'data':20}{'bits':>9}{'error':>11}{'dB above':>10}")
    for data, x in sources.items():
        for name in CODECS:
            bits, error = measured(codec_of(name), x)
            gap = 10 * math.log10(error) + 20 * bits * math.log10(2) + (LAPLACE_DB if data == "laplace" else 0.0)
            print(f"{name:26}{data:20}{bits:9.4f}{error:11.3e}{gap:10.2f}")
            row = {"codec": name, "data": data, "bits_per_value": round(bits, 4)}
            rows.append({**row, "relative_error": float(f"{error:.4g}"), "db_above_bound": round(gap, 3)})
    told = {"values": values, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    RESULTS.write_text(json.dumps({**told, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
