"""torchrun, SLURM, SkyPilot and Kubeflow: what is written starts every rank of the plan, and nothing else does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from emit_argv import argv, write
from emit_plans import changed, plan, plans

from thrifty.planner.emit import read_plan, slurm
from thrifty.planner.emit.targets import emit
from thrifty.spec import ThriftyError
from thrifty.spec.figure import modelled
from thrifty.spec.plan import Plan

NAMES = sorted(plans())
# Long options of sbatch that the scripts may use (slurm.schedmd.com/sbatch.html, 25.05).
SBATCH = {
    "job-name": r"[a-z0-9-]+", "nodes": r"\d+", "ntasks-per-node": r"\d+", "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+", "exclusive": "", "time": r"\d+-\d\d:\d\d:00", "signal": r"TERM@\d+", "requeue": "",
    "output": r"\S+",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_torchrun_starts_every_rank(name: str, tmp_path: Path) -> None:
    one = plans()[name]
    words = argv(emit(one, "torchrun"), tmp_path, sys.executable)
    if one.recipe.software == "accelerate":
        assert words[0] == "launch"
        return
    run = pytest.importorskip("torch.distributed.run")
    parsed = run.get_args_parser().parse_args(words)
    assert int(parsed.nnodes) * int(parsed.nproc_per_node) == one.recipe.layout.ranks
    assert parsed.standalone == (int(parsed.nnodes) == 1)
    assert parsed.module == (one.recipe.software in ("thrifty", "torchtitan"))
    program = {"thrifty": "thrifty", "torchtitan": "torchtitan.train", "megatron": "pretrain_gpt.py"}
    assert parsed.training_script.endswith(program.get(one.recipe.software, "run_clm.py"))


def test_a_script_for_several_nodes_says_what_it_lacks(tmp_path: Path) -> None:
    files = write(emit(plans()["8b fsdp"], "torchrun"), tmp_path)
    done = subprocess.run(["bash", str(files / "torchrun-thrifty.sh")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "NODE_RANK: of this node, from 0" in done.stderr


def test_thrifty_runs_the_same_plan_and_continues(tmp_path: Path) -> None:
    one = plans()["8b fsdp"]
    words = argv(emit(one, "torchrun"), tmp_path, sys.executable, RUN_DIR=str(tmp_path / "run"))
    assert "--resume" not in words
    assert read_plan(Path(words[words.index("train") + 1])) == one
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    again = argv(emit(one, "torchrun"), tmp_path, sys.executable, RUN_DIR=str(tmp_path / "run"))
    assert again == [*words, "--resume"]


def test_cpu_ranks_share_the_cores(tmp_path: Path) -> None:
    assert "export OMP_NUM_THREADS=1 " in emit(plans()["cpu"], "torchrun")["torchrun-thrifty.sh"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["slurm", "torchrun"])
def test_scripts_are_bash(name: str, target: str, tmp_path: Path) -> None:
    files = emit(plans()[name], target)
    write(files, tmp_path)
    for script in files:
        if script.endswith((".sh", ".slurm")):
            done = subprocess.run(["bash", "-n", str(tmp_path / script)], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")


def directives(script: str) -> dict[str, str]:
    """The options that sbatch reads: those before the first command."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[key] = value
        elif not line.startswith("#"):
            break
    return found


@pytest.mark.parametrize("name", NAMES)
def test_slurm_asks_for_the_plan_s_devices(name: str) -> None:
    one = plans()[name]
    files = emit(one, "slurm")
    asked = directives(files["job.slurm"])
    for key, value in asked.items():
        assert re.fullmatch(SBATCH[key], value), (key, value)
    nodes, on_each = int(asked["nodes"]), int(asked.get("gpus-per-node", asked.get("cpus-per-task", 0)))
    assert nodes * on_each == one.recipe.layout.ranks
    assert asked["ntasks-per-node"] == "1"
    assert next(file for file in files if file.endswith(".sh")) in files["job.slurm"].splitlines()[-1]


@pytest.mark.parametrize(("seconds", "limit"), [(3600, "0-01:25:00"), (100 * 3600, "5-05:10:00")])
def test_the_time_limit_leaves_a_margin(seconds: float, limit: str) -> None:
    one = plans()["8b fsdp"]
    told = one.predicted.model_copy(update={"seconds": modelled(seconds, "s")})
    assert slurm.time_limit(one.model_copy(update={"predicted": told})) == limit


def ranks_asked(resources: dict[str, Any]) -> int:
    if "accelerators" in resources:
        (number,) = resources["accelerators"].values()
        return int(number)
    return int(resources["cpus"].rstrip("+"))


@pytest.mark.parametrize("name", NAMES)
def test_skypilot_rents_the_plan_s_devices(name: str) -> None:
    one = plans()[name]
    files = emit(one, "skypilot")
    task = yaml.safe_load(files["sky.yaml"])
    assert set(task) == {"name", "num_nodes", "resources", "workdir", "setup", "run"}
    assert ranks_asked(task["resources"]) == one.cluster.per_node, "whole machines are rented"
    assert 0 <= task["num_nodes"] * one.cluster.per_node - one.recipe.layout.ranks < one.cluster.per_node
    assert task["run"].split()[-1] in files
    assert one.hash[:12] in files["sky.yaml"]


def kubernetes(one: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    config, job = yaml.safe_load_all(emit(one, "kubeflow")["trainjob.yaml"])
    return config, job


@pytest.mark.parametrize("name", NAMES)
def test_kubeflow_starts_the_plan_s_ranks(name: str) -> None:
    one = plans()[name]
    config, job = kubernetes(one)
    trainer = job["spec"]["trainer"]
    (resource,) = trainer["resourcesPerNode"]["limits"].items()
    assert resource[0] in ("nvidia.com/gpu", "cpu")
    assert trainer["numNodes"] * int(resource[1]) == one.recipe.layout.ranks
    own = emit(one, "torchrun")
    assert config["data"] == own
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", job["metadata"]["name"])
    mounted = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = mounted["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    assert trainer["command"][-1].split()[-1].startswith(pod["containers"][0]["volumeMounts"][0]["mountPath"])


@pytest.mark.parametrize("name", NAMES)
def test_kubeflow_s_own_model_reads_it(name: str) -> None:
    """Every key is one that the API's generated classes know: what they do not know, they drop."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    config, job = kubernetes(plans()[name])
    for kind, content in ((models.TrainerV1alpha1TrainJob, job), (models.IoK8sApiCoreV1ConfigMap, config)):
        assert kind.from_dict(content).to_dict() == content


REFUSED = [
    ({"on": "8xtpu-v5p", "layout": {"shard": 8}}, "cluster.accelerator", "torchrun"),
    ({"on": "16xh100", "layout": {"shard": 12}}, "recipe.layout", "slurm"),
    ({"on": "8xh100", "layout": {"shard": 16}}, "recipe.layout", "kubeflow"),
    ({"on": "prototype", "layout": {"shard": 8}}, "cluster.accelerator.name", "skypilot"),
    ({"on": "8xh100", "layout": {"shard": 8}, "software": "nanotron"}, "recipe.software", "slurm"),
    ({"on": "8xh100", "layout": {"shard": 8, "zero": 1}}, "recipe.layout.zero", "torchrun"),
]


@pytest.mark.parametrize(("asked", "key", "target"), REFUSED)
def test_what_cannot_be_launched_is_refused(asked: dict[str, Any], key: str, target: str) -> None:
    with pytest.raises(ThriftyError) as error:
        emit(plan("llama-3-8b", **asked), target)
    assert error.value.where == key
    assert error.value.hint


def test_amd_devices_have_their_own_resource() -> None:
    _, job = kubernetes(plan("llama-3-8b", "8xmi300x", layout={"shard": 8}))
    assert job["spec"]["trainer"]["resourcesPerNode"]["limits"] == {"amd.com/gpu": "8"}


def test_part_of_a_node_is_not_taken_whole() -> None:
    asked = directives(emit(plan("llama-3-8b", "8xh100", layout={"shard": 4}), "slurm")["job.slurm"])
    assert asked["gpus-per-node"] == "4"
    assert "exclusive" not in asked


def test_launchers_start_the_software_of_the_plan() -> None:
    for software, script in (("megatron", "torchrun-megatron.sh"), ("torchtitan", "torchrun-torchtitan.sh")):
        one = changed(plans()["8b fsdp"], software=software)
        assert script in emit(one, "slurm")


def test_every_file_says_which_plan_it_is_and_what_it_costs() -> None:
    one = plans()["8b fsdp"]
    for target in ("torchrun", "slurm", "skypilot", "kubeflow", "torchtitan"):
        files = emit(one, target)
        first = files["torchrun-thrifty.sh"] if target == "torchrun" else next(iter(files.values()))
        assert one.hash[:12] in first
        assert str(one.predicted.usd) in first
        assert "priced with the constants of thrifty" in first
