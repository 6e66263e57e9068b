"""Tables of runs: what is read, what is named as lacking, and laws as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thrifty.catalog import lookup
from thrifty.laws.law import Constants, LossLaw, loss
from thrifty.planner.emit import write_plan
from thrifty.planner.loss_table import read_law, read_rows, write_law
from thrifty.planner.search import search
from thrifty.spec import Cluster, Job
from thrifty.spec.errors import ThriftyError
from thrifty.spec.load import build, from_dict

HEADER = "id,dataset,params,params_no_embed,tokens,global_batch_seq,c4_val_loss\n"


def table(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "runs.csv"
    path.write_text("# a comment\n" + header + "\n".join(lines) + "\n")
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    ((row,), lacking) = read_rows(table(tmp_path, "a,web,1e8,7e7,2000000000,512,3.5"))
    assert lacking == []
    assert (row.parameters, row.without_embedding, row.tokens, row.loss) == (1e8, 7e7, 2e9, 3.5)
    assert row.batch_tokens == 512 * 2048
    assert row.steps == 2e9 / (512 * 2048)


def test_rows_without_inputs_are_named(tmp_path: Path) -> None:
    rows, lacking = read_rows(table(tmp_path, "a,web,1e8,,2e9,,3.5", "b,web,,7e7,2e9,512,3.5", "c,web,1e8,7e7,x,1,-1"))
    assert [row.id for row in rows] == ["a"]
    assert (rows[0].without_embedding, rows[0].steps) == (None, None)
    assert [(one.id, one.why) for one in lacking] == [("b", "no params"), ("c", "tokens is 'x', not a number")]


def test_one_s_own_columns(tmp_path: Path) -> None:
    header = "id,dataset,params,tokens,global_batch_seq,sequence_length,loss\n"
    ((row,), _) = read_rows(table(tmp_path, "a,web,1e8,2e9,64,1024,3.5", header=header))
    assert row.batch_tokens == 64 * 1024


def test_a_missing_column_is_told(tmp_path: Path) -> None:
    with pytest.raises(ThriftyError, match="'tokens' is missing") as error:
        read_rows(table(tmp_path, header="id,dataset,params,loss\n"))
    assert "params" in error.value.hint


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    rows, lacking = read_rows(tmp_path / "run")
    assert rows == []
    assert "no plan.yaml and no bill.json" in lacking[0].why


def run_folder(parent: Path, tokens_share: float, loss: float | None) -> Path:
    """What a run leaves: its plan, and a bill with what these tests read."""
    shape = {"layers": 4, "hidden": 128, "heads": 4, "ffn": 512, "vocab_size": 256}
    job = Job.model_validate({"model": shape, "steps": 400, "sequence_length": 64})
    batch = {"sequences": 32, "micro_sequences": 32}
    plan = search(job, build(Cluster, lookup.cluster("1xa100"), ""), from_dict({"batch": batch}, "test")).plan
    parent.mkdir()
    write_plan(plan, parent / "plan.yaml")
    measured = {"tokens": {"value": tokens_share * 400 * 32 * 64}, "loss": loss and {"value": loss}}
    (parent / "bill.json").write_text(json.dumps({"measured": measured}))
    return parent


def test_own_runs_are_read_once_they_are_finished(tmp_path: Path) -> None:
    ((row,), lacking) = read_rows(run_folder(tmp_path / "whole", 1.0, 1.7))
    assert lacking == []
    assert row.without_embedding == row.parameters - 256 * 128
    assert (row.dataset, row.steps, row.tokens, row.loss) == ("python-stdlib-bytes", 400, 400 * 32 * 64, 1.7)
    rows, (stopped,) = read_rows(run_folder(tmp_path / "stopped", 0.25, 1.7))
    assert rows == []
    assert "stopped at 25% of its plan" in stopped.why
    _, (silent,) = read_rows(run_folder(tmp_path / "silent", 1.0, None))
    assert "no validation loss" in silent.why


def test_laws_are_read_back_for_one_dataset(tmp_path: Path) -> None:
    constants = {name: Constants(E=e, A=480.0, B=2000.0) for name, e in (("web", 1.8), ("code", 1.2))}
    law = LossLaw(source="made up", constants=constants, alpha=0.35, beta=0.37)
    path = tmp_path / "law.json"
    path.write_text(write_law(law))
    assert loss(read_law(f"{path}@code"), 1e9, 2e10) == loss(law, 1e9, 2e10, dataset="code")
    with pytest.raises(ThriftyError, match="2 datasets") as error:
        read_law(str(path))
    assert "web, code" in error.value.hint
    with pytest.raises(ThriftyError, match="unknown dataset") as error:
        read_law(f"{path}@wed")
    assert "'web'" in error.value.hint


def test_what_is_no_law_is_told(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    path.write_text("{")
    with pytest.raises(ThriftyError, match="not JSON"):
        read_law(str(path))
    path.write_text('{"alpha": 0.3, "betta": 0.3}')
    with pytest.raises(ThriftyError, match="'source' is missing") as error:
        read_law(str(path))
    assert "beta" in error.value.hint
