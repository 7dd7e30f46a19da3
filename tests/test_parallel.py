from types import SimpleNamespace

import jax
import pytest

from tpusd.blueprint import Source
from tpusd.parallel import Devices

OPTIONS = {"xla_tpu_an_option": False}


class Lowered:
    """Compiles unless it is told an option that it does not know."""

    def __init__(self, known=(), fault="INVALID_ARGUMENT: No such compile option: 'xla_tpu_an_option'"):
        self.known, self.fault, self.told = known, fault, []

    def compile(self, compiler_options=None):
        self.told.append(compiler_options)
        if set(compiler_options or ()) - set(self.known):
            raise jax.errors.JaxRuntimeError(self.fault)
        return "compiled"


def finish(platform: str, lowered: Lowered) -> list:
    devices = Devices(jax.local_devices()[:1])
    devices.devices = (SimpleNamespace(platform=platform),)
    source = Source(function=None, shared=(), split=(), tpu_options=OPTIONS)
    assert devices.finish(source, lowered) == "compiled"
    return lowered.told


def test_options_are_for_the_tpu_compiler_alone():
    assert finish("tpu", Lowered(known=OPTIONS)) == [OPTIONS]
    assert finish("cpu", Lowered()) == [None]


def test_compiler_that_does_not_know_an_option_goes_without():
    assert finish("tpu", Lowered()) == [OPTIONS, None]
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        finish("tpu", Lowered(fault="RESOURCE_EXHAUSTED: no room"))
