"""Trains the autoencoder's decoder further, on the latents that the denoiser was trained with, which stay as they are.

    python -m training.decoder DIR --steps 2000

Needs `autoencoder` and what training.denoiser left beside DIR. Goes on from DIR's newest checkpoint. training.export
takes this decoder where there is one.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from training.autoencoder import LATENT_NOISE, face_weight, picture_loss
from training.denoiser import DECODER_PARTS, SEED, load_autoencoder, load_latents, load_scaling_factor
from training.fit import fit, make_optimizer, make_step, start_state
from training.pool import load_pictures, sheet, to_uint8


def make_loss(graphdef, fixed):
    """`picture_loss` of decoded noisy latents. fixed: all parameters, of which DECODER_PARTS are trained."""
    weight = jnp.asarray(face_weight())

    def loss(params, batch, key):
        latents, images = batch
        noise_key, share_key = jax.random.split(key)
        share = LATENT_NOISE * jax.random.uniform(share_key, (len(images), 1, 1, 1))
        noisy = latents + share * jax.random.normal(noise_key, latents.shape)
        return picture_loss(decode(graphdef, fixed, params, noisy), images.astype(jnp.float32) / 127.5 - 1.0, weight)

    return loss


def decode(graphdef, fixed, params, latents):
    """latents (b,16,16,4) as the encoder gives them -> (b,128,128,3) in about -1..1, by the decoder `params`."""
    return nnx.merge(graphdef, nnx.State({**fixed, **params})).decode(latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--pictures", type=int, default=30000, help="as training.denoiser was given")
    args = parser.parse_args()
    root = args.directory.parent

    latents, _ = load_latents(root, args.pictures)
    latents = latents / np.float32(load_scaling_factor(root))
    images, _ = load_pictures(root / "pictures", args.pictures, seed=SEED)
    graphdef, fixed = load_autoencoder(root / "autoencoder")
    params = {name: fixed[name] for name in DECODER_PARTS}
    optimizer = make_optimizer(args.learning_rate, args.steps)
    show = jax.jit(lambda params: decode(graphdef, fixed, params, latents[:8]))

    def batch_of(step):
        chosen = np.random.default_rng([SEED, step]).integers(len(images), size=args.batch_size)
        return latents[chosen], np.stack([images[i] for i in chosen])

    def sample(state):
        return Image.fromarray(sheet(np.concatenate([images[:8], to_uint8(show(state.ema))]), 8)).resize((1536, 384))

    args.directory.mkdir(parents=True, exist_ok=True)
    step = make_step(make_loss(graphdef, fixed), optimizer)
    fit(args.directory, start_state(params, optimizer), step, batch_of, steps=args.steps, seed=SEED, sample=sample)


if __name__ == "__main__":
    main()
