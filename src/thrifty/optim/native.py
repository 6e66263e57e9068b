"""Optimizer steps in plain C: built once by the C compiler at hand, kept in the user's cache, called on addresses.

native.c knows neither torch nor Python, so it builds in half a second, and one file serves all rules, formats and
dtypes: a chunk of 256 values is decoded, stepped and encoded while it lies in the first cache, where `torch.compile`
made two kernels of a step and decoded moments in both. Arithmetic is that of IEEE 754, operation by
operation: nothing is contracted or reordered, which costs no time because memory is what two threads wait for, and no
result depends on processor, compiler or the number of threads. Threads come from the OpenMP that
torch has loaded (libgomp by its name), so there is one pool, not two that fight for the cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from thrifty.optim.rules import Rule
from thrifty.spec.formats import BlockFormat

SOURCE = Path(__file__).with_name("native.c")
CHUNK = 256  # values, as in native.c
THREAD_VALUES = 1 << 15  # a thread is woken for at least so many: less take no longer than to wake it
RULES = {"AdamW": 0, "Adam": 1, "Lion": 2, "Momentum": 3, "Step": 4}
FLOATS = {torch.float32: 0, torch.bfloat16: 1}
CODES = {"int8": 2, "root8": 3, "root4": 4, "square4": 5}
# Compilers without OpenMP or -march (Apple's) take what is left; none may assume that nothing is nan.
EXACT = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
FLAGS = (
    (*EXACT, "-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    (*EXACT, "-march=native", "-fopenmp"),
    (*EXACT, "-mcpu=native"),
    EXACT,
)

# A tensor's values, its gradient's, and what is kept of each moment: floats, or codes and scales.
Work = tuple[Tensor, Tensor, Sequence[Tensor]]
Formats = tuple[BlockFormat, ...]


class _Job(ctypes.Structure):
    _fields_ = (
        ("rule", ctypes.c_int32), ("states", ctypes.c_int32), ("p_kind", ctypes.c_int32), ("g_kind", ctypes.c_int32),
        ("kinds", ctypes.c_int32 * 2), ("block", ctypes.c_int32), ("threads", ctypes.c_int32),
        ("u", ctypes.c_void_p), ("h", ctypes.c_void_p),
    )  # fmt: skip


def takes(p: Tensor, g: Tensor) -> bool:
    """Whether `step` is for these: on a CPU, of floats of 32 or 16 bits, and a C compiler is found."""
    return p.device.type == "cpu" and p.dtype in FLOATS and g.dtype in FLOATS and library() is not None


def step(rule: Rule, works: Sequence[Work], forms: Formats | None, u: Tensor, h: Tensor) -> None:
    """One step of tensors of one dtype, in place, all in one call.

    Args:
        works: contiguous tensors; moments are codes and scales in the order of `rule.moments`, or without formats
            floats of one dtype.
        u: (moments + 1, block) in [0, 1): what codes and bfloat16 are rounded by; the last for the parameter.
        h: the scalars of the step.
    """
    works = [work for work in works if work[0].numel()]
    if not works:
        return
    p, g, kept = works[0]
    states = len(rule.moments)
    block = forms[0].block if forms else CHUNK
    draws = u.repeat(1, CHUNK // block).contiguous()  # (moments + 1, CHUNK)
    h = h.to(torch.float32).contiguous()
    kinds = [CODES[form.name] for form in forms] if forms else [FLOATS[moment.dtype] for moment in kept]
    words: list[int] = []
    for value, gradient, moments in works:
        addresses = [moment.data_ptr() for moment in moments]
        codes, scales = (addresses[::2], addresses[1::2]) if forms else (addresses, [0] * states)
        idle = [0] * (2 - states)
        words += [value.numel(), value.data_ptr(), gradient.data_ptr(), *codes, *idle, *scales, *idle]
    most = max(1, sum(value.numel() for value, _, _ in works) // THREAD_VALUES)
    job = _Job(
        RULES[rule.name], states, FLOATS[p.dtype], FLOATS[g.dtype], (ctypes.c_int32 * 2)(*kinds), block,
        min(torch.get_num_threads(), most), draws.data_ptr(), h.data_ptr(),
    )  # fmt: skip
    library().thrifty_step(ctypes.byref(job), (ctypes.c_int64 * len(words))(*words), len(works))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled steps, built where they are not in the cache. None, and said once, where no compiler makes them."""
    found = (shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"))
    compiler = next(filter(None, found), None)
    why = "no C compiler was found"
    if compiler is not None:
        for flags in FLAGS:
            built, why = _built(compiler, flags)
            if built is not None:
                return built
    warnings.warn(f"optimizers step several times slower: {why}", stacklevel=2)
    return None


def _built(compiler: str, flags: tuple[str, ...]) -> tuple[ctypes.CDLL | None, str]:
    """The library by one choice of flags, or why not."""
    source = SOURCE.read_bytes()
    made_by = (compiler, str(os.stat(compiler).st_mtime_ns), *flags, _processor())
    name = hashlib.sha256(source + "\0".join(made_by).encode()).hexdigest()[:24]
    try:
        folder = cache_folder()
        path = folder / f"{name}.so"
        if not path.exists():
            handle, beside = tempfile.mkstemp(suffix=".so", dir=folder)
            os.close(handle)
            call = [compiler, *flags, "-o", beside, str(SOURCE), "-lm"]
            told = subprocess.run(call, capture_output=True, text=True, check=False)
            if told.returncode:
                os.unlink(beside)
                return None, f"{compiler} failed: {told.stderr.strip()[:300]}"
            os.replace(beside, path)  # at once: another process sees all of it or nothing
        built = ctypes.CDLL(str(path))
    except OSError as error:
        return None, str(error)
    built.thrifty_step.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    built.thrifty_step.restype = None
    return built, ""


def cache_folder() -> Path:
    """thrifty/native under $XDG_CACHE_HOME, or ~/.cache; a folder of this process alone where that is read-only."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thrifty" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="thrifty-native-"))
    return folder


def _processor() -> str:
    """What -march=native depends on: caches may be on a disk that unlike machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "".join(sorted({line for line in lines if line.startswith(wanted)}))
