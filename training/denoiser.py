"""Trains the denoiser, and the text encoder with it, on latents of drawn portraits.

    python -m training.denoiser DIR --steps 20000

Needs `autoencoder`, `tokenizer` and (but with --start-from) `text_encoder` beside DIR. Goes on from DIR's newest
checkpoint.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from tpusd.networks.clip_text import CLIPTextModel
from tpusd.networks.unet import UNet2DConditionModel
from tpusd.networks.unet_config import UNetConfig
from tpusd.scores.portraits.world import from_labels
from training import autoencoder, text_encoder
from training.captions import draw_captions, make_caption
from training.exported import load_exported
from training.fit import fit, make_optimizer, make_step, random_params, restore, start_state
from training.pool import load_pictures, make_pictures, sheet, to_uint8
from training.text_encoder import text_config, tokenizer_in

SEED = 37
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    # Stable Diffusion ends at 0.012, which leaves the mean of large flat areas readable in the noisiest latents.
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
DECODER_PARTS = ("decoder", "post_quant_conv")  # of the autoencoder
CAPTION_DROPOUT = 0.1
# In little noise the picture says it all, and what the text still changes is error, which guidance multiplies.
CLEAR_SHARE = 0.3  # of the timesteps, the lowest
CLEAR_CAPTION_DROPOUT = 0.4
FACE = (slice(5, 13), slice(4, 12))  # latent rows and columns of eyes and mouth: small parts, many attributes
FACE_WEIGHT = 3.0
MOUTH = (slice(9, 13), slice(5, 11))  # the part of it that tells the expression
MOUTH_WEIGHT = 6.0
LATENT_SIZE = 16
SAMPLE_STEPS, SAMPLE_GUIDANCE = 25, 5.0  # of the pictures that training shows


def unet_config() -> UNetConfig:
    """The embedded model's UNet: most parameters at 8x8 and 4x4, where they cost little."""
    return UNetConfig(
        sample_size=LATENT_SIZE, block_out_channels=(48, 96, 128), layers_per_block=1, norm_num_groups=16,
        cross_attention_dim=64, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


class Denoiser(nnx.Module):
    """UNet and text encoder, trained as one."""

    def __init__(self, vocab_size: int, rngs: nnx.Rngs):
        self.text_encoder = CLIPTextModel(text_config(vocab_size), rngs=rngs)
        self.unet = UNet2DConditionModel(unet_config(), rngs=rngs)

    def __call__(self, latents, timesteps, input_ids):
        return self.unet(latents, timesteps, self.text_encoder(input_ids).last_hidden_state)


@functools.cache
def alphas_cumprod() -> np.ndarray:
    """(1000,) float64: how much of the picture is left at every timestep."""
    s = SCHEDULER
    betas = np.linspace(s["beta_start"] ** 0.5, s["beta_end"] ** 0.5, s["num_train_timesteps"]) ** 2
    return np.cumprod(1.0 - betas)


def make_loss(graphdef):
    """Squared error of the velocity (Salimans and Ho 2022), the face counting more, the mouth most.

    All timesteps count alike: what is decided by the text is decided in noise, where other weightings look away.
    """
    alphas = jnp.asarray(alphas_cumprod(), jnp.float32)
    weight = np.ones((LATENT_SIZE, LATENT_SIZE, 1), np.float32)
    weight[FACE] = FACE_WEIGHT
    weight[MOUTH] = MOUTH_WEIGHT
    weight /= weight.mean()

    def loss(params, batch, key):
        latents, input_ids = batch
        noise_key, time_key = jax.random.split(key)
        b = len(latents)
        noise = jax.random.normal(noise_key, latents.shape)
        # One timestep from each b-th of the range: the same distribution, less variance.
        timesteps = ((jnp.arange(b) + jax.random.uniform(time_key, (b,))) / b * len(alphas)).astype(jnp.int32)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise
        velocity = jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * latents
        return ((nnx.merge(graphdef, params)(noisy, timesteps, input_ids) - velocity) ** 2 * weight).mean()

    return loss


def load_autoencoder(directory: Path):
    """(graphdef, averaged parameters) of the trained autoencoder; its decoder is that of training.decoder, if any."""
    graphdef, params = autoencoder.make_model()
    optimizer = make_optimizer(1.0, 1)
    state = restore(directory / "checkpoints", start_state(params, optimizer))
    assert state is not None, f"{directory}: no checkpoint"
    params = state.ema
    further = directory.parent / "decoder" / "checkpoints"
    if further.exists():
        state = restore(further, start_state({name: params[name] for name in DECODER_PARTS}, optimizer))
        for name in DECODER_PARTS if state is not None else ():
            params[name] = state.ema[name]
    return graphdef, params


def load_latents(directory: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(latents (n,16,16,4) with standard deviation 1, labels); encoded once, then kept, and the scale with them."""
    file = directory / f"latents_{count}.npy"
    images, labels = load_pictures(directory / "pictures", count, seed=SEED)
    if not file.exists():
        graphdef, params = load_autoencoder(directory / "autoencoder")
        encode = jax.jit(lambda params, x: nnx.merge(graphdef, params).encode(x / 127.5 - 1.0)[0])
        chunks = [np.asarray(encode(params, images[i : i + 50].astype(np.float32))) for i in range(0, count, 50)]
        latents = np.concatenate(chunks)
        scale = {"scaling_factor": round(float(1.0 / latents.std()), 5)}
        (directory / "latents.json").write_text(json.dumps(scale) + "\n", encoding="utf-8")
        np.save(file, latents)
    return np.load(file) * np.float32(load_scaling_factor(directory)), np.asarray(labels)


def load_scaling_factor(directory: Path) -> float:
    """What latents are multiplied by, as `load_latents` left it."""
    return json.loads((directory / "latents.json").read_text(encoding="utf-8"))["scaling_factor"]


def latents_shape() -> tuple[int, int, int]:
    """(h, w, c) of one picture's latents."""
    config = unet_config()
    return config.sample_size, config.sample_size, config.in_channels


def make_sampler(graphdef, decoder, scaling_factor: float, steps: int = SAMPLE_STEPS):
    """sample(params, decoder_params, noise, input_ids, empty_ids, guidance) -> images: DDIM, to look at in training."""
    spaced = np.linspace(0, len(alphas_cumprod()) - 1, steps).round().astype(np.int32)[::-1].copy()
    alphas, times = jnp.asarray(np.append(alphas_cumprod()[spaced], 1.0), jnp.float32), jnp.asarray(spaced)

    def sample(params, decoder_params, x, input_ids, empty_ids, guidance):
        model = nnx.merge(graphdef, params)
        context = model.text_encoder(jnp.concatenate([empty_ids, input_ids])).last_hidden_state

        def body(k, x):
            time = jnp.full((2 * len(x),), times[k])
            without, with_text = jnp.split(model.unet(jnp.concatenate([x, x]), time, context), 2)
            velocity = without + guidance * (with_text - without)
            a, b = jnp.sqrt(alphas[k]), jnp.sqrt(1 - alphas[k])
            clean, noise = a * x - b * velocity, a * velocity + b * x
            return jnp.sqrt(alphas[k + 1]) * clean + jnp.sqrt(1 - alphas[k + 1]) * noise

        latents = jax.lax.fori_loop(0, steps, body, x)
        return nnx.merge(decoder, decoder_params).decode(latents / scaling_factor)

    return jax.jit(sample)


def make_model(vocab_size: int):
    """(graphdef, parameters) at the random start."""
    return random_params(Denoiser, vocab_size, seed=SEED)


def load_model(directory: Path, vocab_size: int):
    """(graphdef, averaged parameters) of the newest checkpoint."""
    graphdef, params = make_model(vocab_size)
    state = restore(directory / "checkpoints", start_state(params, make_optimizer(1.0, 1)))
    assert state is not None, f"{directory}: no checkpoint"
    return graphdef, state.ema


def with_text_encoder(params: nnx.State, directory: Path, vocab_size: int) -> nnx.State:
    """The parameters with the text encoder that training.text_encoder left."""
    _, reader = text_encoder.make_reader(vocab_size)
    state = restore(directory / "checkpoints", start_state(reader, make_optimizer(1.0, 1)))
    assert state is not None, f"{directory}: no checkpoint"
    params["text_encoder"] = state.ema["encoder"]
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=30000)
    parser.add_argument("--start-from", type=Path, help="an exported checkpoint, instead of a random start")
    args = parser.parse_args()
    root = args.directory.parent

    tokenizer = tokenizer_in(root)
    latents, labels = load_latents(root, args.pictures)
    print(f"{len(latents)} latents, scaling_factor {load_scaling_factor(root)}", flush=True)
    graphdef, params = make_model(tokenizer.vocab_size)
    if args.start_from is not None:
        params["unet"], params["text_encoder"] = (load_exported(args.start_from, p) for p in ("unet", "text_encoder"))
    else:
        params = with_text_encoder(params, root / "text_encoder", tokenizer.vocab_size)
    optimizer = make_optimizer(args.learning_rate, args.steps)

    def batch_of(step):
        rng = np.random.default_rng([SEED, step])
        chosen = rng.integers(len(latents), size=args.batch_size)
        clear = round(CLEAR_SHARE * args.batch_size)  # the loss gives timesteps in rising order
        dropout = np.where(np.arange(args.batch_size) < clear, CLEAR_CAPTION_DROPOUT, CAPTION_DROPOUT)
        return latents[chosen], tokenizer(draw_captions(labels[chosen], rng, dropout)).input_ids

    shown, shown_labels = make_pictures(16, seed=SEED, held_out=True, processes=1)
    portraits = [from_labels(row) for row in shown_labels]
    rng = np.random.default_rng(SEED)
    prompts = [make_caption(p, set(p.visible), rng) for p in portraits]
    ids, empty = tokenizer(prompts).input_ids, tokenizer([""] * 16).input_ids
    noise = jax.random.normal(jax.random.key(SEED), (16, *latents_shape()))
    decoder, decoder_params = load_autoencoder(root / "autoencoder")
    sampler = make_sampler(graphdef, decoder, load_scaling_factor(root))

    def sample(state):
        made = to_uint8(sampler(state.ema, decoder_params, noise, ids, empty, SAMPLE_GUIDANCE))
        rows = np.concatenate([shown[:8], made[:8], shown[8:], made[8:]])
        return Image.fromarray(sheet(rows, 8))

    args.directory.mkdir(parents=True, exist_ok=True)
    (args.directory / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    step = make_step(make_loss(graphdef), optimizer)
    fit(args.directory, start_state(params, optimizer), step, batch_of, steps=args.steps, seed=SEED, sample=sample)


if __name__ == "__main__":
    main()
