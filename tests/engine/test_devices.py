from types import SimpleNamespace

import jax
import pytest

from tpusd.engine.blueprint import ProgramSpec
from tpusd.engine.compiler_options import CPU_OPTIONS
from tpusd.engine.devices import Devices
from tpusd.networks.target import V6E

OPTIONS = {"xla_tpu_an_option": False, "xla_tpu_another": 2}
OPTIONS_OF_KIND = {"xla_tpu_another": 3}


class Lowered:
    """Compiles unless it is told an option that it does not know."""

    def __init__(self, known=(), fault=""):
        self.known, self.fault, self.told = known, fault, []

    def compile(self, compiler_options=None):
        self.told.append(compiler_options)
        if set(compiler_options or ()) - set(self.known):
            raise jax.errors.JaxRuntimeError(self.fault)
        return "compiled"


def finish(platform: str, lowered: Lowered, kind: str = "some kind") -> list:
    devices = Devices(jax.local_devices()[:1])
    devices.devices = (SimpleNamespace(platform=platform, device_kind=kind),)
    spec = ProgramSpec(function=None, shared=(), split=(), options={"tpu": OPTIONS, V6E: OPTIONS_OF_KIND})
    assert devices.finish(spec, lowered) == "compiled"
    return lowered.told


def test_options_are_for_their_own_platform_alone():
    assert finish("tpu", Lowered(known=OPTIONS)) == [OPTIONS]
    assert finish("cpu", Lowered()) == [None]


def test_options_of_a_kind_of_device_go_before_those_of_its_platform():
    assert finish("tpu", Lowered(known=OPTIONS), V6E) == [{"xla_tpu_an_option": False, "xla_tpu_another": 3}]


@pytest.mark.parametrize(
    "fault",
    [
        "INVALID_ARGUMENT: No such compile option: 'xla_tpu_an_option'",
        "INVALID_ARGUMENT: While setting option, 'X' is not a valid enum value.",
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem while allocating",
    ],
)
def test_compiler_that_cannot_do_with_an_option_goes_without(fault):
    assert finish("tpu", Lowered(fault=fault)) == [OPTIONS, None]


def test_further_options_stay_where_the_specs_are_dropped():
    devices = Devices(jax.local_devices()[:1])
    devices.devices = (SimpleNamespace(platform="tpu", device_kind="some kind"),)
    spec = ProgramSpec(function=None, shared=(), split=(), options={"tpu": OPTIONS})
    lowered = Lowered(known={"dump"}, fault="No such compile option")
    devices.finish(spec, lowered, {"dump": "here"})
    assert lowered.told == [{**OPTIONS, "dump": "here"}, {"dump": "here"}]


def test_other_faults_are_not_hidden():
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        finish("tpu", Lowered(fault="RESOURCE_EXHAUSTED: no room"))


def test_cpu_compiler_knows_the_options_that_it_is_told():
    """A name that JAX has dropped would be passed over in silence, and the time it saves lost."""
    jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile(compiler_options=CPU_OPTIONS)
