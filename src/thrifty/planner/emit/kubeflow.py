"""A Kubeflow TrainJob (`kubectl create -f trainjob.yaml`), and a ConfigMap that brings the configuration to its nodes.

API trainer.kubeflow.org/v1alpha1 as of Kubeflow Trainer 2.3: `runtimePatches` took the place of `podTemplateOverrides`
in 2.2. The runtime `torch-distributed` comes with Trainer; its torch plugin sets PET_NODE_RANK, PET_MASTER_ADDR and
PET_MASTER_PORT in the container `node`.
"""

from __future__ import annotations

from typing import Any

from thrifty.planner.emit.common import head, nodes, refuse, slug, to_yaml
from thrifty.planner.emit.launch import entry_of, script_name, with_script
from thrifty.spec.plan import Plan

FOLDER = "/etc/plan"
LARGEST_CONFIGMAP_BYTES = 2**20


def emit(plan: Plan) -> dict[str, str]:
    """`trainjob.yaml`, which also holds the script and configuration.

    Raises:
        ThriftyError: Kubernetes has no resource name for the accelerator; else as `launch.entry_of` and `common.nodes`.
    """
    entry = entry_of(plan)
    name, files = f"{slug(plan.job.name)}-{plan.hash[:8]}", with_script(plan, entry)
    size = sum(map(len, files.values()))
    if size > LARGEST_CONFIGMAP_BYTES:
        what = f"holds at most 1 MiB in a ConfigMap, and the configuration has {size} bytes"
        refuse("Kubernetes", "job", what, "put the files into the image, and start them from a TrainJob of your own")
    command = (
        "export NODE_RANK=$PET_NODE_RANK MASTER_ADDR=$PET_MASTER_ADDR MASTER_PORT=$PET_MASTER_PORT\n"
        f"exec bash {FOLDER}/{script_name(entry)}\n"
    )
    number, _ = nodes(plan)
    resources = _resources(plan)
    trainer = {
        "numNodes": number,
        "command": ["bash", "-c", command],
        "resourcesPerNode": {"requests": resources, "limits": resources},
    }
    job = {
        **_object("trainer.kubeflow.org/v1alpha1", "TrainJob", name),
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": trainer,
            "runtimePatches": [{"manager": "thrifty", "trainingRuntimeSpec": {"template": {"spec": _mount(name)}}}],
        },
    }
    config = {**_object("v1", "ConfigMap", name), "data": files}
    notes = [
        f"The image of the runtime must hold the software ({entry.setup});",
        "set spec.trainer.image to one that does. A run that must survive its pods needs RUN_DIR on a volume.",
    ]
    return {"trainjob.yaml": head(plan, notes) + to_yaml(config) + "---\n" + to_yaml(job)}


def _object(version: str, kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


def _mount(name: str) -> dict[str, Any]:
    """The patch of the runtime's JobSet that mounts the ConfigMap in every node's container."""
    pod = {
        "volumes": [{"name": "plan", "configMap": {"name": name}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "plan", "mountPath": FOLDER, "readOnly": True}]}],
    }
    return {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}


def _resources(plan: Plan) -> dict[str, str]:
    """Device plugin's resource name to the number on a node."""
    chip = plan.cluster.accelerator
    _, per_node = nodes(plan)
    if chip.kind == "cpu":
        return {"cpu": str(plan.cluster.per_node)}
    for prefix, resource in (
        ("MI", "amd.com/gpu"),
        ("Gaudi", "habana.ai/gaudi"),
        ("Trainium", "aws.amazon.com/neuron"),
    ):
        if chip.name.startswith(prefix):
            return {resource: str(per_node)}
    return {"nvidia.com/gpu": str(per_node)}
