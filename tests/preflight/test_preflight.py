"""Preflight up to the compiler; what needs libtpu is skipped without it."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from support.runs import config

from tpusd.checkpoints.published import find_architecture
from tpusd.config.choices import conf_directory
from tpusd.engine.blueprint import Blueprint, ProgramSpec
from tpusd.errors import UserError
from tpusd.networks.reuse import REUSED
from tpusd.networks.target import V2, V3, V5E, V5P, V6E
from tpusd.preflight import main
from tpusd.preflight.chips import CHIPS
from tpusd.preflight.compilation import Task, compile_program, largest_batch
from tpusd.preflight.flops import count_flops
from tpusd.preflight.hlo_cost import kernel_seconds, program_cost

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
MODELS = sorted(file.stem for file in (conf_directory() / "model").glob("*.yaml") if file.stem != "local")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_choice_has_its_configs_offline(model):
    architecture = find_architecture(config(f"model={model}").model)
    xl = "sdxl" in model
    sizes = {"tiny": 16, "sd21": 96, "sdxl_turbo": 64}
    assert sizes.get(model, 128 if xl else 64) == architecture.configs["unet"].sample_size
    assert architecture.family.name == ("sdxl" if xl else "stable_diffusion")


def test_unknown_repository_is_one_line():
    model = replace(config("model=sd15").model, repo="someone/else")
    with pytest.raises(UserError, match="model.repo=someone/else: its configs are not in the package"):
        find_architecture(model)


# One forward of the UNet in TFLOP at the model's own size, and one decode, as published in the design's figures.
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("model", "unet", "decode"), [("sd15", 0.803, 2.51), ("sdxl", 6.761, 10.47)])
def test_counted_flops_are_those_of_the_published_figures(model, unet, decode):
    architecture = find_architecture(config(f"model={model}").model)
    size = 8 * architecture.configs["unet"].sample_size
    precision = config("precision=bf16").precision
    blueprint = Blueprint(architecture, precision, height=size, width=size, batch_size_per_device=3)
    spec = blueprint.denoise(guided=True)
    work = count_flops(spec.function, *spec.shared, *spec.split)
    assert work.per_trip == pytest.approx(3 * 2 * unet * 1e12, rel=0.002)
    spec = blueprint.decode()
    work = count_flops(spec.function, *spec.shared, *spec.split)
    assert work.once == pytest.approx(3 * decode * 1e12, rel=0.002)


def test_flops_of_loops_and_branches():
    x, w = jnp.zeros((3, 5)), jnp.zeros((5, 5))

    def f(x, w, n):
        x = jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x)
        x = jax.lax.cond(n > 2, lambda: x @ w @ w, lambda: x)
        return jax.lax.fori_loop(0, n, lambda _, x: x @ w, x)

    work = count_flops(f, x, w, 4)
    assert (work.once, work.per_trip) == (2 * 3 * 5 * 5 * (7 + 2), 2 * 3 * 5 * 5)
    image, kernel = jnp.zeros((2, 11, 13, 4)), jnp.zeros((3, 3, 2, 6))
    conv = lambda a, b: jax.lax.conv_general_dilated(  # noqa: E731
        a, b, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert count_flops(conv, image, kernel).once == 2 * (2 * 11 * 13 * 6) * 2 * 9


@pytest.mark.long
@pytest.mark.slow
def test_a_step_that_reuses_has_the_work_of_its_shallow_layers():
    """SD 1.5 at branch 0: three convolutions of 3x3 at full size on the way in and out, a shortcut, and embeddings."""
    architecture = find_architecture(config("model=sd15").model)
    blueprint = Blueprint(
        architecture, config("precision=bf16").precision, height=512, width=512, batch_size_per_device=1
    )
    spec = blueprint.denoise(guided=False, branch=0)
    work = count_flops(spec.function, *spec.shared, *spec.split)
    whole = blueprint.denoise(guided=False)
    assert work.per_trip == count_flops(whole.function, *whole.shared, *whole.split).per_trip
    positions = 64 * 64
    convolutions = 2 * 9 * positions * (4 * 320 + 640 * 320 + 320 * 320 + 320 * 4) + 2 * positions * 640 * 320
    attention = transformer_flops(positions, 320, heads_context=(77, 768))
    embedding = 2 * (320 * 1280 + 1280 * 1280 + 1280 * 320)
    assert work.per_trip - work.reused == pytest.approx(convolutions + attention + embedding, rel=1e-6)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_an_interval_of_three_saves_the_work_that_its_steps_reuse(model):
    """20 guided steps and a decode, of which 13 reuse: what the compiler's estimate is held against."""
    architecture = find_architecture(config(f"model={model}").model)
    size = 8 * architecture.configs["unet"].sample_size
    precision = config("precision=bf16").precision
    blueprint = Blueprint(architecture, precision, height=size, width=size, batch_size_per_device=1)
    spec, decoding = blueprint.denoise(guided=True, branch=0), blueprint.decode()
    work = count_flops(spec.function, *spec.shared, *spec.split)
    decode = count_flops(decoding.function, *decoding.shared, *decoding.split).once
    whole = 20 * work.per_trip + decode
    ratio = whole / (whole - 13 * work.reused)
    print(f"{model}: {ratio:.2f} times the work without a cache")
    assert 1.6 < ratio < 20 / 7


def transformer_flops(positions, c, *, heads_context):
    """One transformer block with its projections: self-attention, cross-attention, a feed-forward of four times c."""
    tokens, width = heads_context
    projections = 2 * positions * c * c * 2
    own = 2 * positions * c * c * 4 + 2 * 2 * positions * positions * c
    cross = 2 * positions * c * c * 2 + 2 * tokens * width * c * 2 + 2 * 2 * positions * tokens * c
    return projections + own + cross + 2 * positions * c * 8 * c + 2 * positions * 4 * c * c


HLO = """\
%body.1 (p: f32[]) -> f32[] {
  %a = f32[] fusion(%p), metadata={op_name="jit(f)/while/body/dot"}, backend_config={"estimated_cycles":"3000"}
  %k = f32[] custom-call(%p), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/attend"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"197000000","transcendentals":"0","bytes_accessed":"8"}}}
}
%known.1 (p: f32[]) -> f32[] {
  %b = f32[] fusion(%p), metadata={op_name="jit(f)/add"}, backend_config={"estimated_cycles":"50"}
}
%cheap (p: f32[]) -> f32[] {
  %c = f32[] fusion(%p), backend_config={"estimated_cycles":"1"}
}
%dear (p: f32[]) -> f32[] {
  %d = f32[] fusion(%p), backend_config={"estimated_cycles":"1000"}
}
%cond.1 (p: (s32[], s32[])) -> pred[] {
  ROOT %lt.1 = pred[] compare(%i, %stop), direction=LT
}
%cond.3 (p: (s32[])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(6)
  ROOT %lt.3 = pred[]{:T(512)} compare(%i, %constant.3), direction=LT
}
ENTRY %main (p: f32[]) -> f32[] {
  %v = f32[] while(%p), condition=%cond.3, body=%known.1
  %w = f32[] while(%p), condition=%cond.1, body=%body.1
  %x = f32[] while(%p), condition=%cond.2, body=%known.1, backend_config={"known_trip_count":{"n":"20"}}
  %y = f32[] conditional(%p), branch_computations={%cheap, %dear}
  %z = f32[] custom-call(%p), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/mystery"}
}
"""  # noqa: E501


CONDITIONAL = (
    "  %r = f32[] conditional(%p), branch_computations={%cheap, %dear}, "
    f'metadata={{op_name="jit(f)/while/body/{REUSED}/cond"}}\n'
)


def test_cost_is_read_by_loop_and_branch():
    chip = CHIPS["v5e"]
    cost = program_cost(HLO, chip)
    assert cost.once.seconds == pytest.approx(((20 + 6) * 50 + 1000) / 1.503e9, rel=1e-3)
    assert cost.per_trip.seconds == pytest.approx(3000 / 1.503e9 + 1e-6, rel=1e-3)
    assert dict(cost.once.unpriced) == {"jit(f)/mystery": 1}
    assert list(cost.per_trip.kernels) == ["jit(f)/attend"]
    with pytest.raises(ValueError, match="not compiled for a TPU"):
        program_cost("ENTRY %main (p: f32[]) -> f32[] {\n}\n", chip)


def test_what_a_step_that_reuses_does_not_cost_is_read_from_its_conditional():
    reused = HLO.replace("%body.1 (p: f32[]) -> f32[] {\n", "%body.1 (p: f32[]) -> f32[] {\n" + CONDITIONAL)
    chip = CHIPS["v5e"]
    cost = program_cost(reused, chip)
    assert cost.reused.seconds == pytest.approx(999 / 1.503e9, rel=1e-3)
    assert cost.per_trip.seconds == pytest.approx(4000 / 1.503e9 + 1e-6, rel=1e-3)
    assert program_cost(HLO, chip).reused.seconds == 0


def test_kernels_cost_what_binds_them():
    chip = CHIPS["v2"]  # two devices share its rates
    assert kernel_seconds(46e12, 0, 0, chip) == pytest.approx(2)
    assert kernel_seconds(1, 0, 0.7e12, chip) == pytest.approx(2)
    assert kernel_seconds(1, 1024 * chip.clock, 0, chip) == pytest.approx(1)


@pytest.mark.parametrize("guess", [1, 2, 7, 8, 9, 40, 4096])
@pytest.mark.parametrize("true", [0, 1, 2, 7, 8, 9, 31, 4096])
def test_largest_batch_is_found_wherever_the_search_begins(true, guess):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= true

    assert largest_batch(fits, guess=guess) == true
    assert len(asked) == len(set(asked)) and len(asked) <= 2 * math.log2(4096) + 2
    if guess == true > 1:
        assert len(asked) <= 2 or true == 4096


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=sd15"], "topology: missing; add the slice, as in topology=v5e:2x4"),
        (["topology=v9:2x2"], "topology=v9:2x2: must be a TPU version and its chips"),
        (["topology=v5e:2x4", "seed=-1"], "seed=-1: must be from 0"),
        (["topology=v5e:2x4", "topology=v4:2x2x1"], "topology=v4:2x2x1: given twice"),
    ],
)
def test_wrong_command_lines_are_one_line(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_libtpu_the_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["model=tiny", "topology=v5e:2x4"]) == 2
    assert "pip install libtpu==" in capsys.readouterr().err


def test_program_that_the_compiler_cannot_show_is_one_line():
    class Program:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: Async done\n requires something")

    # Compiling again leaves nothing on disk either.
    devices = SimpleNamespace(lower=lambda spec: Program(), finish=lambda spec, lowered, more=None: lowered)
    topology = SimpleNamespace(name="v6e:2x4", chip=CHIPS["v6e"])
    with pytest.raises(UserError, match="made the denoise program but cannot show it .*Async done req") as told:
        spec = ProgramSpec(function=None, shared=(), split=())
        task = Task(name="denoise", spec=spec, calls=1, trips=1)
        compile_program(task, devices, topology, weights=0, hlo=None)
    assert "\n" not in str(told.value)


@pytest.mark.tpu_compiler
@pytest.mark.slow
@needs_libtpu
def test_program_that_jaxlib_cannot_read_back_is_read_from_the_compilers_dump(tmp_path):
    code = """
from tpusd.preflight.hlo_cost import program_cost
from tpusd.preflight.hlo_text import hlo_text
from tpusd.preflight.topology import open_topology, prepare_compiler
prepare_compiler()
slice_ = open_topology("v6e:2x4")
import jax, jax.numpy as jnp, json
from jax import lax
from jax.experimental import pallas as pl
n = len(slice_.devices)
def double(x_ref, o_ref):
    o_ref[...] = 2 * x_ref[...]
declared = pl.CostEstimate(flops=7_000_000, transcendentals=5_000, bytes_accessed=3_000)
doubled = lambda x: pl.pallas_call(double, out_shape=x, cost_estimate=declared)(x)
step = lambda x, stop: lax.fori_loop(0, stop, lambda i, x: jnp.tanh(x @ doubled(x)), x).sum()
mapped = jax.pmap(step, in_axes=(0, None), devices=list(slice_.devices))
lowered = mapped.lower(jax.ShapeDtypeStruct((n, 512, 512), jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.int32))
compiled = lowered.compile()
class Unreadable:
    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: Async done requires something")
again = lambda dump: lowered.compile(compiler_options=dump)
costs = [program_cost(text, slice_.chip) for text in (compiled.as_text(), hlo_text(Unreadable(), again))]
print(json.dumps([[cost.once.by_op, cost.per_trip.by_op, cost.per_trip.kernels] for cost in costs]))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    read_back, from_the_dump = json.loads(done.stdout.splitlines()[-1])
    assert from_the_dump == read_back and sum(read_back[1].values()) > 0 and len(read_back[2]) == 1
    assert not list(tmp_path.glob("tpusd-hlo-*"))


@pytest.mark.tpu_compiler
@pytest.mark.slow
@needs_libtpu
def test_every_topology_has_its_chips_devices():
    code = """
import json
from tpusd.preflight.topology import EXAMPLES, open_topology, prepare_compiler
prepare_compiler()
slices = [open_topology(name) for name in EXAMPLES.split(", ")]
print(json.dumps([[s.name, len(s.devices), s.num_chips * s.chip.devices, s.chip.cores] for s in slices]))
print(json.dumps([s.devices[0].num_cores for s in slices]))
print(json.dumps({s.name: s.devices[0].device_kind for s in slices}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    slices, cores, kinds = map(json.loads, done.stdout.splitlines())
    assert len(slices) == 6
    assert (kinds["v5e:2x4"], kinds["v5p:2x2x1"], kinds["v6e:2x4"]) == (V5E, V5P, V6E)
    assert (kinds["v2:2x2x1"], kinds["v3:2x2x1"]) == (V2, V3)
    for (name, devices, expected, chip_cores), device_cores in zip(slices, cores, strict=True):
        assert devices == expected, name
        assert device_cores == (1 if name.startswith(("v2", "v3")) else chip_cores), name


@pytest.mark.tpu_compiler
@pytest.mark.slow
@needs_libtpu
def test_preflight_of_a_small_run_on_a_v5e():
    arguments = ["topology=v5e:2x2", "model=tiny", "height=64", "width=64", "batch_size_per_device=2"]
    more = ["num_images_per_prompt=3", "sampler.num_inference_steps=7", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tpusd.preflight", *arguments, *more],
        capture_output=True, text=True, timeout=300, env={**os.environ, "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("tpusd: compiling")]
    assert [line.split()[2] for line in told] == ["encode", "denoise", "decode"]
    report = json.loads(done.stdout)
    assert (report["num_devices"], report["num_compilations"], report["model_calls"]) == (4, 3, 8)
    assert report["fits"] and report["weights_bytes"] < report["peak_bytes"] < report["memory_bytes"] < 16 * 2**30
    denoise = report["programs"]["denoise"]
    assert denoise["calls_per_batch"] == 1 and denoise["seconds"] < 0.5
    assert report["seconds_per_image"] > report["floor_seconds_per_image"] > 0
    assert report["flops_per_image"] * 2 == pytest.approx(sum(p["flops"] for p in report["programs"].values()))
