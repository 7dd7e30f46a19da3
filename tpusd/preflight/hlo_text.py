"""The text of a compiled TPU program's optimised HLO, also where jaxlib cannot read back what the compiler made."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

FINAL = "*after_codegen.txt"  # of the compiler's dumps the one that carries estimated_cycles


def hlo_text(compiled: jax.stages.Compiled, again: Callable[[dict[str, bool | str]], object]) -> str:
    """Compiles once more, and takes what the compiler writes to disk, where `compiled` cannot be printed: libtpu 0.0.52
    makes programs for v6e of which jaxlib 0.10.2 says "Async done requires its operand to be an asynchronous op".

    again: compiles the same with options of the compiler added. Raises jax.errors.JaxRuntimeError where that does not
    help.
    """
    try:
        text = compiled.as_text()
        assert text is not None
        return text
    except jax.errors.JaxRuntimeError as error:
        with tempfile.TemporaryDirectory(prefix="tpusd-hlo-") as directory:
            again({"xla_dump_to": directory, "xla_dump_hlo_as_text": True})
            found = list(Path(directory).glob(FINAL))
            if len(found) != 1:
                raise error
            return found[0].read_text()
