"""Trains a ControlNet for the embedded model: the portrait follows an outline.

    python -m training.controlnet DIR --steps 3000
    python -m training.controlnet DIR --steps 3000 --export tpusd/assets/controlnets/outline

A copy of the UNet's first half learns (Zhang et al. 2023); the model itself stays. Goes on from the newest checkpoint.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpusd.checkpoints.save import save_part
from tpusd.families.controls import CONTROLNET_COMPONENT
from tpusd.networks.controlnet import ControlNetConfig, ControlNetModel
from training.captions import draw_captions
from training.denoiser import Denoiser, make_loss, unet_config
from training.exported import load_exported
from training.fit import fit, make_optimizer, make_step, random_params, restore, start_state
from training.lora import TINY, embedded_latents
from training.outlines import drawn, outline
from training.pool import make_pictures
from training.text_encoder import tokenizer_in

SEED = 71
CAPTION_DROPOUT = 0.3  # the outline must be followed where the text does not say what it shows
COPIED = ("conv_in", "time_embedding", "down_blocks", "mid_block")  # of the UNet
WIDTHS = (8, 16, 32, 48)  # of the convolutions from pixels to latents


def controlnet_config() -> ControlNetConfig:
    """The embedded UNet's first half."""
    return dataclasses.replace(ControlNetConfig.of_unet(unet_config()), conditioning_embedding_out_channels=WIDTHS)


class Controlled(Denoiser):
    """UNet, text encoder and ControlNet. Its third input is (tokens, pictures (b,H,W,3) in 0..1)."""

    def __init__(self, vocab_size: int, rngs: nnx.Rngs):
        super().__init__(vocab_size, rngs)
        self.controlnet = ControlNetModel(controlnet_config(), rngs=rngs)

    def __call__(self, latents, timesteps, inputs):
        input_ids, pictures = inputs
        context = self.text_encoder(input_ids).last_hidden_state
        added = self.controlnet(latents, timesteps, context, picture=self.controlnet.embed(pictures))
        return self.unet(latents, timesteps, context, residuals=added)


def first_controlnet(unet: nnx.State) -> nnx.State:
    """A copy of the UNet's first half that adds nothing yet."""
    _, params = random_params(ControlNetModel, controlnet_config(), seed=SEED)
    for name in COPIED:
        params[name] = jax.tree.map(jnp.copy, unet[name])
    for name in ("controlnet_down_blocks", "controlnet_mid_block"):
        params[name] = jax.tree.map(jnp.zeros_like, params[name])
    last = params["controlnet_cond_embedding"]["conv_out"]
    params["controlnet_cond_embedding"]["conv_out"] = jax.tree.map(jnp.zeros_like, last)
    return params


def load_pairs(directory: Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(latents (n,16,16,4) as the denoiser sees them, outlines (n,128,128) bool, labels); drawn once, then kept."""
    files = [directory / f"{name}_{count}.npy" for name in ("latents", "outlines", "labels")]
    if not all(file.exists() for file in files):
        images, labels = make_pictures(count, seed=SEED)
        np.save(files[0], embedded_latents(images))
        np.save(files[1], outline(images))
        np.save(files[2], labels)
    return tuple(np.load(file) for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--export", type=Path, help="write the newest checkpoint to this folder, and train no further")
    args = parser.parse_args()

    unet, text_encoder = (load_exported(TINY, part) for part in ("unet", "text_encoder"))
    tokenizer = tokenizer_in(TINY)
    optimizer = make_optimizer(args.learning_rate, args.steps)
    start = start_state(first_controlnet(unet), optimizer)
    if args.export is not None:
        state = restore(args.directory / "checkpoints", start)
        assert state is not None, f"{args.directory}: no checkpoint"
        config = controlnet_config()
        save_part(args.export, "controlnet", CONTROLNET_COMPONENT, config, state.ema, dtype=np.dtype("float16"))
        return

    args.directory.mkdir(parents=True, exist_ok=True)
    latents, outlines, labels = load_pairs(args.directory, args.pictures)
    graphdef = nnx.split(nnx.eval_shape(lambda: Controlled(tokenizer.vocab_size, rngs=nnx.Rngs(0))))[0]
    velocity_error = make_loss(graphdef)

    def batch_of(step):
        rng = np.random.default_rng([SEED, step])
        chosen = rng.integers(len(latents), size=args.batch_size)
        captions = draw_captions(labels[chosen], rng, CAPTION_DROPOUT)
        pictures = drawn(outlines[chosen]).astype(np.float32) / 255
        return latents[chosen], (tokenizer(captions).input_ids, pictures)

    def loss(controlnet, batch, key):
        whole = nnx.State({"controlnet": controlnet, "text_encoder": text_encoder, "unet": unet})
        return velocity_error(whole, batch, key)

    fit(args.directory, start, make_step(loss, optimizer), batch_of, steps=args.steps, seed=SEED)


if __name__ == "__main__":
    main()
