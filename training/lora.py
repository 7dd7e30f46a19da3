"""Trains a LoRA for the embedded model: portraits as old photographs.

    python -m training.lora DIR --steps 1500
    python -m training.lora DIR --steps 1500 --export tpusd/assets/old_photograph.safetensors

All linear layers and convolutions of the UNet take a difference of low rank (Hu et al. 2021); the text encoder stays.
Goes on from DIR's newest checkpoint.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from tpusd.checkpoints import ModelSource, open_checkpoint
from tpusd.checkpoints.fill import parameters
from tpusd.scores.portraits.measure import Look, as_drawn
from tpusd.scores.portraits.world import from_labels
from training import autoencoder
from training.captions import draw_captions, make_caption
from training.denoiser import (
    CAPTION_DROPOUT,
    SAMPLE_GUIDANCE,
    Denoiser,
    latents_shape,
    make_loss,
    make_sampler,
)
from training.exported import load_exported
from training.fit import fit, make_optimizer, make_step, restore, start_state
from training.pool import make_pictures, sheet, to_uint8
from training.styles import old_photograph
from training.text_encoder import tokenizer_in

SEED = 53
TINY = Path(__file__).resolve().parents[1] / "tpusd/assets/tiny"
ALPHA = 1.0  # of 1 / rank: the difference is up @ down / rank


def kernels(unet: nnx.State) -> dict[tuple, jax.Array]:
    """Path -> kernel, (inputs, outputs) or (height, width, inputs, outputs)."""
    flat = nnx.to_flat_state(unet)
    return {path: variable.get_value() for path, variable in flat if path[-1] == "kernel"}


def random_factors(unet: nnx.State, rank: int) -> dict[str, dict[str, jax.Array]]:
    """Layer -> down (inputs, rank), normal with variance 1/inputs, and up (rank, outputs), zero: no difference yet."""
    rng = np.random.default_rng(SEED)
    found = {}
    for path, kernel in kernels(unet).items():
        inputs = int(np.prod(kernel.shape[:-1]))
        down = rng.standard_normal((inputs, rank), np.float32) / np.float32(np.sqrt(inputs))
        found[layer_name(path)] = {"down": jnp.asarray(down), "up": jnp.zeros((rank, kernel.shape[-1]))}
    return found


def layer_name(path: tuple) -> str:
    return ".".join(map(str, path[:-1]))


def merged(unet: nnx.State, factors: dict[str, dict[str, jax.Array]]) -> nnx.State:
    """The UNet's parameters with the differences added."""
    leaves = []
    for path, variable in nnx.to_flat_state(unet):
        value = variable.get_value()
        if path[-1] == "kernel":
            own = factors[layer_name(path)]
            rank = len(own["up"])
            value = value + (ALPHA / rank * own["down"] @ own["up"]).reshape(value.shape)
        leaves.append(value)
    return jax.tree.unflatten(jax.tree.structure(unet), leaves)


def load_latents(directory: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(latents (n,16,16,4) as the denoiser sees them, labels) of old photographs; encoded once, then kept."""
    files = [directory / f"{name}_{count}.npy" for name in ("latents", "labels")]
    if not all(file.exists() for file in files):
        images, labels = make_pictures(count, seed=SEED)
        np.save(files[0], embedded_latents(images, old_photograph))
        np.save(files[1], labels)
    return tuple(np.load(file) for file in files)


def embedded_latents(images: np.ndarray, look: Look = as_drawn) -> np.ndarray:
    """Pictures (n,128,128,3) of 0..255, in a look -> (n,16,16,4) as the embedded model's denoiser sees them."""
    graphdef, _ = autoencoder.make_model()
    vae = load_exported(TINY, "vae")
    encode = jax.jit(lambda vae, x: nnx.merge(graphdef, vae).encode(x)[0])
    chunks = (look(images[i : i + 50]) / np.float32(127.5) - 1 for i in range(0, len(images), 50))
    return np.concatenate([np.asarray(encode(vae, chunk)) for chunk in chunks]) * scaling_factor()


def scaling_factor() -> float:
    """What the embedded model multiplies latents by."""
    return open_checkpoint(ModelSource(path=str(TINY))).configs["vae"].scaling_factor


def export(factors: dict[str, dict[str, jax.Array]], file: Path) -> None:
    """A LoRA file with the names of kohya's scripts, in float16."""
    tensors = {}
    abstract = open_checkpoint(ModelSource(path=str(TINY))).abstract("unet")
    for name, parameter in parameters(abstract).items():
        if parameter.leaf != "kernel":
            continue
        own = factors[layer_name(parameter.path)]
        shape = parameter.stored_shapes("torch")[0]  # (outputs, inputs) or (outputs, inputs, height, width)
        rank, ones = len(own["up"]), (1,) * (len(shape) - 2)
        down = np.asarray(own["down"]).reshape(*shape[2:], shape[1], rank)
        down = down.transpose(*range(down.ndim)[::-1][:2], *range(down.ndim - 2))
        up = ALPHA / rank * np.asarray(own["up"]).T.reshape(shape[0], rank, *ones)  # without a tensor for alpha
        stem = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    half = {name: np.ascontiguousarray(tensor, np.float16) for name, tensor in tensors.items()}
    save_file(half, file, metadata={"modelspec.title": "Portraits as old photographs, for tpusd's embedded model"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--export", type=Path, help="write the newest checkpoint to this file, and train no further")
    args = parser.parse_args()

    unet, text_encoder = (load_exported(TINY, part) for part in ("unet", "text_encoder"))
    tokenizer = tokenizer_in(TINY)
    optimizer = make_optimizer(args.learning_rate, args.steps)
    start = start_state(random_factors(unet, args.rank), optimizer)
    if args.export is not None:
        state = restore(args.directory / "checkpoints", start)
        assert state is not None, f"{args.directory}: no checkpoint"
        return export(state.ema, args.export)

    args.directory.mkdir(parents=True, exist_ok=True)
    latents, labels = load_latents(args.directory, args.pictures)
    graphdef = nnx.split(nnx.eval_shape(lambda: Denoiser(tokenizer.vocab_size, rngs=nnx.Rngs(0))))[0]
    velocity_error = make_loss(graphdef)

    def whole(factors):
        return nnx.State({"text_encoder": text_encoder, "unet": merged(unet, factors)})

    def batch_of(step):
        rng = np.random.default_rng([SEED, step])
        chosen = rng.integers(len(latents), size=args.batch_size)
        captions = draw_captions(labels[chosen], rng, CAPTION_DROPOUT)
        return latents[chosen], tokenizer(captions).input_ids

    shown, shown_labels = make_pictures(8, seed=SEED, held_out=True, processes=1)
    rng = np.random.default_rng(SEED)
    portraits = [from_labels(row) for row in shown_labels]
    ids = tokenizer([make_caption(p, set(p.visible), rng) for p in portraits]).input_ids
    empty = tokenizer([""] * 8).input_ids
    noise = jax.random.normal(jax.random.key(SEED), (8, *latents_shape()))
    decoder, _ = autoencoder.make_model()
    vae = load_exported(TINY, "vae")
    sampler = make_sampler(graphdef, decoder, scaling_factor())

    def sample(state):
        made = to_uint8(sampler(whole(state.ema), vae, noise, ids, empty, SAMPLE_GUIDANCE))
        return Image.fromarray(sheet(np.concatenate([shown, made]), 8))

    def loss(factors, batch, key):
        return velocity_error(whole(factors), batch, key)

    fit(args.directory, start, make_step(loss, optimizer), batch_of, steps=args.steps, seed=SEED, sample=sample)


if __name__ == "__main__":
    main()
