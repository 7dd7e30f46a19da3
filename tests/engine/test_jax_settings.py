"""JAX's own settings: none of them changes a bit of an image in silence."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import INLINE, StandInPipeline, config, prepare

from tpusd.engine.blueprint import ProgramSpec
from tpusd.engine.devices import Devices
from tpusd.engine.jax_settings import NOTED, REFUSED, SET, check_settings, noted_settings, usual_settings
from tpusd.engine.noise import image_key, initial_latents, step_noise
from tpusd.errors import UserError
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")

# Options that change no bit of what tpusd computes, by the reason; the rest of the name is a pattern.
WITHOUT_EFFECT = {
    "our code does without it: keys are made of bits, no jnp.random of a default kind, no gradients, no gumbel": (
        "random_seed_offset|enable_custom_prng|high_dynamic_range_gumbel|disable_bwd_checks|"
        "custom_vjp3|remat3|scan3|log_checkpoint_residuals|use_direct_linearize|bcoo_cusparse_lowering|ragged_dot.*|"
        "jax2tf_.*|export_.*|serialization_version|error_checking_behavior_.*|mutable_array_checks|refs_to_pins|"
        "disallow_mesh_context_manager|disable_vmap_shmap_error|check_static_indices|explicit_x64_dtypes|"
        "remat_barrier_no_cotangents"
    ),
    "it says, logs, dumps or checks": (
        "log_.*|logging_level|debug_.*|explain_.*|traceback_.*|include_.*|tracer_error_.*|dump_.*|pprint_.*|"
        "distributed_debug|enable_checks|check_.*|captured_constants_.*|compiler_detailed_.*|hlo_source_file_.*|"
        "source_url_schema|send_traceback_to_runtime|pallas_verbose_errors|pallas_enable_debug_checks|thread_guard|"
        "array_garbage_collection_guard|transfer_guard_.*|raise_persistent_cache_errors|"
        "experimental_unsafe_xla_runtime_errors|mosaic_unzip_debug_locations|raise_on_ppermute_sort_diff"
    ),
    "it keeps compiled programs, by a key that holds all that makes them": (
        "compilation_cache_.*|enable_compilation_cache|persistent_cache_.*|share_binary_.*|"
        "remove_custom_partitioning_ptr_from_cache_key|pgle_.*"
    ),
    "it chooses devices, which run.json names": (
        "platform_name|platforms|xla_backend|backend_target|.*_visible_devices|num_cpu_devices|default_device|"
        "cpu_.*|cross_host_.*|force_dcn_.*|pjrt_client_create_options|mock_.*|sort_devices_by_process_index|"
        "enable_preemption_service|enable_recoverability|distributed_verify_secure_credentials|mtls_.*"
    ),
    "it is how JAX hands a program over, whose digest run.json has": (
        "vma|auto_pcast|eager_constant_folding|embedded_constants_max_bytes|use_simplified_jaxpr_constants|"
        "softmax_custom_jvp|remove_size_one_mesh_axis_from_type|use_emit_pipeline_primitive|mosaic_allow_hlo|enable_x64|"
        "custom_jvp3|pallas_auto_assign_collective_ids.*|use_cpp_shard_args|use_rgv3"
    ),
}
SHAPE = (4, 2, 3)  # c, h, w


def test_every_option_of_the_installed_jax_is_known():
    """A new one is to be looked at: does it change noise (REFUSED or SET), pixels (NOTED), or nothing?"""
    ours = {*SET, *REFUSED, *NOTED}
    patterns = [re.compile(f"(?:jax_|check_)?(?:{pattern})") for pattern in WITHOUT_EFFECT.values()]
    known = {name for name in jax.config.values if any(pattern.fullmatch(name) for pattern in patterns)}
    assert sorted(set(jax.config.values) - known - ours) == []
    assert {*SET, *REFUSED} - {"jax_accurate_erf_inv"} <= set(jax.config.values)


@contextlib.contextmanager
def option(name, value):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


OTHER_VALUES = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_threefry_partitionable": False,
    "jax_default_prng_impl": "rbg",
    "jax_legacy_prng_key": "error",
    "jax_debug_key_reuse": True,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_disable_jit": True,
    "jax_no_tracing": True,
    "jax_no_execution": True,
    "jax_transfer_guard": "disallow",
}


def program(keys, x):
    """Noise, numbers of several types, ranks that differ, and infinity on the way."""
    y = x.astype(jnp.bfloat16) * jnp.float32(3) + np.arange(3)
    noise = initial_latents(keys, SHAPE), step_noise(keys, 3, SHAPE)
    return noise, y, jnp.where(x > 100, x, 1 / (x * 0)), jnp.arange(3) * 0.1


@pytest.fixture(scope="module")
def spec():
    return ProgramSpec(
        function=program,
        shared=(),
        split=(jax.ShapeDtypeStruct((2, 2), jnp.uint32), jax.ShapeDtypeStruct((2, 3), jnp.float32)),
    )


def made(spec):
    """The text of a program, and what it computes of two keys."""
    jax.clear_caches()
    devices = Devices(jax.local_devices()[:1])
    keys = np.stack([image_key(5, 3, 2), image_key(5, 0, 1, 9)])
    lowered = devices.lower(spec)
    with usual_settings():
        call = devices.finish(spec, lowered)
        found = call(*devices.put_split((keys, np.ones((2, 3), np.float32))))
        return lowered.as_text(), [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(found)]


@pytest.fixture(scope="module")
def usual(spec):
    return made(spec)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", SET)
def test_settings_of_others_change_neither_a_program_nor_its_results(spec, usual, name):
    with option(name, OTHER_VALUES[name]):
        assert made(spec) == usual
        assert jax.config.values[name] == OTHER_VALUES[name]  # and stay as the others want them


def test_each_set_option_has_another_value_here():
    assert OTHER_VALUES.keys() == SET.keys()
    assert all(OTHER_VALUES[name] != value for name, (_, value) in SET.items())


@pytest.mark.parametrize(
    "flags",
    [
        "--xla_cpu_enable_fast_math=true",
        "--xla_cpu_enable_fast_math",
        "--xla_foo=1  --xla_backend_optimization_level=0",
        "--xla_cpu_max_isa=SSE4_2",
        "--xla_disable_hlo_passes=fusion,algsimp",
    ],
)
def test_flags_that_change_the_noise_are_refused(flags):
    with pytest.raises(UserError, match=r"XLA_FLAGS=--xla_\w+(=[\w,]+)?: changes the noise of every image"):
        check_settings({"XLA_FLAGS": flags})


def test_usual_flags_are_not_refused():
    check_settings({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false --xla_cpu_max_isa=avx2 --xla_foo"})
    check_settings({})


def test_options_that_change_the_noise_are_refused(tmp_path):
    with option("jax_disable_most_optimizations", True):
        with pytest.raises(UserError, match="JAX_DISABLE_MOST_OPTIMIZATIONS=True: changes the noise"):
            start_run(config(f"output={tmp_path / 'run'}", INLINE), prepare=prepare, load=lambda *_: StandInPipeline())
    assert list(tmp_path.iterdir()) == []


def test_usual_options_are_not_noted():
    assert noted_settings() == {}


@pytest.mark.slow
def test_resume_and_reproduce_say_that_an_option_differs(tmp_path, capsys):
    path = tmp_path / "run"
    values = f"output={path}", INLINE
    with pytest.raises(UserError):
        failing = StandInPipeline(fails_at=1, error=UserError("stopped"))
        start_run(config(*values), prepare=prepare, load=lambda *_: failing)
    with option("jax_default_matmul_precision", "highest"):
        assert noted_settings() == {"jax_default_matmul_precision": "highest"}
        resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
    said = capsys.readouterr().err
    line = "settings.jax_default_matmul_precision: null -> highest; pixels may differ in their last bits"
    assert f"continues with {line}" in said and said.count("continues with") == 1
    assert line in (path / "run.log").read_text()
    reproduce(path, [f"output={tmp_path / 'again'}"], prepare=prepare, load=lambda *_: StandInPipeline())
    assert "changed: settings.jax_default_matmul_precision: highest -> null" in capsys.readouterr().out
