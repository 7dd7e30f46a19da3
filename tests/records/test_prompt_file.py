"""A large prompt set is a file beside config.yaml, and everything that reads the run reads it."""

import dataclasses
import hashlib
import json

import pytest
import yaml
from support.runs import INLINE, StandInPipeline, config, manifest, prepare, saved

from tpusd import storage
from tpusd.config import packed_rows
from tpusd.config.packed_rows import PackedRows, first_rows, pack
from tpusd.config.rows import Row, parse_row
from tpusd.config.schema import config_values
from tpusd.errors import UserError
from tpusd.gallery import run as gallery
from tpusd.plan.batches import count_batches
from tpusd.plan.specs import counted_specs, make_specs
from tpusd.records.manifest import recipe_values
from tpusd.records.prompt_file import write_config_files
from tpusd.records.recipes import OWN_FIELDS, Recipes
from tpusd.records.saved import read_saved
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run
from tpusd.validate import main as validate_main

RICH = [
    {"prompt": "a fox", "seed": 7},
    {"prompt": 'an "owl"\n\\', "negative_prompt": "", "guidance_scale": 3},
    {"prompt": "ein Füchslein", "tags": ["x", {"y": None}], "id": 1.5},
    {"prompt": "a moose", "num_inference_steps": 4, "width": 64, "crop": [0, 8]},
    {"prompt": "a moose", "loras": [{"path": "/l.safetensors", "scale": 0.5}]},
    {"prompt": "a hare", "control_images": ["/c.png", None], "control_scale": 0.5},
]


def rows_of(number):
    return [Row(prompt=f"animal {index}") for index in range(number)]


def written(path, number):
    path.mkdir(exist_ok=True)
    own = _with_rows(saved(INLINE), pack(rows_of(number)))
    write_config_files(path, config_values(own))
    return own


def _with_rows(own, rows):
    return dataclasses.replace(own, prompts=dataclasses.replace(own.prompts, rows=rows))


@pytest.mark.slow
def test_a_thousand_rows_stay_in_the_config_and_more_are_a_file(tmp_path):
    written(tmp_path / "few", 1000)
    assert yaml.safe_load((tmp_path / "few/config.yaml").read_text())["prompts"]["rows"][999] == {
        "prompt": "animal 999"
    }
    assert [file.name for file in (tmp_path / "few").iterdir()] == ["config.yaml"]
    own = written(tmp_path / "many", 1001)
    named = yaml.safe_load((tmp_path / "many/config.yaml").read_text())["prompts"]["rows"]
    data = (tmp_path / "many" / named["file"]).read_bytes()
    assert named == {"file": named["file"], "sha256": hashlib.sha256(data).hexdigest(), "num_rows": 1001}
    assert [json.loads(line) for line in data.splitlines()][1000] == {"prompt": "animal 1000"}
    assert read_saved(tmp_path / "many").prompts == own.prompts


def test_packed_rows_are_the_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(packed_rows, "INLINE_ROWS", 2)
    rows = [parse_row("row", values) for values in RICH]
    packed = pack(iter(rows))
    assert isinstance(packed, PackedRows) and list(packed) == rows == [packed[index] for index in range(-6, 0)]
    assert packed[1:3] == tuple(rows[1:3]) and packed == pack(rows) != pack(rows[:5])
    own = _with_rows(saved(INLINE), packed)
    write_config_files(tmp_path, config_values(own))
    assert list(read_saved(tmp_path).prompts.rows) == rows


def test_one_row_of_each_kind_is_looked_at(monkeypatch):
    monkeypatch.setattr(packed_rows, "INLINE_ROWS", 2)
    tall = [Row(prompt=text, height=64) for text in "ce"]
    rows = [Row(prompt="a"), Row(prompt="b", seed=3), tall[0], Row(prompt="d"), tall[1]]
    packed = pack(iter(rows))
    assert [index for index, _ in first_rows(packed)] == [0, 2]
    assert [index for index, _ in first_rows(packed, range(3, 5))] == [3, 4]
    assert [index for index, _ in first_rows(tuple(rows))] == [0, 1, 2, 3, 4]
    few = saved("prompts.rows=[{prompt: a}]", "num_images_per_prompt=2", rows=rows)
    many, done = _with_rows(few, packed), {(0, 0), (2, 1)}
    counted = {spec.height: number for spec, number in counted_specs(many, done)}
    each = [spec.height for spec in make_specs(few, done)]
    assert counted == {height: each.count(height) for height in set(each)} == {24: 5, 64: 3}
    assert [number for _, number in counted_specs(many, done, (64, 40))] == [3]
    assert count_batches([("x", 1)] * 5, 2) == 3


def test_lines_are_checked_as_those_of_few_rows(monkeypatch):
    monkeypatch.setattr(packed_rows, "INLINE_ROWS", 2)
    rows = [parse_row("row", values) for values in RICH if "control_images" not in values and "loras" not in values]
    few = saved("prompts.rows=[{prompt: a}]", "negative_prompt=dark", rows=rows)
    recipes = Recipes(_with_rows(few, pack(iter(rows))))
    for spec in make_specs(few):
        recipe = recipe_values(few, spec)
        assert recipes.of(spec.row, spec.copy) == recipe and recipes.extra(spec.row) == spec.extra
        assert recipes.difference(recipe, spec.row, spec.copy) is None
        for name in (*OWN_FIELDS, "sampler", "width", "noise"):
            found = recipes.difference(recipe | {name: "other"}, spec.row, spec.copy)
            assert found == (name, "other", recipe[name])


def forged(path, edit):
    """A run of 1001 rows whose file of rows has other bytes, and a config.yaml that agrees with them."""
    written(path, 1001)
    (file,) = path.glob("prompts-*.jsonl")
    data = edit(file.read_bytes())
    file.unlink()
    sha256 = hashlib.sha256(data).hexdigest()
    (path / f"prompts-{sha256[:12]}.jsonl").write_bytes(data)
    values = yaml.safe_load((path / "config.yaml").read_text())
    values["prompts"]["rows"] |= {"file": f"prompts-{sha256[:12]}.jsonl", "sha256": sha256}
    (path / "config.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda data: data[:-1], "its last line has no end"),
        (lambda data: data[:-20], "its last line has no end"),
        (lambda data: data.replace(b"animal 7", b"animal\xff7", 1), "line 8: is not UTF-8"),
        (lambda data: data + b"{}\n", "line 1002: has no column prompt"),
        (lambda data: data + b'{"prompt": " "}\n', "line 1002: prompt is empty"),
        (lambda data: data + b'{"prompt": "a", "x": ' + b"[" * 10_000 + b"\n", "line 1002: is nested over"),
        (lambda data: data + b'{"prompt": "a", "seed": -1}\n', "line 1002: seed=-1"),
        (lambda data: data + b'{"prompt": "a", "sha256": "x"}\n', "the name of a manifest field"),
        (lambda data: data + b"[]\n", "line 1002: must be an object"),
        (lambda data: data + b'{"prompt": "a"}\n', "num_rows=1001"),
    ],
)
def test_a_hostile_file_of_rows_is_one_line(tmp_path, edit, expected):
    forged(tmp_path, edit)
    with pytest.raises(UserError) as caught:
        read_saved(tmp_path)
    assert expected in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_file_of_rows_that_is_gone_or_changed_is_one_line(tmp_path, capsys):
    written(tmp_path, 1001)
    (file,) = tmp_path.glob("prompts-*.jsonl")
    data = file.read_bytes()
    file.write_bytes(data.replace(b"animal 7", b"animal 8", 1))
    with pytest.raises(UserError, match="is not as it was: its sha256 is .* restore the file"):
        read_saved(tmp_path)
    file.unlink()
    assert validate_main([str(tmp_path)]) == 2
    assert "no such file, and config.yaml names it; restore the file" in capsys.readouterr().err
    other = tmp_path / "other"
    other.write_bytes(data)
    file.symlink_to(other)
    with pytest.raises(UserError, match="no such file"):
        read_saved(tmp_path)


@pytest.mark.parametrize(
    "named",
    [
        {"file": "../x.jsonl", "sha256": "0" * 64, "num_rows": 1},
        {"file": "prompts-111111111111.jsonl", "sha256": "0" * 64, "num_rows": 1},
        {"file": "prompts-000000000000.jsonl", "sha256": "0" * 64, "num_rows": True},
        {"file": "prompts-000000000000.jsonl", "sha256": "0" * 64, "num_rows": 1, "more": 1},
        {"file": ["x"], "sha256": None},
        {},
    ],
)
def test_another_name_of_a_file_of_rows_is_refused(tmp_path, named):
    written(tmp_path, 3)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    values["prompts"]["rows"] = named
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"config.yaml: prompts.rows=.*restore the config.yaml"):
        read_saved(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_run_has_the_rows_of_its_config_at_every_moment(tmp_path, monkeypatch, fails_at):
    old, done = written(tmp_path, 1001), []

    def write_file(path, data, real=storage.write_file):
        if len(done) == fails_at:
            raise OSError(28, "No space left on device")
        done.append(path)
        real(path, data)

    monkeypatch.setattr(storage, "write_file", write_file)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path, 1002)
    monkeypatch.undo()
    assert read_saved(tmp_path).prompts == old.prompts
    new = written(tmp_path, 1002)
    assert read_saved(tmp_path).prompts == new.prompts and len(list(tmp_path.glob("prompts-*"))) == 1


MORE = INLINE[:-1] + ", {prompt: a hare, height: 32}]"


def made(path, *overrides, pipeline=None):
    own = config(f"output={path}", *overrides)
    return start_run(own, prepare=prepare, load=lambda *_, **__: pipeline or StandInPipeline())


def resumed(path, *argv):
    resume_run(path, argv, prepare=prepare, load=lambda *_, **__: StandInPipeline())


@pytest.mark.slow
def test_a_run_is_the_same_with_its_rows_in_a_file(tmp_path, monkeypatch, capsys):
    """Stopped, continued, extended, checked, and found complete."""
    lines = {}
    for limit in (1000, 2):
        monkeypatch.setattr(packed_rows, "INLINE_ROWS", limit)
        path = tmp_path / str(limit)
        with pytest.raises(KeyboardInterrupt):
            made(path, INLINE, pipeline=StandInPipeline(fails_at=0, error=KeyboardInterrupt()))
        first = set(path.glob("prompts-*"))
        resumed(path)
        resumed(path, MORE)
        resumed(path)
        assert "complete, 4 images" in capsys.readouterr().out
        last = set(path.glob("prompts-*"))
        assert (len(first), len(last)) == ((0, 0) if limit == 1000 else (1, 1)) and (limit == 1000 or first != last)
        assert validate_main([str(path)]) == validate_main(["--sizes", str(path)]) == 0
        lines[limit] = [{**line, "environment": None} for line in manifest(path)]
        with pytest.raises(UserError, match="row 0 of the run, a red fox, is now a dog"):
            resumed(path, "prompts.rows=[{prompt: a dog}, {prompt: an owl, negative_prompt: dark}, {prompt: a moose}]")
    assert lines[2] == lines[1000] and len(lines[2]) == 4


def test_sizes_alone_do_not_read_an_image(tmp_path, capsys):
    path = made(tmp_path / "run", INLINE)
    image = path / manifest(path)[1]["file_name"]
    image.write_bytes(bytes(len(image.read_bytes())))
    assert validate_main(["--sizes", str(path)]) == 0 and validate_main([str(path)]) == 1
    image.write_bytes(b"x")
    assert validate_main(["--sizes", str(path)]) == 1
    assert "has 1 bytes, and the manifest says" in capsys.readouterr().out


@pytest.mark.slow
def test_page_of_a_large_run_shows_a_sample_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "MAX_SHOWN", 2)
    path = made(tmp_path / "run", MORE, "num_images_per_prompt=2")
    page = (path / "index.html").read_text()
    assert "8 images · this page shows 2 of them, spread evenly" in page
    assert "a red fox" in page and "a moose" in page and "a hare" not in page
    metadata = [json.loads(line) for line in (path / "metadata.jsonl").read_bytes().splitlines()]
    assert [line["file_name"] for line in metadata] == [line["file_name"] for line in manifest(path)]
    resumed(path)
    assert "complete, 8 images" in capsys.readouterr().out
    data = (path / "metadata.jsonl").read_bytes()
    for damaged in (data[:-5], b"".join(data.splitlines(keepends=True)[:-1]), data + b'{"torn'):
        (path / "metadata.jsonl").write_bytes(damaged)
        resumed(path)
        assert (path / "metadata.jsonl").read_bytes() == data


@pytest.mark.slow
def test_long_texts_of_a_large_set_are_counted_as_those_of_a_small_one(tmp_path, monkeypatch):
    rows = (
        "prompts.rows=[{prompt: a}, {prompt: a b c d e f}, {prompt: b, negative_prompt: a b c d e f g}, {prompt: ab c}]"
    )
    few = prepare(config(rows, "negative_prompt=x y"))
    monkeypatch.setattr(packed_rows, "INLINE_ROWS", 2)
    many = prepare(config(rows, "negative_prompt=x y"))
    assert isinstance(many.config.prompts.rows, PackedRows)
    assert many.warnings == few.warnings and "2 of 4 rows" in few.warnings[0]
    assert {text: many.tokens[text] for text in few.tokens} == few.tokens
    with pytest.raises(UserError, match="on_truncate=error: 2 of 4 rows"):
        prepare(config(rows, "on_truncate=error"))
