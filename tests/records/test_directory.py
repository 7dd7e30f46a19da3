import contextlib
import hashlib
import json
import os
import threading
from datetime import datetime
from pathlib import Path

import pytest

from tpusd.errors import UserError
from tpusd.records.directory import Claim, RunDir, check_claim, make_claim
from tpusd.records.manifest import ImageRecord
from tpusd.records.saved import read_config
from tpusd.storage import local as storage

NOW = datetime(2026, 11, 23, 12, 34, 56)


class FailingOs:
    """`os`, whose nth call of `function` fails. Counts calls, so that a test can see that it was reached."""

    def __init__(self, function, nth=0, error=None):
        self.function, self.nth, self.calls = function, nth, 0
        self.error = error or OSError(28, "No space left on device")

    def __getattr__(self, name):
        real = getattr(os, name)
        if name != self.function:
            return real

        def call(*arguments, **options):
            self.calls += 1
            if self.calls - 1 == self.nth:
                raise self.error
            return real(*arguments, **options)

        return call


@pytest.fixture
def run_dir(tmp_path):
    made = RunDir.claim(Claim(output=tmp_path / "run"))
    yield made
    with contextlib.suppress(OSError):
        made.close()


def tree(path: Path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def test_name_is_date_time_and_prompts():
    assert make_claim(None, "portraits", NOW).stem == "2026-11-23_12-34-56_portraits"


@pytest.mark.parametrize(
    ("name", "expected"), [("../../etc", "etc"), ("a b/c\0d\n", "a_b_c_d"), ("日本", "prompts"), ("x" * 99, "x" * 40)]
)
def test_only_plain_letters_of_a_name_reach_the_disk(name, expected):
    assert make_claim(None, name, NOW).stem == "2026-11-23_12-34-56_" + expected


def test_runs_of_one_second_get_directories_of_their_own(tmp_path):
    claim = Claim(parent=tmp_path / "runs", stem="same")
    paths, threads = [], []

    def take():
        made = RunDir.claim(claim)
        paths.append(made.path.name)
        made.close()

    for _ in range(7):
        threads.append(threading.Thread(target=take))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert sorted(paths) == ["same", *(f"same_{n}" for n in range(2, 8))]


def test_output_is_the_exact_directory_new_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    for output in ("empty", "new", "deep/er/new"):
        made = RunDir.claim(make_claim(str(tmp_path / output), "x", NOW))
        made.close()
        assert tree(tmp_path / output) == [".hydra", "images", "manifest.jsonl", "run.log"]


def record(row, **fields):
    values = dict(
        file_name=f"images/{row:05d}-000.png", sha256="0" * 64, num_bytes=6, row=row, copy=0, prompt="a fox",
        negative_prompt=None, seed=3, row_seed=None, height=24, width=40, sampler="ddim", num_inference_steps=50,
        guidance_scale=7.5, guidance_rescale=0.0, model="tiny", precision="bf16", num_tokens=4, truncated=False,
        environment="e", trace={},
    )  # fmt: skip
    return ImageRecord(**values | fields)


def test_directory_is_claimed_once(tmp_path):
    for prepare in (lambda path: None, os.mkdir):
        path = tmp_path / str(prepare)[:5].strip("<")
        prepare(path)
        made = RunDir.claim(Claim(output=path))
        with pytest.raises(UserError, match="another process is working on this run"):
            RunDir.claim(Claim(output=path))
        made.write_config({})
        made.close()
        with pytest.raises(UserError, match="holds a run; continue it with resume="):
            RunDir.claim(Claim(output=path))


def test_empty_directory_is_claimed_by_one_of_many(tmp_path, monkeypatch):
    """All of them look before any of them claims."""
    barrier, outcomes, claimed = threading.Barrier(5), [], []
    look = storage.list_directory

    def look_together(path):
        names = look(path)
        if not names and path == tmp_path:
            barrier.wait(20)
        return names

    def take():
        try:
            claimed.append(RunDir.claim(Claim(output=tmp_path)))
            outcomes.append("claimed")
        except UserError as error:
            outcomes.append(str(error).partition(": ")[2].partition(";")[0])

    monkeypatch.setattr(storage, "list_directory", look_together)
    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [*["another process is working on this run"] * 4, "claimed"]
    claimed[0].close()


def test_directories_that_cannot_be_made_are_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    for output, expected in (
        ("file", "is a file"),
        ("file/below", "cannot be written: Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
        ("", "must name a directory"),
        ("nul\0", "must name a directory"),
    ):
        looked = [] if len(output) == 300 else [check_claim]  # which a look does not tell
        for claim in (*looked, RunDir.claim):
            with pytest.raises(UserError, match=expected):
                claim(make_claim(output and str(tmp_path / output), "x", NOW))
    assert tree(tmp_path) == ["file"]


def test_taken_directory_is_refused_before_anything_is_fetched(tmp_path):
    (tmp_path / "empty").mkdir()
    for free in ("empty", "new", "deep/er"):
        check_claim(Claim(output=tmp_path / free))
    check_claim(Claim(parent=tmp_path / "runs", stem="x"))
    with pytest.raises(UserError, match="exists and is not empty"):
        check_claim(Claim(output=tmp_path))
    assert tree(tmp_path) == ["empty"]


@pytest.mark.parametrize("nth", range(3))
def test_claim_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, nth):
    failing = FailingOs("mkdir", nth + 1, PermissionError(13, "Permission denied"))
    monkeypatch.setattr(storage, "os", failing)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        RunDir.claim(Claim(output=tmp_path / "new" / "run"))
    monkeypatch.undo()
    assert failing.calls == nth + 2 and tree(tmp_path) == []


@pytest.mark.parametrize("nth", range(1, 4))
def test_claim_that_a_signal_stops_leaves_nothing_and_holds_no_lock(tmp_path, monkeypatch, nth):
    monkeypatch.setattr(storage, "os", FailingOs("mkdir", nth, KeyboardInterrupt()))
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        RunDir.claim(Claim(output=tmp_path / "new" / "run"))
    monkeypatch.undo()
    assert tree(tmp_path) == [] and len(os.listdir("/proc/self/fd")) == open_files


def test_claim_that_fails_before_its_lock_leaves_what_another_process_made_there(tmp_path, monkeypatch):
    others = tmp_path / "images"

    def lock(file):
        others.mkdir()
        (others / "00000-000.png").write_bytes(b"another process's")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage.LineFile, "lock", lock)
    with pytest.raises(UserError, match="Input/output error"):
        RunDir.claim(Claim(output=tmp_path))
    assert (others / "00000-000.png").exists()


def test_lock_of_a_file_that_is_gone_holds_nothing(tmp_path, monkeypatch):
    """A process opens run.log; before it locks the file, another one removes the run and a third makes it again."""
    first = RunDir.claim(Claim(output=tmp_path / "run"))
    lock, made = storage.LineFile.lock, []

    def lock_late(file):
        if not made:
            made.append(None)
            first.discard()
            made.append(RunDir.claim(Claim(output=tmp_path / "run")))
        return lock(file)

    with monkeypatch.context() as patched:
        patched.setattr(storage.LineFile, "lock", lock_late)
        with pytest.raises(UserError, match="another process is working on this run"):
            RunDir(tmp_path / "run")
    made[1].check_held()
    made[1].close()


@pytest.mark.parametrize("name", ["manifest.jsonl", "run.log"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_line_is_refused_where_the_manifest_or_the_lock_is_no_longer_ours(run_dir, name, replaced):
    run_dir.append_records(record(0))
    (run_dir.path / name).unlink()
    if replaced:
        (run_dir.path / name).write_bytes(b"")
    for use in (lambda: run_dir.append_records(record(1)), run_dir.check_held):
        with pytest.raises(UserError, match=rf"{name}: was removed or replaced .* resume="):
            use()


def test_empty_directory_of_the_users_stays_empty_when_its_claim_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "os", FailingOs("mkdir", 1))
    with pytest.raises(UserError):
        RunDir.claim(Claim(output=tmp_path))
    monkeypatch.undo()
    assert tree(tmp_path) == []


def test_discarded_claim_leaves_nothing_of_its_own(tmp_path):
    (tmp_path / "empty").mkdir()
    for output, left in (("a/b/run", ["empty"]), ("empty", ["empty"])):
        made = RunDir.claim(Claim(output=tmp_path / output))
        made.write_config({"seed": 0})
        made.write(".hydra/overrides.yaml", b"[]")
        made.discard()
        assert tree(tmp_path) == left


def test_image_is_durable_under_its_name_before_its_line_is_written(run_dir, monkeypatch):
    calls, names = [], {}

    class RecordingOs:
        def __getattr__(self, name):
            real = getattr(os, name)
            if name not in ("open", "write", "fsync", "rename"):
                return real

            def call(first, *rest):
                result = real(first, *rest)
                if name == "open":
                    names[result] = Path(first).name
                # The only file that was open before is the manifest.
                descriptor = result if name == "open" else first
                what = Path(rest[0]).name if name == "rename" else names.get(descriptor, "manifest.jsonl")
                calls.append((name, what))
                return result

            return call

    monkeypatch.setattr(storage, "os", RecordingOs())
    run_dir.append_records(record(0, **run_dir.write_image("00000-000.png", b"pixels")))
    temporary = "00000-000.png.tmp"
    assert calls == [
        ("open", temporary), ("write", temporary), ("fsync", temporary), ("rename", "00000-000.png"),
        ("open", "images"), ("fsync", "images"),
        ("write", "manifest.jsonl"), ("fsync", "manifest.jsonl"),
    ]  # fmt: skip


def test_image_is_on_disk_before_its_line(run_dir):
    fields = run_dir.write_image("00000-000.png", b"pixels")
    sha256 = hashlib.sha256(b"pixels").hexdigest()
    assert fields == {"file_name": "images/00000-000.png", "sha256": sha256, "num_bytes": 6}
    assert (run_dir.path / fields["file_name"]).read_bytes() == b"pixels"
    assert list(run_dir.records()) == []
    written = record(0, **fields, prompt='日本\n\u2028"x"', extra={"id": [5], "x": {"y": None}})
    run_dir.append_records(written)
    assert list(run_dir.records()) == [written]


@pytest.mark.parametrize("function", ["write", "fsync", "rename", "open"])
def test_full_disk_is_told_and_leaves_no_part_of_a_file(run_dir, monkeypatch, function):
    run_dir.write("config.yaml", b"old")
    failing = FailingOs(function)
    monkeypatch.setattr(storage, "os", failing)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        run_dir.write("config.yaml", b"new")
    monkeypatch.undo()
    assert failing.calls and (run_dir.path / "config.yaml").read_bytes() == b"old"
    assert tree(run_dir.path) == [".hydra", "config.yaml", "images", "manifest.jsonl", "run.log"]


def test_line_that_does_not_fit_is_taken_back_whole(run_dir, monkeypatch):
    run_dir.append_records(record(0))
    failing = FailingOs("fsync")
    monkeypatch.setattr(storage, "os", failing)
    with pytest.raises(UserError):
        run_dir.append_records(record(1))
    monkeypatch.undo()
    run_dir.append_records(record(2))
    assert failing.calls and [one.row for one in run_dir.records()] == [0, 2]


@pytest.mark.parametrize("torn", [b'{"file_name": "b', b"x" * 70_000, b"\n{"[1:]])
def test_torn_last_line_is_left_out_and_cut_off_on_opening(run_dir, torn):
    run_dir.append_records(record(0))
    run_dir.write_config({})
    manifest = run_dir.path / "manifest.jsonl"
    with manifest.open("ab") as file:
        file.write(torn)
    assert [one.row for one in run_dir.records()] == [0]
    run_dir.close()
    again = RunDir.open(run_dir.path)
    again.append_records(record(2))
    again.close()
    assert [json.loads(line)["row"] for line in manifest.read_bytes().splitlines()] == [0, 2]


def test_file_without_a_newline_is_torn_from_its_start(tmp_path):
    (tmp_path / "f").write_bytes(b"y" * 150_000)
    file = storage.LineFile(tmp_path / "f")
    file.close()
    assert (tmp_path / "f").read_bytes() == b""


def test_broken_manifest_line_is_told_with_its_number(run_dir):
    run_dir.append_records(record(0))
    whole = record(0).to_line()
    for broken in (b"{", b"[1]", b'{"file_name": 1}', b"\xff", whole.replace(b'"row": 0', b'"row": "0"')):
        (run_dir.path / "manifest.jsonl").write_bytes(whole + b"\n" + broken + b"\n")
        with pytest.raises(UserError, match="line 2: is not a manifest line"):
            list(run_dir.records())


def test_config_survives_the_way_through_the_file_and_runs_no_code(run_dir):
    values = {
        "seed": 4294967295,
        "negative_prompt": None,
        "rows": [{"prompt": 'yes: "no" # 日本\n\u2028\x07 0x10'}, {"prompt": "null"}],
        "guidance_scale": 7.5,
    }
    run_dir.write_config(values)
    assert read_config(run_dir.path) == values
    (run_dir.path / "config.yaml").write_text("seed: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="is not YAML"):
        read_config(run_dir.path)


def test_only_a_run_directory_is_opened(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        RunDir.open(tmp_path)
    assert tree(tmp_path) == []
