"""What the scripts of `planner/emit` run: bash executes them, with launchers that only write down their words."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

STUB = '#!/bin/sh\nexec "$ARGV_PYTHON" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"\n'
GIVEN = {
    "NODE_RANK": "0",
    "MASTER_ADDR": "node0",
    "MEGATRON": "/megatron",
    "DATA": "/data.txt",
    "TOKENIZER": "/tokenizer",
}


def write(files: Mapping[str, str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def argv(files: Mapping[str, str], folder: Path, python: str, **environment: str) -> list[str]:
    """The words that the script among the files gives to torchrun or `accelerate`."""
    write(files, folder)
    script = next(name for name in files if name.endswith(".sh"))
    stubs = folder / "bin"
    stubs.mkdir(exist_ok=True)
    for launcher in ("torchrun", "accelerate"):
        (stubs / launcher).write_text(STUB)
        (stubs / launcher).chmod(0o755)
    path = f"{stubs}{os.pathsep}{os.environ['PATH']}"
    given = os.environ | GIVEN | {"PATH": path, "ARGV_PYTHON": python} | environment
    done = subprocess.run(
        ["bash", str(folder / script)], capture_output=True, text=True, env=given, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    words: list[str] = json.loads(done.stdout)
    return words


def options(words: list[str]) -> dict[str, str]:
    """`--key value` and `--key` of a list of words, without dashes; the last of a key counts."""
    found: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word[2:]] = "" if after.startswith("--") else after
    return found
