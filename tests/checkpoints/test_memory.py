import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

# A separate process, so that the peak is this load's own. Anonymous memory: the file's own mapped pages do not count,
# the kernel takes them back whenever it likes.
SCRIPT = """
    import sys, threading, time
    from pathlib import Path
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from safetensors.numpy import save_file
    from tpusd.checkpoints.fill import Matched, fill
    from tpusd.checkpoints.formats.safetensors import Safetensors
    from tpusd.families.latent_diffusion import UNET_COMPONENT

    LAYERS, WIDTH = 20, 2048  # 20 x 16 MiB in float32

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(LAYERS)])

    def anonymous():
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    file = Path(sys.argv[1])
    save_file({f"layers.{i}.weight": np.full((WIDTH, WIDTH), i, np.float32) for i in range(LAYERS)}, file)
    model = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    jax.device_put(np.zeros(3)).block_until_ready()
    before, peak, done = anonymous(), 0.0, False

    def watch():
        global peak
        while not done:
            peak = max(peak, anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    matched = Matched.of(model, UNET_COMPONENT, Safetensors((file,)), "file")
    state = fill(matched, dtype=jnp.dtype(sys.argv[2]))
    jax.block_until_ready(state)
    done = True
    thread.join()
    assert all(float(x[0, 0]) == i for i, (_, v) in enumerate(nnx.to_flat_state(state)) for x in [v.get_value()])
    print(peak - before)
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype, parameters_mib", [("float32", 320), ("bfloat16", 160)])
def test_loading_takes_the_parameters_and_a_few_tensors_of_memory(tmp_path, dtype, parameters_mib):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "x.safetensors"), dtype]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < parameters_mib + 160  # ten tensors; a second copy would be twenty
