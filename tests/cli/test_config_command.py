"""`thrifty config`: every resolved key with its value and origin, and the schema."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from thrifty.cli.config import app
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.load import fields


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def lines(output: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in output.splitlines())


def test_every_key_of_the_job_is_shown():
    shown = lines(run("show", "llama-3.1-8b", "--on", "64xh100"))
    others = lines(run("show", "deepseek-v3", "--on", "64xh100"))  # experts and latent attention
    assert {f"job.{name}" for name in fields(Job)} - {*shown, *others} == set()
    assert shown["job.model.layers"] == "32"
    assert shown["cluster.accelerator.peak_flops.bf16"] == "989 TFLOP/s"
    assert shown["recipe.precision"] == "(left to the plan)"


def test_origins_are_shown(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("job:\n  model: gpt2\n  steps: 5\n  sequence_length: 64\nrecipe:\n  precision: fp32\n")
    shown = lines(
        run("show", str(path), "--on", "8xa100", "--origin", "--set", "job.seed=1", "--set", "cluster.grid=france")
    )
    origin = {key: value.partition("# ")[2].strip() for key, value in shown.items()}
    assert origin["job.steps"] == f"{path}:3"
    assert origin["recipe.precision"] == f"{path}:6"
    assert origin["job.seed"] == "--set job.seed"
    assert origin["job.model.hidden"] == "catalog models.yaml"
    assert origin["job.data.path"] == "default"
    assert origin["recipe.compile"] == "plan"
    assert origin["cluster.nodes"] == "--on 8xa100"
    assert origin["cluster.price"].startswith("catalog prices.yaml; published, 2026")
    assert origin["cluster.grid"].startswith("--set cluster.grid (catalog grids.yaml); published, 2023: France")


def test_json():
    content = json.loads(run("show", "tiny-1m", "--on", "h100", "--json", "--set", "recipe.compile=true"))
    assert content["job.model.layers"] == {"value": 5, "origin": "catalog models.yaml"}
    assert content["recipe.compile"] == {"value": True, "origin": "--set recipe.compile"}
    assert content["recipe.precision"] == {"value": None, "origin": "plan"}
    assert content["cluster.accelerator.tdp_watts"]["value"]["unit"] == "W"


def test_a_cluster_alone():
    shown = lines(run("show", "--on", "2xl40s", "--set", "cluster.price=1usd/h"))
    assert all(key.startswith("cluster.") for key in shown)
    assert shown["cluster.price"] == "$1.00/h"


def test_a_mistake_is_an_error_of_ours():
    with pytest.raises(ThriftyError, match="in the catalog"):
        run("show", "tiny-1m", "--on", "8xh10")


def test_the_schema_allows_what_files_write():
    schema = json.loads(run("schema"))
    assert set(schema) == {"job", "recipe", "cluster"}
    assert {"type": "string"} in schema["job"]["properties"]["model"]["anyOf"]
    price = schema["cluster"]["properties"]["price"]["anyOf"]
    assert {"type": ["string", "number"]} in price
    assert "string" in schema["recipe"]["$defs"]["Batch"]["properties"]["sequences"]["type"]


def test_no_torch_is_imported_for_a_catalog_cluster():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from thrifty.cli.config import app; app(['show', 'gpt2', '--on', '64xh100'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cluster.price = " in done.stdout
