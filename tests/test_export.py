import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from support.pictures import POSTSCRIPT, forbid_programs
from support.runs import StandInPipeline, config, manifest, prepare

from tpusd import storage
from tpusd.config.grammar import hydra_value
from tpusd.export import main
from tpusd.exports.output import PARTIAL
from tpusd.runs.start import start_run
from tpusd.score import main as score_main

ROWS = [
    {"prompt": "a photo of a bench", "tag": "single_object", "include": [{"class": "bench", "count": 1}]},
    {"prompt": "日本", "negative_prompt": "dark", "tag": "two"},
]


def make_run(path, *overrides):
    made = config(f"output={path}", f"prompts.rows={hydra_value(ROWS)}", "num_images_per_prompt=3", *overrides)
    return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_geneval_finds_its_own_lines_and_numbered_samples(tmp_path, image_format):
    """The layout of its README: OUT/<prompt number>/metadata.jsonl and samples/<number>.png."""
    path = make_run(tmp_path / "run", f"image_format={image_format}")
    assert main([str(path), str(tmp_path / "out"), "--format=geneval"]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["00000", "00001"]
    for row, line in enumerate([ROWS[0], {"prompt": "日本", "tag": "two"}]):
        directory = tmp_path / "out" / f"{row:05d}"
        assert sorted(os.listdir(directory)) == ["metadata.jsonl", "samples"]
        assert json.loads((directory / "metadata.jsonl").read_text()) == line
        assert sorted(os.listdir(directory / "samples")) == ["0000.png", "0001.png", "0002.png"]
        with Image.open(directory / "samples" / "0001.png") as image:
            assert image.format == "PNG" and image.size == (40, 24)


@pytest.mark.slow
def test_shards_hold_image_prompt_and_line_next_to_each_other(tmp_path):
    path = make_run(tmp_path / "run")
    for out in ("out", "again"):
        assert main([str(path), str(tmp_path / out), "--format=webdataset", "--shard-size=4"]) == 0
    shards = sorted(os.listdir(tmp_path / "out"))
    assert shards == ["00000.tar", "00001.tar"]
    names, records = [], {record["file_name"]: record for record in manifest(path)}
    for shard in shards:
        assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "again" / shard).read_bytes()
        with tarfile.open(tmp_path / "out" / shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        names += files
        for key in {name.split(".")[0] for name in files}:
            record = records[f"images/{key}.png"]
            assert files[f"{key}.png"] == (path / record["file_name"]).read_bytes()
            assert files[f"{key}.txt"].decode() == record["prompt"] and json.loads(files[f"{key}.json"]) == record
    assert names[:4] == ["00000-000.png", "00000-000.txt", "00000-000.json", "00000-001.png"] and len(names) == 18


@pytest.mark.slow
def test_taken_output_and_empty_runs_are_refused(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    (tmp_path / "none").mkdir()
    capsys.readouterr()
    for directory, output, words in (
        (path, path, "is not empty"),
        (path, path / "config.yaml", "File exists"),
        (tmp_path / "none", tmp_path / "out", "holds no images"),
    ):
        assert main([str(directory), str(output), "--format=geneval"]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1, err
    assert main([str(path), str(tmp_path / "out"), "--format=webdataset", "--shard-size=0"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_image_that_is_postscript_starts_no_program(tmp_path, monkeypatch, capsys):
    path = make_run(tmp_path / "run", "image_format=webp")
    (path / "images" / "00001-001.webp").write_bytes(POSTSCRIPT)
    forbid_programs(monkeypatch)
    capsys.readouterr()
    assert main([str(path), str(tmp_path / "out"), "--format=geneval"]) == 2
    err = capsys.readouterr().err
    assert err == f"tpusd: {path}/images/00001-001.webp: is not a PNG, JPEG or WebP picture\n"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["webdataset", "geneval"])
def test_an_export_that_is_stopped_leaves_nothing_under_a_final_name_and_starts_over(tmp_path, monkeypatch, layout):
    path = make_run(tmp_path / "run")
    assert main([str(path), str(tmp_path / "whole"), f"--format={layout}"]) == 0
    out, read, calls = tmp_path / "out", storage.read_file, []

    def stops(file, *more):
        calls.append(file)
        if Path(file).parent.name == "images" and len(calls) > 3:
            raise KeyboardInterrupt
        return read(file, *more)

    monkeypatch.setattr(storage, "read_file", stops)
    assert main([str(path), str(out), f"--format={layout}"]) == 130
    monkeypatch.undo()
    assert [entry.name for entry in out.iterdir()] == [PARTIAL]
    assert main([str(path), str(out), f"--format={layout}"]) == 0
    assert content(out) == content(tmp_path / "whole")


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["webdataset", "geneval"])
@pytest.mark.parametrize("nth", range(3))
def test_an_export_that_is_stopped_while_its_files_move_starts_over(tmp_path, monkeypatch, layout, nth):
    """Two names move: the first, the second, and what follows them."""
    path = make_run(tmp_path / "run")
    assert main([str(path), str(tmp_path / "whole"), f"--format={layout}", "--shard-size=4"]) == 0
    out, rename, moved = tmp_path / "out", os.rename, []

    def stops(source, target):
        if Path(target).parent == out:
            moved.append(target)
            if len(moved) == nth + 1:
                raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", stops)
    monkeypatch.setattr(shutil, "rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([str(path), str(out), f"--format={layout}", "--shard-size=4"]) == 130
    monkeypatch.undo()
    (out / "mine.txt").write_text("of the user")
    assert main([str(path), str(out), f"--format={layout}"]) == 2
    assert (out / "mine.txt").read_text() == "of the user"
    (out / "mine.txt").unlink()
    assert main([str(path), str(out), f"--format={layout}", "--shard-size=4"]) == 0
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_an_export_is_on_disk_before_it_has_its_final_names(tmp_path, monkeypatch):
    path = make_run(tmp_path / "run")
    calls, real = [], {name: getattr(os, name) for name in ("fsync", "rename")}

    def fsync(descriptor):
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real["fsync"](descriptor)

    def rename(source, target):
        calls.append(("rename", os.path.basename(target)))
        real["rename"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    assert main([str(path), str(tmp_path / "out"), "--format=webdataset"]) == 0
    assert calls.index(("fsync", "00000.tar")) < calls.index(("rename", "00000.tar"))
    assert calls.index(("rename", ".moved")) < calls.index(("rename", "00000.tar")) < calls.index(("fsync", "out"))


@pytest.mark.slow
def test_a_link_in_the_place_of_unfinished_work_is_not_followed(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / PARTIAL).symlink_to(tmp_path / "precious")
    assert main([str(path), str(out), "--format=geneval"]) == 2
    assert (tmp_path / "precious" / "file").read_text() == "mine" and "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("shard_size", [4, 1000])
def test_parquet_has_pictures_lines_and_scores(tmp_path, shard_size):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = make_run(tmp_path / "run")
    (tmp_path / "s.csv").write_text("row,copy,v\n0,1,2\n1,0,0.5\n")
    assert score_main([str(path), f"import={tmp_path / 's.csv'}"]) == 0
    assert main([str(path), str(tmp_path / "out"), "--format=parquet", f"--shard-size={shard_size}"]) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["00000.parquet", "00001.parquet"][: 2 if shard_size == 4 else 1]
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    records = sorted(manifest(path), key=lambda record: record["file_name"])
    assert [row["file_name"] for row in rows] == [record["file_name"] for record in records]
    for row, record in zip(rows, records, strict=True):
        assert row["image"]["bytes"] == (path / record["file_name"]).read_bytes()
        assert (row["prompt"], row["seed"], row["truncated"]) == (record["prompt"], record["seed"], record["truncated"])
        assert json.loads(row["trace"]) == record["trace"] and row["scores.v"] == {(0, 1): 2.0, (1, 0): 0.5}.get(
            (record["row"], record["copy"])
        )
    assert rows[0]["include"] == json.dumps(ROWS[0]["include"]) and rows[-1]["include"] is None
