"""Tables of runs: what is read, what is named as lacking, and laws as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from laws.law_examples import rows as made_rows
from thrifty.laws.fit import Form, law_of
from thrifty.laws.law import loss
from thrifty.planner.loss_table import read_law, read_rows, write_law
from thrifty.spec.errors import ThriftyError

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


def test_laws_are_read_back_for_one_dataset(tmp_path: Path) -> None:
    law = law_of(made_rows(scatter=0.01), Form(), "made up", draws=3)
    path = tmp_path / "law.json"
    path.write_text(write_law(law))
    assert loss(read_law(f"{path}@code"), 1e9, 2e10) == loss(law, 1e9, 2e10, dataset="code")
    with pytest.raises(ThriftyError, match="2 datasets") as error:
        read_law(str(path))
    assert "code, web" in error.value.hint
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
