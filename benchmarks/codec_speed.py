"""How fast codecs encode and decode on one core, beside a copy of the same values.

    python benchmarks/codec_speed.py [--values 4194304] [--repeats 9]

Each figure is the median CPU time over repeats; the codecs take turns, so that a busy machine slows all. Gaussian fp32
values, fused kernels compiled before the clock starts. Wire includes the buffer and its checksum, both ways. Peers are
those of `codec_peers.py` that are importable.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from pathlib import Path

import torch

from codec_peers import peers
from thrifty.compress import Blockwise, Identity, Payload, Zstd, codec_of

RESULTS = Path(__file__).parent / "results" / "codec_speed.json"
CODECS = {
    **{
        name: codec_of(name)
        for name in (
            *("bf16", "bf16 + zstd", "zstd", "int8", "int4", "lloyd3", "means2", "sign", "fp8_e4m3"),
            *("int8 + zstd", "int4 + zstd", "uniform(0.5) + zstd", "e8", "lattice(0.5) + zstd", "kmeans"),
            *("topk(1/64)", "topk(1/64) + means2", "topk(1/64) + means2 + zstd", "threshold(1/64) + means2"),
            "randomk(64)",
        )
    },
    "int8, stochastic": Blockwise(8, rounding="stochastic"),
    "identity": Identity(),
}


def timed(call) -> float:
    """CPU seconds of one call on its one thread: what others take of the core does not count, their caches do."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(values: int, repeats: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Gvalue/s of every codec, of a copy, and of the peers that are there; and the names of those that are not."""
    x = torch.randn(values, generator=torch.Generator().manual_seed(0))
    y = torch.empty_like(x)
    calls = {("memcpy", "encode"): lambda: y.copy_(x), ("memcpy", "decode"): lambda: x.copy_(y)}
    bits = {"memcpy": 32.0}
    y.copy_(x)
    for name, codec in CODECS.items():
        payload = codec.encode(x)
        buffer = payload.to_buffer()
        bits[name] = 8 * payload.nbytes / values
        calls[name, "encode"] = lambda codec=codec: codec.encode(x)
        calls[name, "decode"] = lambda codec=codec, payload=payload: codec.decode(payload, like=x)
        calls[name, "to wire"] = lambda payload=payload: payload.to_buffer()
        calls[name, "from wire"] = lambda buffer=buffer: Payload.from_buffer(buffer)
    others, missing = peers(x)
    for name, (encode, decode, size) in others.items():
        told = encode()
        bits[name] = 8 * size(told) / values
        calls[name, "encode"] = encode
        calls[name, "decode"] = lambda decode=decode, told=told: decode(told)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(repeats + 1):
        for key, call in calls.items():
            taken[key].append(timed(call))
    seconds = {key: statistics.median(times[1:]) for key, times in taken.items()}
    rows = {}
    for name in bits:
        encode, decode = seconds[name, "encode"], seconds[name, "decode"]
        wire = seconds.get((name, "to wire"), 0.0) + seconds.get((name, "from wire"), 0.0)
        rows[name] = {
            "bits_per_value": round(bits[name], 4),
            "encode_gvalues_per_s": round(values / encode / 1e9, 3),
            "decode_gvalues_per_s": round(values / decode / 1e9, 3),
            "both_gvalues_per_s": round(values / (encode + decode) / 1e9, 3),
            "with_wire_gvalues_per_s": round(values / (encode + decode + wire) / 1e9, 3),
        }
    return rows, missing


def entropy_speed(values: int, repeats: int) -> dict[str, float]:
    """GB/s of packed int4 codes through zstandard alone."""
    stage = Zstd()
    codes = Blockwise(4).encode(torch.randn(values, generator=torch.Generator().manual_seed(0))).parts[-1]
    squeezed, _ = stage.forward(codes, codes.shape, 0)
    back = (squeezed, (), codes.numel(), torch.uint8, codes.shape, 0)
    encode = statistics.median(timed(lambda: stage.forward(codes, codes.shape, 0)) for _ in range(repeats))
    decode = statistics.median(timed(lambda: stage.inverse(*back)) for _ in range(repeats))
    return {
        "encode_gb_per_s": round(codes.numel() / encode / 1e9, 3),
        "decode_gb_per_s": round(codes.numel() / decode / 1e9, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1 << 22)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows, missing = measure(asked.values, asked.repeats)
    entropy = entropy_speed(asked.values, asked.repeats)
    print(f"{'Gvalue/s on one core':48}{'bits':>9}{'encode':>9}{'decode':>9}{'both':>9}{'with wire':>11}")
    for name, row in rows.items():
        told = list(row.values())
        print(f"{name:48}{told[0]:9.4f}{told[1]:9.2f}{told[2]:9.2f}{told[3]:9.2f}{told[4]:11.2f}")
    print(f"zstandard alone on packed int4 codes: {entropy}")
    print(f"peers that are not installed here: {', '.join(missing) or 'none'}")
    told = {
        "date": datetime.date.today().isoformat(),
        "values": asked.values,
        "repeats": asked.repeats,
        "torch": torch.__version__,
        "load_average": round(load, 2),
        "peers_missing": missing,
    }
    RESULTS.write_text(json.dumps({**told, "codecs": rows, "zstandard": entropy}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
