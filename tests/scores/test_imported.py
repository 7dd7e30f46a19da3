"""Scores of other programs: files of all forms, and lines that name no image."""

import json

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.records.manifest import read_manifest
from tpusd.records.scores import read_scores
from tpusd.runs.start import start_run
from tpusd.score import main

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def path(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("imported") / "run"
    return start_run(
        config(f"output={path}", INLINE, "num_images_per_prompt=2"), prepare=prepare, load=lambda *_: StandInPipeline()
    )


def values(path, column):
    records = list(read_manifest(path))
    scores = read_scores(path, records)
    return {record.key: value for record in records if (value := scores.of(record).get(column)) is not None}


FORMS = {
    "names.csv": "file_name,v\nimages/00001-001.png,2.5\n00002-000.png,-3e2\n",
    "places.tsv": "row\tcopy\tv\n1\t1\t2.5\n2\t0\t-300\n",
    "excel.csv": '\ufeff"row","copy","v"\r\n"1","1","2.5"\r\n"2","0","-300"\r\n',
    "lines.jsonl": '{"row": 1, "copy": 1, "v": 2.5, "note": [1]}\n\n{"file_name": "00002-000.png", "v": -300}\n',
    "index.csv": "file_name,prompt,seed,v,comment\nimages/00001-001.png,an owl,0,2.5,good\n00002-000.png,x,7,-300,\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_all_forms_give_the_same_column(path, name, tmp_path):
    (tmp_path / name).write_bytes(FORMS[name].encode())
    assert main([str(path), f"import={tmp_path / name}"]) == 0
    assert values(path, "v") == {(1, 1): 2.5, (2, 0): -300.0}
    assert not values(path, "note") and not values(path, "comment") and not values(path, "seed")


def test_a_changed_file_replaces_its_values(path, tmp_path):
    file = tmp_path / "s.csv"
    for value in (1, 2, 2):
        file.write_text(f"row,again\n0,{value}\n")
        assert main([str(path), f"import={file}"]) == 0
        assert values(path, "again") == {(0, 0): value}
    assert len((path / "scores" / "again.jsonl").read_text().splitlines()) <= 2


def test_lines_without_an_image_are_named_and_the_others_are_read(path, tmp_path, capsys):
    other = manifest(path)[0] | {"sha256": "0" * 64}
    rows = [{"row": 0, "u": 1}, {"row": 99, "u": 1}, {"u": 2}, {"file_name": "../x", "u": 3}]
    rows += [{"file_name": "images/00001-000.png", "sha256": other["sha256"], "u": 4}]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(path), f"import={tmp_path / 's.jsonl'}"]) == 1
    error = capsys.readouterr().err
    assert "line 2: row=99, copy=0: is no image of the run" in error and "line 3: names no image" in error
    assert "line 4: file_name=../x: is no image of the run" in error and "is of another picture" in error
    assert values(path, "u") == {(0, 0): 1.0}


REFUSED = {
    "row,v\n0,1\n0,2\n": "line 3: images/00000-000.png has a line already",
    "row,v\n0\n": "line 2: has 1 cells and the header has 2",
    'row,v\n0,"1\n': "is not readable",
    "row,v,v\n0,1,2\n": "a column is twice in the header",
    "row,a b\n0,1\n": "a b cannot be the name of a score",
    "row,v\n0,x\n": "has no column of numbers",
    "": "has no column of numbers",
    "row,v\n0,nan\n": "line 2: v=nan: is not a number",
    "row,v\n0,1e999\n": "line 2: v=1e999: is not a number",
    "row,v\n0,1\n1,x\n": "line 3: v=x: is not a number",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_file_is_one_line(path, text, tmp_path, capsys):
    (tmp_path / "s.csv").write_text(text)
    assert main([str(path), f"import={tmp_path / 's.csv'}"]) == 2
    error = capsys.readouterr().err
    assert REFUSED[text] in error and error.count("\n") == 1


def test_a_column_with_a_number_and_something_else_is_named(path, tmp_path, capsys):
    (tmp_path / "s.csv").write_text("row,bad,late,good,note\n0,1,x,3,fine\n1,abc,2,4,\n")
    assert main([str(path), f"import={tmp_path / 's.csv'}"]) == 1
    error = capsys.readouterr().err
    assert "line 3: bad=abc: is not a number; the column is left out" in error and "line 2: late=x: " in error
    assert "good" not in error and "note" not in error
    assert values(path, "good") == {(0, 0): 3.0, (1, 0): 4.0} and not (path / "scores" / "bad.jsonl").exists()


def test_columns_chooses_and_checks(path, tmp_path, capsys):
    (tmp_path / "s.csv").write_text("row,p,q\n0,1,x\n")
    assert main([str(path), f"import={tmp_path / 's.csv'}", "columns=p"]) == 0
    assert main([str(path), f"import={tmp_path / 's.csv'}", "columns=q"]) == 2
    assert "line 2: q=x: is not a number" in capsys.readouterr().err
    assert main([str(path), f"import={tmp_path / 's.csv'}", "columns=r"]) == 2
    assert "has no column r" in capsys.readouterr().err
