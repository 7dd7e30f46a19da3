"""The sha256 of every lowered program of Stable Diffusion 1.5, 2.1 and XL, to compare two versions of the code.

    python tools/program_fingerprints.py > after.json
    python tools/program_fingerprints.py v2:2x2x1 v5e:2x4 > after-tpu.json    # needs libtpu (docs/tpu.md)

Without an argument the programs are lowered for one CPU device, else for each TPU slice that is named. Nothing is
compiled and no weights are read. Prints a JSON object: cell -> sha256. Equal hashes mean: the compiler gets the same
text, donated arguments included, and the same options. Source locations are left out: a TPU kernel's text has them in
its body, and with them the place of this file system where the code is.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tpusd.preflight.topology import open_topology, prepare_compiler

if TYPE_CHECKING:
    import jax

BATCHES = {"sd15": (1, 4), "sd21": (1, 4), "sdxl": (1, 2)}
PRECISIONS = ("bf16", "fp32")
CPU = "cpu"


def fingerprints(target: str, device_list: "Sequence[jax.Device]") -> Iterator[tuple[str, str]]:
    """(cell, sha256) of each program, a cell as in `cpu/sd15/bf16/4/denoise_unguided`."""
    from tpusd.checkpoints.published import find_architecture
    from tpusd.config.compose import compose_jobs
    from tpusd.config.schema import make_config
    from tpusd.engine.blueprint import Blueprint
    from tpusd.engine.devices import Devices
    from tpusd.plan.sizes import image_size

    devices = Devices(device_list)
    for model, batches in BATCHES.items():
        for precision in PRECISIONS:
            (job,) = compose_jobs([f"model={model}", f"precision={precision}"])
            config = make_config(job.values)
            architecture = find_architecture(config.model)
            height, width = image_size(config, architecture)
            for batch in batches:
                blueprint = Blueprint(
                    architecture, config.precision, height=height, width=width, batch_size_per_device=batch
                )
                programs = {
                    "encode": blueprint.encode(),
                    "denoise": blueprint.denoise(guided=True),
                    "denoise_unguided": blueprint.denoise(guided=False),
                    "decode": blueprint.decode(),
                }
                for name, program in programs.items():
                    text = devices.lower(program).as_text() + repr(sorted(devices.options(program).items()))
                    yield f"{target}/{model}/{precision}/{batch}/{name}", hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    targets = sys.argv[1:] or [CPU]
    if targets != [CPU]:
        prepare_compiler()
    import jax

    jax.config.update("jax_traceback_in_locations_limit", 0)  # no source locations
    found = {}
    for target in targets:
        devices = jax.local_devices(backend="cpu")[:1] if target == CPU else open_topology(target).devices
        start = time.monotonic()
        for cell, digest in fingerprints(target, devices):
            found[cell] = digest
            print(f"{time.monotonic() - start:6.0f} s  {cell}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
