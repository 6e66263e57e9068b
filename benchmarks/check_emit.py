"""Reads what `thrifty emit` writes with the tools' own parsers, and prints what was checked and with which versions.

    python benchmarks/check_emit.py [--venv DIR] [--megatron-lm CHECKOUT] [--json FILE]

Makes a virtual environment (kept in --venv, else thrown away), installs each tool into it from the package index, and
lets the tool itself read every plan of tests/planner/emit_plans.py that it can express:

    torchtitan   its ConfigManager loads the module; the model is built on the meta device and its parameters counted
    megatron     megatron-core builds its TransformerConfig or MLATransformerConfig, DistributedDataParallelConfig and
                 OptimizerConfig from the options; with --megatron-lm also pretrain_gpt.py's own argument parser
    deepspeed    DeepSpeedConfig, and transformers' comparison of the file with the Trainer's options
    accelerate   load_config_from_file and `accelerate launch`'s own arguments
    skypilot     Task.from_yaml
    kubeflow     the API's generated models
    torchrun     torch.distributed.run's argument parser

A tool that does not install, or does not read a file, is named in the output and makes the script fail.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READERS = ROOT / "benchmarks" / "read_emitted.py"
# Target -> (what to install, the package whose version is reported).
PACKAGES = {
    "torchrun": (["numpy", "torch"], "torch"),
    "kubeflow": (["kubeflow-trainer-api", "pyyaml"], "kubeflow-trainer-api"),
    "accelerate": (["accelerate", "torch"], "accelerate"),
    "deepspeed": (["deepspeed", "transformers", "accelerate", "torch"], "deepspeed"),
    "torchtitan": (["torchtitan==0.3.0", "torchao", "triton", "torch"], "torchtitan"),
    "megatron": (["megatron-core", "numpy", "torch"], "megatron-core"),
    "skypilot": (["skypilot"], "skypilot"),  # last: it holds back packages that the others want newer
}


def write_plans(folder: Path) -> dict[str, list[str]]:
    """Writes every plan that a target can express below `folder/target/`; returns the plans' names by target."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "planner")]
    from emit_argv import argv, write
    from emit_plans import plans

    from thrifty.cost.params import total_parameters
    from thrifty.planner.emit.targets import emit
    from thrifty.spec import ThriftyError

    written: dict[str, list[str]] = {target: [] for target in PACKAGES}
    for name, plan in plans().items():
        for target in PACKAGES:
            try:
                files = emit(plan, target)
            except ThriftyError:
                continue
            if target == "torchrun" and plan.recipe.software == "accelerate":
                continue
            place = write(files, folder / target / name.replace(" ", "-"))
            recipe, layout = plan.recipe, plan.recipe.layout
            expected = {
                "world": layout.ranks, "nodes": max(1, layout.ranks // plan.cluster.per_node),
                "per_node": plan.cluster.per_node, "sequences": recipe.batch.sequences, "lr": recipe.optimizer.lr,
                "sequence_length": plan.job.sequence_length, "steps": plan.total_steps,
                "accumulation": recipe.accumulation, "parameters": total_parameters(plan.job.model),
                "data_ranks": layout.data_ranks, "layout": layout.model_dump(), "precision": recipe.precision,
                "heads": plan.job.model.heads, "scheduler": recipe.schedule.name,
            }  # fmt: skip
            (place / "expected.json").write_text(json.dumps(expected))
            if any(file.endswith(".sh") for file in files):
                (place / "argv.json").write_text(json.dumps(argv(files, place, sys.executable)))
            written[target].append(name)
    return written


def install(python: Path, packages: list[str]) -> str:
    """Installs packages; returns what went wrong, or nothing."""
    constraints = ["-c", str(ROOT / "constraints.txt")]
    command = [str(python), "-m", "pip", "install", "-q", *constraints, *packages]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DS_BUILD_OPS": "0"}, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def read(python: Path, target: str, folder: Path, package: str, megatron_lm: Path | None) -> dict[str, object]:
    command = [str(python), str(READERS), target, str(folder / target), package]
    command += [str(megatron_lm)] if megatron_lm and target == "megatron" else []
    quiet = os.environ | {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"error": (done.stderr or done.stdout).strip()[-2000:]}
    found: dict[str, object] = json.loads(lines[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="keep the environment here, and use what is installed in it")
    parser.add_argument("--megatron-lm", type=Path, help="a checkout of NVIDIA/Megatron-LM, for its argument parser")
    parser.add_argument("--only", choices=PACKAGES, action="append", help="check these targets only")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "plans"
        written = write_plans(folder)
        environment = options.venv or Path(scratch) / "venv"
        if not environment.exists():
            venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        for target in options.only or PACKAGES:
            packages, package = PACKAGES[target]
            why_not = install(python, packages)
            found = (
                {"error": f"not installed: {why_not}"}
                if why_not
                else read(python, target, folder, package, options.megatron_lm)
            )
            results[target] = found | {"written": len(written[target])}
            say(target, results[target])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any("error" in result or result.get("failed") for result in results.values()))


def say(target: str, result: dict[str, object]) -> None:
    if "error" in result:
        print(f"{target}: NOT CHECKED: {result['error']}")
        return
    print(f"{target}: {result['read']} of {result['written']} plans read by {result['by']} {result['version']}")
    for name, why in dict(result["failed"]).items():  # type: ignore[call-overload]
        print(f"  failed: {name}: {why}")


if __name__ == "__main__":
    sys.exit(main())
