"""One forward of a full-size SD 1.5 UNet with random weights, against PyTorch diffusers: what docs/log.md quotes.

    python -m tools.compare_full_size            # needs the `parity` extra, 14 GB of memory and 4 GB of disk

The weights are PyTorch's own initialisation, saved by diffusers and read by our loading path, in float32.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from flax import nnx

from tpusd.checkpoints.fill import fill
from tpusd.checkpoints.formats.safetensors import Safetensors
from tpusd.families.latent_diffusion import UNET_COMPONENT
from tpusd.networks.abstract import abstract_model
from tpusd.networks.unet import UNet2DConditionModel as OurUNet
from tpusd.networks.unet_config import UNetConfig

REFERENCE = Path(__file__).parents[1] / "tpusd" / "assets" / "published"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("sd15", "sd21"), default="sd15")
    parser.add_argument("--size", type=int, default=64, help="of the latents")
    args = parser.parse_args()
    values = UNet2DConditionModel.load_config(str(REFERENCE / args.model / "unet"))
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((1, args.size, args.size, 4), np.float32)
    text = rng.standard_normal((1, 77, values["cross_attention_dim"]), np.float32)
    times = np.array([481.0], np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        model = UNet2DConditionModel.from_config(values).eval()
        model.save_pretrained(scratch, max_shard_size="10GB")
        start = time.monotonic()
        with torch.no_grad():
            theirs = model(torch.tensor(sample).permute(0, 3, 1, 2), torch.tensor(times), torch.tensor(text)).sample
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        print(f"PyTorch: {time.monotonic() - start:.1f} s")
        del model
        config = UNetConfig.from_dict(values)
        abstract = abstract_model(OurUNet, config, dtype=jnp.float32, param_dtype=jnp.float32)
        source = Safetensors((Path(scratch) / "diffusion_pytorch_model.safetensors",))
        state = fill(abstract, UNET_COMPONENT, source, dtype=jnp.float32, where=args.model)
    graph = nnx.split(abstract)[0]
    forward = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    start = time.monotonic()
    compiled = forward.lower(state, sample, times, text).compile()
    print(f"JAX: compiled in {time.monotonic() - start:.1f} s")
    start = time.monotonic()
    ours = np.asarray(compiled(state, sample, times, text))
    print(f"JAX: {time.monotonic() - start:.1f} s")
    difference = np.abs(ours - theirs).max()
    print(
        f"{args.model} UNet, {args.size}x{args.size} latents, float32: largest difference {difference:.2e}, "
        f"{difference / np.abs(theirs).max():.2e} of the largest value"
    )


if __name__ == "__main__":
    main()
