"""From what the user wrote to a Job, a Cluster and a partial Recipe: who wins, where it came from, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from thrifty.cost.params import parameter_shapes
from thrifty.planner.request import Request, read_cluster, read_request
from thrifty.spec.bill import MEMORY_TERMS, TIME_PARTS, Bill
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure, modelled
from thrifty.spec.load import Settings, from_dict, to_yaml
from thrifty.spec.plan import Plan, fingerprint
from thrifty.spec.recipe import Recipe

LINK = {"bandwidth": "1GB/s", "latency": "100us"}
CORE = {
    "name": "core",
    "kind": "cpu",
    "peak_flops": {"fp32": "50GFLOP/s"},
    "memory": "2GiB",
    "memory_bandwidth": "5GB/s",
    "idle_watts": "1W",
    "tdp_watts": "4W",
    "op_overhead": "5us",
    "runtime_memory": "100MiB",
}
MACHINE = {
    "name": "local",
    "accelerator": CORE,
    "per_node": 4,
    "intra_node": LINK,
    "inter_node": LINK,
    "inter_island": LINK,
    "price": "0.05usd/h",
    "grid": "475g/kWh",
    "pue": 1.0,
    "goodput": 1.0,
    "utilisation": 1.0,
    "host_watts": "1W",
}
JOB = """\
job:
  model: tiny-1m
  steps: 100
  sequence_length: 64
  data:
    path: corpus.txt
recipe:
  precision: fp32
  optimizer:
    lr: 1e-3
"""


def local() -> Settings:
    return from_dict(MACHINE, "probe")


def no_local() -> Settings:
    raise AssertionError("this machine was measured although nobody asked for it")


def no_vocabulary(data) -> int:
    raise AssertionError("the corpus was read although nobody asked for it")


def ask(job, on=None, recipe=None, sets=(), local=local, vocabulary=no_vocabulary) -> Request:
    return read_request(str(job), on, recipe, sets, local=local, vocabulary=vocabulary)


@pytest.fixture
def write(tmp_path):
    def put(text: str, name: str = "job.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return put


def refusal(*args, **keywords) -> str:
    with pytest.raises(ThriftyError) as caught:
        ask(*args, **keywords)
    return str(caught.value)


# ---- a model name


def test_a_model_name_is_a_job_of_its_own():
    asked = ask("Llama-3-8B", "64xh100", local=no_local)
    parameters = sum(math.prod(size) for _, size in parameter_shapes(asked.job.model))
    assert asked.job.name == asked.job.model.name == "llama-3-8b"
    assert asked.job.tokens == 20 * parameters
    assert asked.job.sequence_length == 8192
    assert asked.job.data.path == "python-stdlib"
    assert asked.recipe.tree == {}
    assert asked.cluster.devices == 64
    assert "Hoffmann et al. 2022" in asked.settings.where("job.tokens")
    assert asked.settings.where("job.tokens").startswith("assumed")
    assert asked.settings.where("job.model.layers") == "catalog models.yaml"
    assert asked.settings.where("cluster.nodes") == "--on 64xh100"
    assert asked.settings.where("cluster.price") == "catalog prices.yaml"
    assert asked.settings.where("cluster.grid") == "catalog grids.yaml"


def test_a_long_context_is_not_the_default_length():
    assert ask("llama-3.1-8b").job.sequence_length == 8192
    assert ask("gpt2").job.sequence_length == 1024


@pytest.mark.parametrize("key", ["job.steps=10", "job.tokens=1M", "job.target_loss=3.0"])
def test_a_length_that_is_given_takes_the_place_of_the_assumed_one(key):
    job = ask("tiny-1m", sets=[key]).job
    assert [job.steps, job.tokens, job.target_loss].count(None) == 2


def test_twenty_tokens_per_parameter_of_the_shape_that_was_asked_for():
    small = ask("llama-3-8b", "h100", sets=["job.model.layers=2"]).job
    assert small.tokens == 20 * sum(math.prod(size) for _, size in parameter_shapes(small.model))


def test_neither_a_file_nor_a_model():
    assert "'llama-3-8b'" in refusal("lama-3-8b")
    assert "no such job file" in refusal("nowhere.yaml")


# ---- a job file


def test_origins_of_a_job_file(write):
    path = write(JOB)
    asked = ask(path, sets=["recipe.optimizer.lr=3e-4"])
    where = asked.settings.where
    assert where("job.steps") == f"{path}:3"
    assert where("job.data.path") == f"{path}:6"
    assert where("recipe.precision") == f"{path}:8"
    assert where("recipe.optimizer.lr") == "--set recipe.optimizer.lr"
    assert where("job.model.hidden") == "catalog models.yaml"
    assert where("cluster.price") == "probe"
    assert "job.seed" not in asked.settings.origins, "nobody gave it: it is the noun's default"
    assert asked.job.name == "job"
    assert asked.recipe.tree == {"precision": "fp32", "optimizer": {"lr": 3e-4}}
    assert asked.recipe.where("precision") == f"{path}:8"


def test_precedence_catalog_file_recipe_file_set(write):
    path = write(JOB + "cluster:\n  accelerator: h100\n  price: 9usd/h\n  nodes: 2\n")
    recipe = write("optimizer:\n  lr: 2e-3\n  beta1: 0.8\n", "recipe.yaml")
    asked = ask(path, recipe=recipe, sets=["recipe.optimizer.beta1=0.7", "cluster.nodes=3"], local=no_local)
    assert asked.recipe.tree == {"precision": "fp32", "optimizer": {"lr": 2e-3, "beta1": 0.7}}
    assert asked.settings.where("recipe.optimizer.lr") == f"{recipe}:2"
    assert asked.cluster.price.value == 9
    assert (asked.cluster.nodes, asked.cluster.per_node) == (3, 8)
    assert asked.cluster.goodput.value == 0.9
    assert asked.cluster.name == "24xH100-SXM-80GB"


def test_a_recipe_file_may_have_its_section(write):
    recipe = write("recipe:\n  precision: bf16\n", "recipe.yaml")
    assert ask(write(JOB), recipe=recipe).recipe.tree["precision"] == "bf16"
    told = refusal(write(JOB), recipe=write("recipe: {}\njob: {}\n", "other.yaml"))
    assert "unknown key 'job'" in told


def test_the_last_set_wins(write):
    assert ask(write(JOB), sets=["job.seed=1", "job.seed=2"]).job.seed == 2


def test_tokens_by_set_over_steps_in_the_file(write):
    job = ask(write(JOB), sets=["job.tokens=5M tokens"]).job
    assert (job.tokens, job.steps) == (5_000_000, None)
    assert "not both" in refusal(write(JOB), sets=["job.tokens=5", "job.steps=5"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("jobb: {}\n", ["job.yaml:1", "unknown section 'jobb'", "'job'"]),
        ("job: {}\nseed: 1\n", ["job.yaml:2", "unknown section 'seed'", "put it under job:"]),
        ("job: {}\noptimizer: {}\n", ["put it under recipe:"]),
        ("recipe: {}\n", ["section 'job' is missing", "for example"]),
        ("job: 5\n", ["job must be a mapping"]),
        ("job:\n", ["section 'job' is missing"]),
        (JOB.replace("tiny-1m", "tiny-2m"), ["job.yaml:2", "no model 'tiny-2m'", "'tiny-1m'"]),
        (JOB.replace("steps", "stepps"), ["job.yaml:3", "unknown key 'stepps'", "'steps'"]),
        (JOB.replace("lr:", "lrr:"), ["job.yaml:10", "unknown key 'lrr'", "'lr'"]),
        (JOB.replace("fp32", "fp31"), ["job.yaml:8: recipe.precision", "'fp32'"]),
        (JOB.replace("64", "80GiB"), ["job.yaml:4: job.sequence_length"]),
        (JOB + "cluster:\n  nodes: 2\n", ["does not say which accelerator", "accelerator: local"]),
        (JOB + "cluster:\n  accelerator: h101\n", ["job.yaml:12", "'h100'"]),
        (JOB + "cluster:\n  accelerator: h100\n  grid: frnce\n", ["job.yaml:13", "'France'"]),
        (JOB + "cluster:\n  accelerator: h100\n  pric: 2\n", ["job.yaml:13: cluster.pric", "'price'"]),
        (JOB + "cluster:\n  accelerator: mi355x\n", ["no price is known for MI355X", "--set cluster.price"]),
        (JOB + "  batch: {sequences: 7, micro_sequences: 2}\n", ["use 6 or 8"]),
        (JOB + "  layout: {shard: 3}\n  batch: {sequences: 8}\n", ["is not a multiple"]),
    ],
)
def test_a_mistake_in_a_job_file(write, text, told):
    message = refusal(write(text))
    for part in told:
        assert part in message


def test_a_recipe_that_is_only_begun_is_fine(write):
    for batch in ("{sequences: 32}", "{micro_sequences: 4}"):
        asked = ask(write(JOB + f"  layout: {{shard: 2, island: 2}}\n  batch: {batch}\n"))
        assert len(asked.recipe.tree["batch"]) == 1, "what stands in for the planner's choice does not leak out"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("optimizer.lr=1", "'recipe.optimizer.lr'"),
        ("lr=1", "'recipe.optimizer.lr'"),
        ("recipes.precision=fp32", "'recipe.precision'"),
        ("job=x", "unknown key 'job'"),
        ("job.modle=gpt2", "'model'"),
        ("recipe.optimizer.lr.x=1", "recipe.optimizer.lr"),
        ("cluster.grid=frence", "'France'"),
        ("cluster.price=5GiB", "measures bytes"),
        ("job.seed", "wants KEY=VALUE"),
    ],
)
def test_a_mistake_in_a_set(write, given, told):
    assert told in refusal(write(JOB), sets=[given])


# ---- names with changes


def test_a_base_with_changes_does_not_keep_its_name(write):
    text = JOB.replace("tiny-1m", "{base: llama-3-8b, layers: 2, vocab_size: 300}")
    model = ask(write(text)).job.model
    assert (model.layers, model.vocab_size, model.hidden) == (2, 300, 4096)
    assert model.name == "llama-3-8b-custom"
    assert model.source == "meta-llama/Meta-Llama-3-8B, but for layers, vocab_size"
    assert ask(write(text.replace("layers", "name: mine, layers"))).job.model.name == "mine"
    assert ask(write(JOB.replace("tiny-1m", "{base: gpt2}"))).job.model.name == "gpt2-124m"


def test_a_model_by_set_replaces_the_whole_model(write):
    text = JOB.replace("tiny-1m", "{base: llama-3-8b, layers: 2}")
    assert ask(write(text), sets=["job.model=gpt2"]).job.model.layers == 12
    assert ask(write(text), sets=["job.model.layers=3"]).job.model.layers == 3
    assert ask(write(JOB), sets=["job.model.layers=3"]).job.model.hidden == 128


def test_a_model_written_out_needs_no_catalog(write):
    model = ask(
        write(JOB.replace("tiny-1m", "{layers: 1, hidden: 8, heads: 2, ffn: 8, vocab_size: 9, max_positions: 64}"))
    )
    assert (model.job.model.name, model.job.model.kv_heads) == ("custom", 2)


def test_vocabulary_of_the_data_is_asked_for_only_when_it_is_auto(write):
    text = JOB.replace("tiny-1m", "{base: tiny-1m, vocab_size: auto}") + "\n"
    seen = []

    def vocabulary(data):
        seen.append((data.path, data.tokenizer.kind))
        return 65

    asked = ask(write(text), sets=["job.data.tokenizer.kind=chars"], vocabulary=vocabulary)
    assert asked.job.model.vocab_size == 65
    assert seen == [("corpus.txt", "chars")]
    assert "auto: chars tokenizer" in asked.settings.where("job.model.vocab_size")
    assert ask("tiny-1m", sets=["job.model.vocab_size=auto"], vocabulary=lambda data: 70).job.model.vocab_size == 70


# ---- clusters


def test_the_default_is_this_machine(write):
    for on in (None, "local"):
        asked = ask(write(JOB), on)
        assert asked.cluster.name == "local"
        assert asked.cluster.accelerator.kind == "cpu"


def test_one_figure_of_this_machine_is_changed(write):
    sets = ["cluster.price=1usd/h", "cluster.accelerator.tdp_watts=65W", "cluster.grid=sweden"]
    asked = ask(write(JOB), "local", sets=sets)
    assert asked.cluster.price.value == 1
    assert asked.cluster.accelerator.tdp_watts.value == 65
    assert asked.cluster.accelerator.name == "core"
    assert asked.cluster.grid.value == pytest.approx(40.7)
    assert asked.settings.where("cluster.grid") == "--set cluster.grid (catalog grids.yaml)"


def test_this_machine_by_name(write):
    text = "cluster:\n  accelerator: {base: local, tdp_watts: 65W}\n  price: 1usd/h\n"
    found = ask(write(JOB + text)).cluster
    assert (found.name, found.per_node, found.price.value, found.accelerator.tdp_watts.value) == ("local", 4, 1, 65)
    assert ask(write(JOB), "local", sets=["cluster.accelerator=h100"], local=no_local).cluster.per_node == 8


def test_on_takes_the_place_of_the_jobs_cluster(write):
    path = write(JOB + "cluster:\n  accelerator: h100\n  price: 9usd/h\n")
    assert ask(path).cluster.price.value == 9
    assert ask(path, "2xa100", local=no_local).cluster.accelerator.name == "A100-SXM-80GB"
    assert ask(path, "2xa100").cluster.price.value != 9
    assert ask(path, "local").cluster.name == "local"


def test_a_cluster_file(write):
    job = write(JOB)
    for text in (
        "accelerator: h100\nper_node: 4\ngrid: france\n",
        "cluster: {accelerator: H100, per_node: 4, grid: fra}\n",
    ):
        found = ask(job, str(write(text, "cluster.yaml")), local=no_local).cluster
        assert (found.devices, found.accelerator.name, found.grid.value) == (4, "H100-SXM-80GB", 56)
        assert found.grid.provenance == "published"
    whole = ask(job, str(write("accelerator: h100\n", "cluster.yaml"))).cluster
    assert (whole.per_node, whole.nodes) == (8, 1), "what the file leaves out is the usual machine's"


def test_a_device_that_the_catalog_does_not_know(write):
    rest = "".join(f"{key}: {value}\n" for key, value in MACHINE.items() if key in ("per_node", "intra_node", "price"))
    rest += "inter_node: {bandwidth: 1GB/s, latency: 1ms}\nhost_watts: 20W\n"
    accelerator = "accelerator:\n" + "".join(f"  {key}: {value}\n" for key, value in CORE.items())
    found = ask(write(JOB), str(write(accelerator + rest, "cluster.yaml")), local=no_local).cluster
    assert found.accelerator.name == "core"
    assert found.grid.provenance == "assumed", "what is assumed of any cluster is filled in"
    assert "'memory' is missing" in refusal(
        write(JOB), str(write(accelerator.replace("  memory: 2GiB\n", "") + rest, "cluster.yaml"))
    )


def test_a_catalog_device_with_one_thing_changed(write):
    text = "accelerator: {base: h100, memory: 94GiB}\n"
    found = ask(write(JOB), str(write(text, "cluster.yaml"))).cluster.accelerator
    assert found.memory.value == 94 * 2**30
    assert found.memory.source == "given by the user"
    assert found.tdp_watts.value == 700


def test_a_figure_is_replaced_whole():
    price = ask("tiny-1m", "h100", sets=["cluster.price={value: 2usd/h}"]).cluster.price
    assert (price.value, price.source, price.date, price.low) == (2, "", "", None)
    price = ask("tiny-1m", "h100", sets=["cluster.price.value=2"]).cluster.price
    assert (price.value, price.date) == (2, "")


def test_another_device_in_the_same_machines():
    found = ask("tiny-1m", "16xh100", sets=["cluster.accelerator=b200"]).cluster
    assert (found.nodes, found.per_node, found.accelerator.name) == (2, 8, "B200-SXM-180GB")
    assert found.name == "16xB200-SXM-180GB"


def test_a_price_makes_an_unpriced_device_usable():
    assert "no price is known" in refusal("tiny-1m", "8xmi355x")
    assert ask("tiny-1m", "8xmi355x", sets=["cluster.price=3usd/h"]).cluster.price.value == 3


@pytest.mark.parametrize(
    ("on", "told"),
    [
        ("12xh100", "use 8 or 16"),
        ("8xh10", "'h100'"),
        ("nowhere.yaml", "no such cluster file"),
        ("locale", "no accelerator"),
    ],
)
def test_a_cluster_that_cannot_be(on, told):
    assert told in refusal("tiny-1m", on)


def test_a_cluster_alone():
    found, settings = read_cluster("64xh100", ["cluster.price=1usd/h"], local=no_local)
    assert (found.devices, found.price.value) == (64, 1)
    assert settings.where("cluster.price") == "--set cluster.price"
    assert read_cluster("local", local=local)[0].name == "local"


# ---- a plan as the job


@pytest.fixture
def plan_file(tmp_path):
    asked = ask("tiny-1m", "2xh100", sets=["job.steps=10"])
    recipe = Recipe.model_validate({"batch": {"sequences": 8, "micro_sequences": 2}, "precision": "fp32"})
    one = modelled(1.0, "s", "a test")
    figures = {name: one for name, field in Bill.model_fields.items() if field.annotation is Figure}
    bill = Bill(
        maker="predicted",
        seconds_by_part=dict.fromkeys(TIME_PARTS, one),
        memory=dict.fromkeys(MEMORY_TERMS, one),
        link_bytes={"intra_node": one},
        **figures,
    )
    plan = Plan(
        job=asked.job,
        cluster=asked.cluster,
        recipe=recipe,
        predicted=bill,
        hash=fingerprint(asked.job, asked.cluster, recipe),
    )
    path = tmp_path / "plan.yaml"
    path.write_text(to_yaml(plan))
    return path, plan


def test_a_plan_is_read_back_whole(plan_file):
    path, plan = plan_file
    asked = ask(path, local=no_local)
    assert (asked.job, asked.cluster) == (plan.job, plan.cluster)
    assert Recipe.model_validate(asked.recipe.tree) == plan.recipe
    assert asked.settings.where("job.seed").startswith(f"{path}:")


def test_changes_lie_over_a_plan(plan_file):
    path, plan = plan_file
    asked = ask(path, sets=["job.tokens=1M", "recipe.optimizer.lr=1", "cluster.price=5usd/h"], local=no_local)
    assert (asked.job.tokens, asked.job.steps) == (1_000_000, None)
    assert asked.recipe.tree["optimizer"]["lr"] == 1
    assert asked.recipe.tree["precision"] == "fp32"
    assert asked.cluster.price.value == 5
    moved = ask(path, "8xa100", local=no_local)
    assert moved.cluster.accelerator.name == "A100-SXM-80GB"
    assert moved.job == plan.job


def test_a_plan_changed_by_hand_is_refused(plan_file):
    path, _ = plan_file
    path.write_text(path.read_text().replace("seed: 1337", "seed: 1"))
    told = refusal(path)
    assert "hash no longer matches" in told
    assert str(path) in told
    assert "--set" in told
