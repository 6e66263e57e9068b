"""The catalog: names find their entry, numbers equal what was published, and every figure says where it is from."""

from __future__ import annotations

import math
import re

import pytest

from thrifty.catalog import facts, lookup
from thrifty.cost.params import active_parameters, parameter_shapes
from thrifty.spec.cluster import Accelerator, Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape
from thrifty.spec.load import build

DATE = re.compile(r"20\d\d(-[01]\d(-[0-3]\d)?)?")
PRICED = [name for name in lookup.accelerators() if lookup.price(name) is not None]


def shape(name: str) -> ModelShape:
    return build(ModelShape, lookup.model(name), "")


def cluster(text: str) -> Cluster:
    return build(Cluster, lookup.cluster(text), "")


def figures(tree, path=""):
    """Every figure of a nested dict, with its dotted path."""
    for key, value in tree.items():
        if isinstance(value, dict) and "value" in value:
            yield f"{path}{key}", value
        elif isinstance(value, dict):
            yield from figures(value, f"{path}{key}.")


# ---- models


@pytest.mark.parametrize("name", lookup.models())
def test_every_model_is_a_legal_shape_with_a_source(name):
    assert shape(name).name == name
    assert shape(name).source


# From model cards and the safetensors index of each repository: all parameters, tied embeddings once.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v2": 235_741_434_880,
    "gpt-oss-120b": 116_829_156_672,
    "bert-base": 109_514_298,
    "roberta-large": 355_412_057,
    "vit-b-16": 86_567_656,
}


# Of these the cards and papers leave the input embedding, a lookup, out of the active parameters.
ACTIVE_WITHOUT_LOOKUP = {"deepseek-v2-lite", "deepseek-v3", "gpt-oss-20b", "gpt-oss-120b"}


def parameters(name: str) -> int:
    return sum(math.prod(size) for _, size in parameter_shapes(shape(name)))


def agrees(count: int, published: int | str) -> bool:
    """Whether a count is the published one, or would be rounded or cut off to what is published as `12.9B`."""
    if isinstance(published, int):
        return count == published
    digits, unit = published[:-1], {"M": 1e6, "B": 1e9}[published[-1]]
    return abs(count / unit - float(digits)) < 10.0 ** -len(digits.partition(".")[2])


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_shapes_have_the_published_number_of_parameters(name, count):
    assert parameters(name) == count


@pytest.mark.parametrize("name", lookup.models())
def test_the_counts_that_the_catalog_gives_are_those_of_its_shape(name):
    entry = facts.read("models.yaml")["models"][name]
    assert "parameters" not in entry or agrees(parameters(name), entry["parameters"])
    active = active_parameters(shape(name))
    if name in ACTIVE_WITHOUT_LOOKUP:
        active -= shape(name).vocab_size * shape(name).hidden
    assert "active_parameters" not in entry or agrees(active, entry["active_parameters"])
    assert ("active_parameters" in entry) == (shape(name).experts is not None)


def test_what_agrees_with_a_rounded_count():
    assert agrees(12_879_925_248, "12.9B")
    assert agrees(3_353_032_704, "3.3B"), "cut off, not rounded"
    assert not agrees(12_780_000_000, "12.9B")
    assert not agrees(46_702_792_705, 46_702_792_704)


@pytest.mark.parametrize(
    ("name", "millions", "within"),
    [
        ("shakespeare-0.8m", 0.8, 0.02),
        ("gpt-19m", 19.1, 0.01),
        ("tiny-1m", 1, 0.1),
        ("tiny-3m", 3, 0.1),
        ("tiny-10m", 10, 0.1),
    ],
)
def test_shapes_are_as_large_as_their_names_say(name, millions, within):
    assert parameters(name) == pytest.approx(millions * 1e6, rel=within)


def test_families_have_their_traits():
    assert shape("mistral-7b").sliding_window == 4096
    assert shape("mistral-7b-v0.3").sliding_window is None
    assert shape("qwen2-0.5b").bias == "qkv"
    assert shape("qwen3-0.6b").qk_norm
    assert shape("qwen3-0.6b").heads * shape("qwen3-0.6b").head_dim != shape("qwen3-0.6b").hidden
    assert shape("llama-3.1-8b").rope_scaling is not None
    assert shape("llama-3-8b").rope_scaling is None
    assert shape("deepseek-v3").head_dim == 192, "of the query: with and without position"
    assert shape("vit-b-16").max_positions == 14 * 14 + 1
    assert (shape("gpt2").norm, shape("gpt2").mlp, shape("gpt2").positions) == ("layernorm", "gelu", "learned")


# ---- names


@pytest.mark.parametrize(
    ("written", "entry"),
    [
        ("GPT2", "gpt2-124m"),
        ("Llama 3 8B", "llama-3-8b"),
        ("llama3-8b", "llama-3-8b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("llama_3.1_8b", "llama-3.1-8b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("Qwen3_30B_a3B", "qwen3-30b-a3b"),
        ("DeepSeek-V3", "deepseek-v3"),
        ("bert-base-uncased", "bert-base"),
        ("ViT-B/16", "vit-b-16"),
        ("Llama-3.3-70B", "llama-3.1-70b"),
    ],
)
def test_a_model_is_found_however_it_is_written(written, entry):
    assert lookup.model(written).at("name") == entry


@pytest.mark.parametrize(
    ("written", "entry"),
    [
        ("h100", "H100-SXM-80GB"),
        ("H100-sxm", "H100-SXM-80GB"),
        ("a100", "A100-SXM-80GB"),
        ("a100-40gb", "A100-SXM-40GB"),
        ("rtx 4090", "RTX-4090"),
        ("4090", "RTX-4090"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("tpu v5e", "TPU-v5e"),
    ],
)
def test_an_accelerator_is_found_however_it_is_written(written, entry):
    assert lookup.accelerator_name(written) == entry
    assert lookup.accelerator_of_device(written) == entry


@pytest.mark.parametrize("file", ["models.yaml", "accelerators.yaml"])
def test_no_two_entries_share_a_name(file):
    entries = facts.read(file)[file.removesuffix(".yaml")]
    names = [
        re.sub(r"[\s_/-]+", "", alias).lower() for entry, row in entries.items() for alias in (entry, *row["aliases"])
    ]
    assert len(set(names)) >= len(entries)
    owners: dict[str, set[str]] = {}
    for entry, row in entries.items():
        for alias in (entry, *row["aliases"]):
            owners.setdefault(re.sub(r"[\s_/-]+", "", alias).lower(), set()).add(entry)
    assert {name: owned for name, owned in owners.items() if len(owned) > 1} == {}


@pytest.mark.parametrize(
    ("look", "name", "near"),
    [
        (lookup.model, "llama-3-9b", "'llama-3-8b'"),
        (lookup.cluster, "8xh10", "'h100'"),
        (lookup.cluster, "64xh1000", "'h100'"),
        (lookup.accelerator, "", "valid choices"),
        (lookup.grid, "frence", "'France'"),
        (lookup.price, "rtx4900", "'RTX-4090'"),
    ],
)
def test_an_unknown_name_stops_with_the_nearest(look, name, near):
    with pytest.raises(ThriftyError, match="in the catalog") as caught:
        look(name)
    assert near in caught.value.hint


def test_an_unknown_device_is_none_not_its_neighbour():
    assert lookup.accelerator_of_device("NVIDIA H100 NVL") is None


# ---- clusters


@pytest.mark.parametrize(
    ("text", "nodes", "per_node"),
    [
        ("h100", 1, 1),
        ("1xh100", 1, 1),
        ("4xh100", 1, 4),
        ("8xH100", 1, 8),
        ("64xh100", 8, 8),
        (" 64 x h100 ", 8, 8),
        ("2x8xa100-80gb", 2, 8),
        ("3x4xh100", 3, 4),
        ("8xmi300x", 1, 8),
        ("8x4090", 1, 8),
        ("64xgb200", 1, 64),
        ("144xgb200", 2, 72),
    ],
)
def test_a_short_form_says_nodes_and_devices(text, nodes, per_node):
    found = cluster(text)
    assert (found.nodes, found.per_node, found.devices) == (nodes, per_node, nodes * per_node)
    assert found.name == f"{nodes * per_node}x{found.accelerator.name}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("12xh100", "use 8 or 16"),
        ("100xgb200", "use 72 or 144"),
        ("0xh100", "no devices"),
        ("2x0xh100", "no devices"),
        ("", "names no cluster"),
        ("8x", "no accelerator"),
    ],
)
def test_a_short_form_that_cannot_be(text, told):
    with pytest.raises(ThriftyError) as caught:
        lookup.cluster(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", PRICED)
def test_every_priced_accelerator_makes_a_cluster(name):
    found = cluster(f"2x2x{name}")
    device = found.accelerator
    assert 0 < device.idle_watts.value < device.tdp_watts.value
    average = device.idle_watts.value + found.utilisation.value * (device.tdp_watts.value - device.idle_watts.value)
    assert average == pytest.approx(0.72 * device.tdp_watts.value, rel=0.01)
    assert found.intra_node.bandwidth.value >= found.inter_node.bandwidth.value >= found.inter_island.bandwidth.value
    assert found.intra_node.latency.value <= found.inter_node.latency.value <= found.inter_island.latency.value


@pytest.mark.parametrize("name", lookup.accelerators())
def test_every_accelerator_is_whole_and_plausible(name):
    device = build(Accelerator, lookup.accelerator(name), "")
    assert device.name == name
    assert device.peak_flops
    for dtype, reached in device.achievable_flops.items():
        assert reached.value < device.peak_flops[dtype].value, "nothing is faster than its peak"
    assert device.runtime_memory.value < device.memory.value / 4
    assert 1e11 < device.memory_bandwidth.value < 1e13


@pytest.mark.parametrize("name", sorted(set(lookup.accelerators()) - set(PRICED)))
def test_an_accelerator_without_a_price_gets_none_made_up(name):
    assert lookup.machine(name).at("price") is None
    with pytest.raises(ThriftyError, match="'price' is missing"):
        cluster(name)


def test_some_numbers_from_data_sheets():
    h100 = cluster("h100").accelerator
    assert (h100.peak_flops["bf16"].value, h100.memory_bandwidth.value, h100.tdp_watts.value) == (989e12, 3.35e12, 700)
    assert h100.achievable_flops["bf16"].value == 794.5e12
    a100 = cluster("a100").accelerator
    assert (a100.peak_flops["bf16"].value, a100.peak_flops["tf32"].value, a100.tdp_watts.value) == (312e12, 156e12, 400)
    assert cluster("v100").accelerator.peak_flops.keys() == {"fp32", "fp16"}, "no bf16 where there is none"


def test_more_nodes_lose_more_time():
    assert cluster("8xh100").goodput.value > cluster("16xh100").goodput.value


# ---- prices and grids


def test_a_price_is_the_median_of_the_newest_year():
    rows = facts.read("prices.yaml")["H200-SXM-141GB"]
    newest = [float(row["price"].removesuffix("usd/h")) for row in rows if row["date"].startswith("2026")]
    assert len(newest) == 3
    price = lookup.price("h200")
    assert price.value == sorted(newest)[1]
    assert (price.low, price.high) == (min(newest), max(newest))
    assert price.date == max(row["date"] for row in rows)
    assert price.provenance == "published"
    assert "median of 3" in price.source
    assert "Spheron" in price.source


def test_a_grid_by_country_code_or_nickname():
    assert lookup.grid("France") == lookup.grid("fra")
    assert lookup.grid("uk").value == lookup.grid("United Kingdom").value
    assert lookup.grid("world").value == 475
    assert lookup.grid("sweden").value < lookup.grid("poland").value


def test_the_default_grid_is_an_assumption():
    grid = cluster("h100").grid
    assert grid.provenance == "assumed"
    assert grid.value == lookup.grid("usa").value


# ---- where everything is from


@pytest.mark.parametrize("name", lookup.accelerators())
def test_every_figure_has_a_source(name):
    found = dict(figures(lookup.machine(name, nodes=2).tree))
    assert len(found) > 15
    for key, figure in found.items():
        assert len(figure["source"]) > 5, key
        assert figure["provenance"] in ("published", "assumed"), key
        if figure["provenance"] == "published":
            assert DATE.fullmatch(figure["date"]), f"{key} ages, so it needs a date"


@pytest.mark.parametrize("name", list(facts.read("prices.yaml")))
def test_every_price_has_a_date_a_provider_and_a_source(name):
    assert lookup.accelerator_name(name) == name
    for row in facts.read("prices.yaml")[name]:
        assert set(row) == {"date", "price", "provider", "listed", "source"}
        assert DATE.fullmatch(row["date"])
        assert row["price"].endswith("usd/h")
        assert row["provider"]
        assert row["source"]


@pytest.mark.parametrize("name", lookup.grids())
def test_every_grid_has_a_year_and_a_source(name):
    grid = lookup.grid(name)
    assert DATE.fullmatch(grid.date)
    assert name in grid.source
    assert 10 < grid.value < 1000


def test_every_note_is_used():
    table = facts.read("accelerators.yaml")
    text = repr([table["families"], table["accelerators"], table["goodput"]])
    assert [note for note in table["notes"] if f"'{note}'" not in text] == []
