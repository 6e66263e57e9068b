"""Published codecs of floats, for the table of `codec_speed.py`: those that are importable, by name and version.

None is a dependency of the project. To have them: `pip install --target DIR lz4 blosc2 pcodec zfpy zipnn`, and DIR at
the end of PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Calls = tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], int]]  # encode, decode, bytes


def peers(x: Tensor) -> tuple[dict[str, Calls], list[str]]:
    """Calls of every peer on the values, on one thread each; and the packages that are not there."""
    found: dict[str, Calls] = {}
    missing = []
    for package, (module, make) in _MAKERS.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            missing.append(package)
            continue
        version = importlib.metadata.version(package)
        for name, calls in make(loaded, x).items():
            found[f"{package} {version}: {name}"] = calls
    return found, missing


def _lz4(lz4: Any, x: Tensor) -> dict[str, Calls]:
    data = x.numpy().tobytes()
    return {"fp32, lossless": (lambda: lz4.compress(data), lz4.decompress, len)}


def _blosc2(blosc2: Any, x: Tensor) -> dict[str, Calls]:
    blosc2.set_nthreads(1)
    data = x.numpy().tobytes()
    options = {"typesize": 4, "clevel": 1, "filter": blosc2.Filter.SHUFFLE, "codec": blosc2.Codec.ZSTD}
    return {"shuffle + zstd 1, fp32, lossless": (lambda: blosc2.compress(data, **options), blosc2.decompress, len)}


def _pcodec(pcodec: Any, x: Tensor) -> dict[str, Calls]:
    config = pcodec.ChunkConfig(compression_level=4)
    array = x.numpy()
    simple = pcodec.standalone
    return {"level 4, fp32, lossless": (lambda: simple.simple_compress(array, config), simple.simple_decompress, len)}


def _zfpy(zfpy: Any, x: Tensor) -> dict[str, Calls]:
    array = x.numpy()
    return {
        f"{rate} bits a value": (lambda rate=rate: zfpy.compress_numpy(array, rate=rate), zfpy.decompress_numpy, len)
        for rate in (4, 8)
    }


def _zipnn(zipnn: Any, x: Tensor) -> dict[str, Calls]:
    codec = zipnn.ZipNN(input_format="torch", threads=1)
    short = x.to(torch.bfloat16)
    return {"bf16, lossless": (lambda: codec.compress(short.clone()), lambda told: codec.decompress(told), len)}


_MAKERS: dict[str, tuple[str, Callable[[Any, Tensor], dict[str, Calls]]]] = {
    "lz4": ("lz4.block", _lz4),
    "blosc2": ("blosc2", _blosc2),
    "pcodec": ("pcodec", _pcodec),
    "zfpy": ("zfpy", _zfpy),
    "zipnn": ("zipnn", _zipnn),
}
