"""JAX's errors that are the machine's: one line with what to do."""

from types import SimpleNamespace

import pytest
from support.runs import StandInPipeline, config, prepare

from tpusd.engine.faults import local_devices, out_of_memory
from tpusd.errors import UserError
from tpusd.run import main
from tpusd.runs.start import start_run

# As the platforms word it.
GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes."
CPU = "RESOURCE_EXHAUSTED: Out of memory allocating 137438953472 bytes."
TPU_RUN = (
    "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 2.00G. That was not possible. "
    "There are 1.05G free.; (0x0x0_HBM0)"
)
TPU_COMPILE = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.49G of 15.48G "
    "hbm. Exceeded hbm capacity by 2.01G.\n\nTotal hbm usage >= 18.01G:\n    reserved        530.00M\n"
)
DEVICE = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 16 << 30})
BARE = SimpleNamespace(memory_stats=lambda: None)


@pytest.mark.parametrize("text", [GPU, CPU, TPU_RUN, TPU_COMPILE])
def test_out_of_memory_says_how_much_and_what_to_try(text):
    line = out_of_memory(RuntimeError(text), [DEVICE], 8)
    assert line is not None and "\n" not in line and len(line) < 400
    assert "a device has 16.0 GiB" in line and "batch_size_per_device=8: try 4" in line and "tpusd.preflight" in line
    assert text.removeprefix("RESOURCE_EXHAUSTED: ")[:30] in line


def test_a_batch_of_one_has_other_remedies():
    line = out_of_memory(RuntimeError(GPU), [BARE], 1)
    assert line is not None and "34359738368 bytes" in line
    assert "precision=bf16" in line and "a device has" not in line


def test_any_other_error_stays_what_it_is():
    assert out_of_memory(RuntimeError("INTERNAL: memory"), [DEVICE], 8) is None


def test_a_run_that_is_out_of_memory_ends_in_one_line(tmp_path):
    made = config("prompts=portraits", f"output={tmp_path / 'run'}", "batch_size_per_device=4")
    pipeline = StandInPipeline(fails_at=0, error=RuntimeError(TPU_RUN))
    with pytest.raises(UserError, match="out of device memory .*batch_size_per_device=4: try 2"):
        start_run(made, prepare=prepare, load=lambda *_: pipeline)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(platform, monkeypatch, tmp_path, capsys):
    """JAX's own errors for each: an assertion, or a RuntimeError."""
    import jax

    def fails():
        if platform == "cuda":
            raise AssertionError
        raise RuntimeError(f"Unable to initialize backend '{platform}'")

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(jax, "local_devices", fails)
    with pytest.raises(UserError, match=f"JAX_PLATFORMS={platform}: JAX has no such device"):
        local_devices()
    assert main(["prompt=a portrait", f"output={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.count("JAX_PLATFORMS=") == 1
    assert not (tmp_path / "run").exists()


def test_an_error_of_jax_that_nobody_asked_for_is_not_hidden(monkeypatch):
    import jax

    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(jax, "local_devices", lambda: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        local_devices()
