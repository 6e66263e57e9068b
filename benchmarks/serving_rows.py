"""Public serving measurements as cases: a shape, a cluster, a deployment, its traffic, and what was measured.

Reads `g1_inference_throughput.csv` and `g2_mlenergy_inference_energy.csv`. What a row does not say and all rows of its
source share stands here, with where it is from. A row that lacks an input is named with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thrifty.catalog import lookup
from thrifty.cost.serving_step import Deployment
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Experts, ModelShape
from thrifty.spec.load import build
from truth import Skipped, cluster_of, rows_of

G1, G2 = "g1_inference_throughput", "g2_mlenergy_inference_energy"


@dataclass(frozen=True)
class Case:
    """One measured deployment.

    Attributes:
        family: of the model, by which cases are held out together; `hardware` likewise.
        engine: key of `serving_fit.ENGINES`.
        phase: `steady` (continuous batching), `prefill` or `decode` alone.
        input_tokens: none where the table lacks it; `serving_fit.CHAT_PROMPT_TOKENS` stands in.
        batch: sequences at a time; none = as many as fit.
        any_split: the source says only how many devices there were: the best split is taken.
        measured: `tokens_per_second`, `seconds`, `itl_seconds`, `watts`, `joules_per_token`.
    """

    table: str
    id: str
    family: str
    hardware: str
    shape: ModelShape
    cluster: Cluster
    deployment: Deployment
    engine: str
    phase: str
    input_tokens: float | None
    output_tokens: float
    batch: float | None
    any_split: bool
    measured: dict[str, float]


@dataclass(frozen=True)
class Row:
    """A measured or published figure beside its prediction.

    Attributes:
        low: `low` to `high` is meant to hold four fifths of such figures.
        null: what a trivial model says, fitted to the rows that it is scored on; none where there is no such model.
    """

    id: str
    group: str
    quantity: str
    measured: float
    predicted: float
    low: float
    high: float
    null: float | None = None


def cases(folder: Path) -> Iterator[Case | Skipped]:
    """Every row of both tables, in order."""
    for table, read in ((G1, _throughput), (G2, _energy)):
        if not (folder / f"{table}.csv").is_file():
            yield Skipped(table, "all rows", "the table is not in the folder")
            continue
        for row in rows_of(folder / f"{table}.csv"):
            yield _case(table, row, read)


def _case(table: str, row: dict[str, str], read: Callable[[dict[str, str]], Case]) -> Case | Skipped:
    try:
        return read(row)
    except ThriftyError as error:
        return Skipped(table, row["id"], error.what)
    except ValueError as error:
        return Skipped(table, row["id"], str(error))


# ---- g1


_FORMATS = {"fp4": "nvfp4", "bfloat16": "bf16", "float16": "fp16"}
_LENGTHS = re.compile(r"(\d+) in / (\d+) out")


def _throughput(row: dict[str, str]) -> Case:
    what, weights = row["what"], _FORMATS.get(row["weight_dtype"], row["weight_dtype"])
    devices = int(_number(row, "n_gpu"))
    latency = float(row["latency_ms"]) / 1e3 if row["latency_ms"] else None
    measured = {"seconds": latency} if latency else {"tokens_per_second": _number(row, "tokens_per_s")}
    lengths = _LENGTHS.search(what)
    given = [float(row[key]) if row[key] else None for key in ("isl", "osl")]
    incoming, outgoing = map(float, lengths.groups()) if lengths else given
    if incoming is None or outgoing is None:
        raise ValueError("the row has no lengths of prompt and output")
    batch = float(row["batch"]) if row["batch"] else None
    prompts = re.search(r"(\d+) prompts", what)
    if batch is None and prompts:
        batch = float(prompts[1])
    phase = "steady"
    if "first-token" in what or row["id"].endswith("prefill"):
        phase = "prefill"
    elif row["id"].endswith("decode"):
        phase = "decode"
    mlperf = what.startswith("MLPerf")
    # NVIDIA's FP8 and NVFP4 checkpoints (ModelOpt) keep an FP8 cache.
    kv = "fp8" if weights in ("fp8", "nvfp4") else "bf16"
    return Case(
        table=G1, id=row["id"], family=_family(row["model"]), hardware=row["gpu"], shape=shape_of(row["model"]),
        cluster=cluster_of(f"{devices}x{row['gpu']}"),
        # The TPU rows share out the cache of PaLM's single head by sequence; the GPU engines copy it.
        deployment=Deployment(tensor=devices, weights=weights, kv=kv, cache_by_sequence=row["gpu"].startswith("TPU")),
        engine="vllm" if "vLLM" in what else "tensorrt-llm", phase=phase, input_tokens=incoming,
        output_tokens=outgoing, batch=batch, any_split=mlperf, measured=measured,
    )  # fmt: skip


# ---- g2


def _energy(row: dict[str, str]) -> Case:
    devices, data = int(_number(row, "num_gpus")), int(_number(row, "dp"))
    shape = shape_of(row["model"])
    weights = _FORMATS.get(row["precision"], row["precision"])
    routed = shape.experts is not None and data > 1
    # Meta's FP8 checkpoints and gpt-oss keep the attention's projections in bf16.
    kept = row["model"].startswith("Llama") and row["model"].endswith("-FP8")
    deployment = Deployment(
        tensor=devices // data,
        data=data if routed else 1,
        replicas=1 if routed else data,
        weights=weights,
        attention_weights="bf16" if kept or "gpt-oss" in row["model"] else "",
    )
    measured = {
        "tokens_per_second": _number(row, "output_tokens_per_s"),
        "itl_seconds": _number(row, "median_itl_ms") / 1e3,
        "watts": _number(row, "avg_power_W_total"),
        "joules_per_token": _number(row, "J_per_output_token"),
    }
    return Case(
        table=G2, id=row["id"], family=_family(row["model"]), hardware=row["gpu"], shape=shape,
        cluster=cluster_of(f"{devices}x{row['gpu']}"), deployment=deployment, engine="vllm", phase="steady",
        input_tokens=None, output_tokens=_number(row, "avg_output_len"), batch=_number(row, "avg_batch"),
        any_split=False, measured=measured,
    )  # fmt: skip


def _number(row: dict[str, str], key: str) -> float:
    if not row.get(key):
        raise ValueError(f"the row has no {key}")
    return float(row[key])


# ---- models


def _family(name: str) -> str:
    """The model's size, whatever its release: what is held out together."""
    plain = _plain(name)
    return _SAME_SIZE.get(plain, plain)


def _plain(name: str) -> str:
    plain = name.lower().rpartition("/")[2]
    return re.sub(r"-(instruct|it|chat|hf|fp8|fp4|nvfp4|2507|turbo|v0\.1|16e|128e)(?=-|$)", "", plain)


_SAME_SIZE = {
    "llama-3.3-70b": "llama-3.1-70b", "llama-70b": "llama-3.1-70b", "llama-4-scout-17b": "llama-4-scout",
    "deepseek-r1": "deepseek-v3", "gpt-j": "gpt-j-6b",
}  # fmt: skip


@cache
def shape_of(name: str) -> ModelShape:
    """A model of the catalog, or one of those below.

    Raises:
        ThriftyError: neither has it.
    """
    plain = _family(name)
    if plain in _SHAPES:
        sizes = dict(_SHAPES[plain])
        sizes.setdefault("head_dim", sizes["hidden"] // sizes["heads"])
        sizes.setdefault("kv_heads", sizes["heads"])
        return ModelShape(name=plain, max_positions=131072, **sizes)
    return build(ModelShape, lookup.model(plain), "")


_PALM = {"head_dim": 256, "kv_heads": 1, "vocab_size": 256000, "tied_embeddings": True}
_GEMMA3 = {"vocab_size": 262208, "tied_embeddings": True, "qk_norm": True}
# From the models' config.json on huggingface.co, or for PaLM table 1 of Chowdhery et al. 2022 (arXiv:2204.02311).
_SHAPES: dict[str, dict] = {  # type: ignore[type-arg]
    "qwen3-coder-480b-a35b": {
        "layers": 62, "hidden": 6144, "heads": 96, "kv_heads": 8, "head_dim": 128, "ffn": 8192, "vocab_size": 151936,
        "experts": Experts(count=160, active=8, ffn=2560),
    },
    # Every other layer is dense; which ones does not matter here.
    "llama-4-maverick-17b": {
        "layers": 48, "hidden": 5120, "heads": 40, "kv_heads": 8, "ffn": 16384, "vocab_size": 202048,
        "experts": Experts(count=128, active=1, ffn=8192, shared=1, dense_layers=24),
    },
    "gemma-3-4b": _GEMMA3 | {"layers": 34, "hidden": 2560, "heads": 8, "kv_heads": 4, "head_dim": 256, "ffn": 10240},
    "gemma-3-12b": _GEMMA3 | {"layers": 48, "hidden": 3840, "heads": 16, "kv_heads": 8, "head_dim": 256, "ffn": 15360},
    "gemma-3-27b": _GEMMA3 | {"layers": 62, "hidden": 5376, "heads": 32, "kv_heads": 16, "head_dim": 128, "ffn": 21504},
    "gpt-j-6b": {"layers": 28, "hidden": 4096, "heads": 16, "ffn": 16384, "vocab_size": 50400, "mlp": "gelu"},
    "falcon-180b": {
        "layers": 80, "hidden": 14848, "heads": 232, "kv_heads": 8, "head_dim": 64, "ffn": 59392, "vocab_size": 65024,
        "mlp": "gelu",
    },
    "palm-8b": _PALM | {"layers": 32, "hidden": 4096, "heads": 16, "ffn": 16384},
    "palm-62b": _PALM | {"layers": 64, "hidden": 8192, "heads": 32, "ffn": 32768},
    # Its 48 heads were padded to 64 to be shared among chips (Pope et al. 2022, arXiv:2211.05102).
    "palm-540b": _PALM | {"layers": 118, "hidden": 18432, "heads": 64, "ffn": 73728},
}  # fmt: skip
