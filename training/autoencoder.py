"""Trains the autoencoder on drawn portraits.

    python -m training.autoencoder DIR --steps 4000 --crop 64 --batch-size 16
    python -m training.autoencoder DIR --steps 4500

First on pieces of pictures, which give more steps an hour; then on whole ones, whose norm statistics are those of use.
Goes on from DIR's newest checkpoint. DIR is not for version control.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from tpusd.networks.vae import AutoencoderKL, VAEConfig
from tpusd.scores.portraits.draw import SIZE
from training.exported import load_exported
from training.fit import fit, make_optimizer, make_step, random_params, start_state
from training.pool import load_pictures, make_pictures, sheet, to_float, to_uint8

CONFIG = VAEConfig(
    block_out_channels=(16, 16, 32, 64), layers_per_block=1, norm_num_groups=8, sample_size=SIZE, scaling_factor=1.0
)
KL_WEIGHT = 1e-3  # keeps latents near unit scale and the decoder used to a little noise in them
EDGE_WEIGHT = 0.5
# The decoder also sees latents with up to so much noise: what the denoiser gets wrong by less leaves flat areas flat.
LATENT_NOISE = 0.4
FACE = (slice(42, 100), slice(34, 94))  # rows and columns that eyes and mouth may cover: small parts, many attributes
FACE_WEIGHT = 2.0
SEED = 11


def make_model() -> tuple:
    """(graphdef, parameters) at the random start."""
    return random_params(AutoencoderKL, CONFIG, seed=SEED)


def face_weight() -> np.ndarray:
    """(128,128,1): how much a pixel counts, 1 in the mean."""
    weight = np.ones((SIZE, SIZE, 1), np.float32)
    weight[FACE] = FACE_WEIGHT
    return weight / weight.mean()


def picture_loss(made, images, weights) -> jax.Array:
    """Weighted L1 of pixels and of the differences of neighbours. made, images (b,h,w,3), weights ([b,]h,w,1)."""
    difference = (made - images) * weights
    edges = jnp.abs(jnp.diff(difference, axis=1)).mean() + jnp.abs(jnp.diff(difference, axis=2)).mean()
    return jnp.abs(difference).mean() + EDGE_WEIGHT * edges


def make_loss(graphdef):
    """`picture_loss` of what is decoded from noisy latents, and the KL of the latents to a unit normal."""
    weight = jnp.asarray(face_weight())

    def loss(params, batch, key):
        images, corners = batch
        model = nnx.merge(graphdef, params)
        piece = (images.shape[1], images.shape[2], 1)
        weights = jax.vmap(lambda corner: jax.lax.dynamic_slice(weight, (*corner, 0), piece))(corners)
        images = images.astype(jnp.float32) / 127.5 - 1.0
        mean, logvar = model.encode(images)
        noise_key, share_key = jax.random.split(key)
        more = LATENT_NOISE * jax.random.uniform(share_key, (len(images), 1, 1, 1))
        latents = mean + jnp.sqrt(jnp.exp(logvar) + more**2) * jax.random.normal(noise_key, mean.shape)
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).mean()
        return picture_loss(model.decode(latents), images, weights) + KL_WEIGHT * kl

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--crop", type=int, default=SIZE, help="pixels, a multiple of 8")
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--start-from", type=Path, help="an exported checkpoint, instead of a random start")
    args = parser.parse_args()

    images, _ = load_pictures(args.directory.parent / "pictures", args.pictures, seed=SEED)
    shown, _ = make_pictures(8, seed=SEED, held_out=True, processes=1)
    graphdef, params = make_model()
    if args.start_from is not None:
        params = load_exported(args.start_from, "vae")
    optimizer = make_optimizer(args.learning_rate, args.steps)
    reconstruct = jax.jit(lambda params, x: (m := nnx.merge(graphdef, params)).decode(m.encode(x)[0]))

    def batch_of(step):
        rng = np.random.default_rng([SEED, step])
        chosen = rng.integers(len(images), size=args.batch_size)
        corners = rng.integers((SIZE - args.crop) // 8 + 1, size=(args.batch_size, 2)).astype(np.int32) * 8
        pieces = [images[i, y : y + args.crop, x : x + args.crop] for i, (y, x) in zip(chosen, corners, strict=True)]
        return np.stack(pieces), corners

    def sample(state):
        again = to_uint8(reconstruct(state.ema, to_float(shown)))
        return Image.fromarray(sheet(np.concatenate([shown, again]), 8)).resize((1536, 384))

    args.directory.mkdir(parents=True, exist_ok=True)
    step = make_step(make_loss(graphdef), optimizer)
    fit(args.directory, start_state(params, optimizer), step, batch_of, steps=args.steps, seed=SEED, sample=sample)


if __name__ == "__main__":
    main()
