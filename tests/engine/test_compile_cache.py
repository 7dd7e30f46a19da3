import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tpusd.engine import compile_cache
from tpusd.engine.compile_cache import CHECKED, cache_directory, remove_broken
from tpusd.records import provenance

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, warnings, jax, numpy as np
from tpusd.records import provenance
from tpusd.engine.compile_cache import enable_compile_cache
directory = enable_compile_cache()
compiled = []
def listen(name, **_):
    if name.endswith(("cache_hits", "cache_misses")):
        compiled.append(name)
jax.monitoring.register_event_listener(listen)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: np.float32(3) * x @ x.T)(np.ones((7, 5), np.float32)).block_until_ready()
print(directory, *[name.rsplit("_", 1)[-1] for name in compiled])
"""


def start(home, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    env |= {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error", **more}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    directory, *events = done.stdout.split()
    return directory, events


@pytest.mark.long
@pytest.mark.slow
def test_second_process_compiles_nothing_and_a_cut_entry_is_mended(tmp_path):
    directory, events = start(tmp_path)
    assert set(events) == {"misses"} and directory.startswith(str(tmp_path / "tpusd"))
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert set(start(tmp_path)[1]) == {"hits"}
    entries = sorted(Path(directory).glob("*-cache"))
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-7])  # as a crash leaves it
    assert set(start(tmp_path)[1]) == {"misses"}  # and no warning: they are errors here
    assert set(start(tmp_path)[1]) == {"hits"}


def test_users_own_choice_goes_first(tmp_path):
    assert start(tmp_path / "a", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0] == "None"
    assert list((tmp_path / "own").iterdir()) and not (tmp_path / "a").exists()
    assert start(tmp_path / "b", JAX_ENABLE_COMPILATION_CACHE="false") == ("None", [])


def test_directory_that_others_can_write_is_not_used(tmp_path):
    directory = Path(start(tmp_path)[0])
    directory.chmod(0o777)
    assert start(tmp_path)[0] == "None"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_home_that_cannot_be_written_is_no_error(tmp_path):
    tmp_path.chmod(0o500)
    assert start(tmp_path)[0] == "None"


def test_only_entries_that_were_not_seen_whole_are_read(tmp_path):
    whole = zlib.compress(b"x" * 5000)
    for name, data in (("a-cache", whole), ("b-cache", whole[:-5]), ("c-cache", b""), ("d-atime", b"")):
        (tmp_path / name).write_bytes(data)
    assert remove_broken(tmp_path) == ["b-cache", "c-cache"]
    assert {path.name for path in tmp_path.iterdir()} == {"a-cache", "d-atime", CHECKED}
    (tmp_path / "a-cache").write_bytes(b"\0" * len(whole))  # of the size that is on record: not read again
    assert remove_broken(tmp_path) == []
    (tmp_path / CHECKED).write_text("{ torn")
    assert remove_broken(tmp_path) == ["a-cache"]


def test_a_power_cut_leaves_the_right_size_and_zeros(tmp_path, monkeypatch):
    """After the machine has started again, each entry is read once, and what is not what it was is removed."""
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    monkeypatch.setattr(compile_cache, "BOOT_ID", boot)
    for name in ("a-cache", "b-cache"):
        (tmp_path / name).write_bytes(zlib.compress(name.encode() * 5000))
    assert remove_broken(tmp_path) == []
    size = (tmp_path / "a-cache").stat().st_size
    (tmp_path / "a-cache").write_bytes(b"\0" * size)
    (tmp_path / "c-cache").write_bytes(b"\0" * size)  # made after the last look
    boot.write_text("second")
    assert remove_broken(tmp_path) == ["a-cache", "c-cache"]
    assert (tmp_path / "b-cache").exists()
    reads = []
    monkeypatch.setattr(Path, "read_bytes", lambda path, read=Path.read_bytes: reads.append(path.name) or read(path))
    assert remove_broken(tmp_path) == [] and reads == [CHECKED]  # and then by size again


def test_what_changed_over_a_power_cut_is_removed_even_where_it_can_be_decompressed(tmp_path, monkeypatch):
    """What zstd wrote holds no sum, so that zeros in the middle of it may come out as something."""
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    monkeypatch.setattr(compile_cache, "BOOT_ID", boot)
    (tmp_path / "a-cache").write_bytes(zlib.compress(b"a" * 5000))
    assert remove_broken(tmp_path) == []
    (tmp_path / "a-cache").write_bytes(zlib.compress(b"b" * 5000))
    boot.write_text("second")
    assert remove_broken(tmp_path) == ["a-cache"]


@pytest.mark.parametrize(
    "record",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "null",
        "7",
        '{"boot": 1, "entries": []}',
        '{"boot": "x", "entries": {"a-cache": 5}}',
        '{"boot": "x", "entries": {"a-cache": ["y", 1]}}',
        '{"a-cache": 5011}',  # as 0.1.0 wrote it
    ],
)
def test_a_record_of_another_form_is_no_record(tmp_path, record):
    (tmp_path / "a-cache").write_bytes(zlib.compress(b"x" * 5000))
    (tmp_path / CHECKED).write_text(record)
    assert remove_broken(tmp_path) == []
    (tmp_path / "a-cache").write_bytes(b"cut")
    (tmp_path / CHECKED).write_text(record)
    assert remove_broken(tmp_path) == ["a-cache"]


def test_without_a_boot_id_every_entry_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "BOOT_ID", tmp_path / "no such file")
    (tmp_path / "a-cache").write_bytes(zlib.compress(b"x" * 5000))
    assert remove_broken(tmp_path) == []
    (tmp_path / "a-cache").write_bytes(b"\0" * (tmp_path / "a-cache").stat().st_size)
    assert remove_broken(tmp_path) == ["a-cache"]


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    """A container's user without a passwd entry and HOME."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert compile_cache.enable_compile_cache() is None


def test_directory_follows_from_the_versions(monkeypatch):
    here = cache_directory()
    assert here == cache_directory()
    others = provenance.versions() | {"jaxlib": "9.9"}
    monkeypatch.setattr(provenance, "versions", lambda: others)
    assert cache_directory() != here
