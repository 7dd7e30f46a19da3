"""libtpu on a machine without a TPU, where it is the compiler of `tpusd.preflight` and nothing else."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from tpusd.engine import platforms
from tpusd.engine.compile_cache import cache_directory
from tpusd.records import provenance

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with libtpu and nothing else. `has(...)` adds packages and files; `chosen()` is what JAX is left to."""
    packages = {"libtpu"}
    find_spec = importlib.util.find_spec
    known = {"libtpu", "jax_plugins"}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: (
            (ModuleSpec(name, None) if name in packages else None) if name in known else find_spec(name, *more)
        ),
    )
    monkeypatch.setattr(platforms, "_DEVICE_FILES", (f"{tmp_path}/dev/accel*", f"{tmp_path}/dev/vfio/[0-9]*"))
    monkeypatch.setattr(platforms, "_PCI_DEVICES", f"{tmp_path}/pci/*")
    for name in [name for name in os.environ if name.startswith("TPU_")]:
        monkeypatch.delenv(name)
    values = {"jax_platforms": None}
    monkeypatch.setattr(jax, "config", SimpleNamespace(values=values, update=values.__setitem__))

    class Machine:
        def has(self, name, text=None):
            if text is None:
                packages.symmetric_difference_update({name})
                return
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

        def chosen(self):
            platforms.leave_out_absent_tpu()
            return values["jax_platforms"]

    return Machine()


def test_libtpu_without_a_tpu_is_not_asked_for_devices(machine):
    machine.has("pci/0/vendor", "0x8086\n")
    machine.has("pci/1/vendor", "0x1ae0\n")  # a virtual network card of Google's cloud
    machine.has("pci/1/class", "0x020000\n")
    assert machine.chosen() == "cpu"


@pytest.mark.parametrize(
    ("name", "text"),
    [("dev/accel0", ""), ("dev/vfio/0", ""), ("pci/0/vendor", "0x1ae0\n"), ("libtpu", None), ("jax_plugins", None)],
)
def test_a_tpu_or_a_plugin_leaves_the_choice_to_jax(machine, name, text):
    machine.has(name, text)
    if name.startswith("pci"):
        machine.has("pci/0/class", "0x120000\n")
    assert machine.chosen() is None


@pytest.mark.parametrize("name", ["TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "JAX_FORCE_TPU_INIT"])
def test_a_variable_of_a_tpu_vm_leaves_the_choice_to_jax(machine, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    assert machine.chosen() is None


def test_what_libtpu_sets_by_itself_is_no_sign_of_a_tpu(machine, monkeypatch):
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/somewhere/libtpu.so")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert machine.chosen() == "cpu"


def test_the_users_choice_of_a_platform_stays(machine):
    jax.config.update("jax_platforms", "tpu,cpu")
    assert machine.chosen() == "tpu,cpu"


def test_programs_are_found_again_when_libtpu_is_installed(monkeypatch):
    """On a machine without a TPU they were compiled once more."""
    before = cache_directory()
    installed = provenance.versions() | {"libtpu": "0.0.99"}
    monkeypatch.setattr(provenance, "versions", lambda: dict(installed))
    assert cache_directory() == before
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert cache_directory() != before


@pytest.mark.tpu_compiler
def test_a_run_with_libtpu_prints_nothing_foreign(tmp_path):
    pytest.importorskip("libtpu")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tpusd.run", "prompts=portraits", "dry_run=true"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.endswith("nothing was made\n")
