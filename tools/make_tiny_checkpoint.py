"""Makes a small random checkpoint of Stable Diffusion's architecture, as an ordinary diffusers directory.

    python tools/make_tiny_checkpoint.py tpusd/assets/tiny --dtype float16

The same seed gives the same files. Images from it are noise; it is there so that everything runs anywhere, offline.
"""

import argparse
import math
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.fill import parameters
from tpusd.checkpoints.save import save_checkpoint
from tpusd.checkpoints.tokenizer import open_tokenizer, write_byte_tokenizer
from tpusd.families.sdxl import SDXL
from tpusd.families.stable_diffusion import StableDiffusion
from tpusd.networks.abstract import abstract_model
from tpusd.networks.clip_text import CLIPTextConfig
from tpusd.networks.unet_config import UNetConfig
from tpusd.networks.vae import VAEConfig

LAYOUTS = ("sd1", "sd2", "sdxl")
INPAINT = "_inpaint"  # at the end of a layout: its UNet also reads a mask and the rest of a picture
SCHEDULER = {  # what every Stable Diffusion up to XL was trained with
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
WIDTH = 32  # of the text encoders
VOCAB_SIZE = 514


def tiny_configs(layout: str) -> dict[str, object]:
    """Config dataclasses of the parts, with every feature that the full-size layout has."""
    layout, inpaints = layout.removesuffix(INPAINT), layout.endswith(INPAINT)
    text = CLIPTextConfig(
        vocab_size=VOCAB_SIZE, eos_token_id=VOCAB_SIZE - 1, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4, projection_dim=WIDTH, hidden_act="quick_gelu" if layout != "sd2" else "gelu",
    )  # fmt: skip
    parts = {"text_encoder": text}
    unet = dict(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    if inpaints:
        unet |= dict(in_channels=9)
    if layout == "sd2":
        unet |= dict(attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True)
    if layout == "sdxl":
        parts["text_encoder_2"] = CLIPTextConfig(
            vocab_size=VOCAB_SIZE, eos_token_id=VOCAB_SIZE - 1, hidden_size=48, intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=3, projection_dim=40, hidden_act="gelu", with_projection=True,
        )  # fmt: skip
        unet |= dict(
            cross_attention_dim=WIDTH + 48, attention_head_dim=(2, 4), use_linear_projection=True,
            transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 40, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    vae = dict(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=1, sample_size=64)
    scaling = {"scaling_factor": 0.13025} if layout == "sdxl" else {}
    return {**parts, "unet": UNetConfig(**unet), "vae": VAEConfig(**vae, **scaling)}


def make_tiny_checkpoint(directory: Path, *, layout: str = "sd1", dtype: str = "float32", seed: int = 0) -> None:
    """Writes the checkpoint. SD 2.x and SDXL's second tokenizer pad with `!`, as the published ones do."""
    rng = np.random.default_rng(seed)
    configs, layout = tiny_configs(layout), layout.removesuffix(INPAINT)
    family = SDXL() if layout == "sdxl" else StableDiffusion()
    networks = {
        part: (config, random_state(family.components[part].network, config, rng)) for part, config in configs.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        write_byte_tokenizer(Path(scratch) / "tokenizer", pad_token="!" if layout == "sd2" else "<|endoftext|>")
        tokenizers = {"tokenizer": open_tokenizer(Directory(scratch), "tokenizer")}
        if layout == "sdxl":
            write_byte_tokenizer(Path(scratch) / "tokenizer_2", pad_token="!")
            tokenizers["tokenizer_2"] = open_tokenizer(Directory(scratch), "tokenizer_2")
        prediction = {"prediction_type": "v_prediction" if layout == "sd2" else "epsilon"}
        save_checkpoint(
            directory,
            family,
            networks=networks,
            tokenizers=tokenizers,
            scheduler_config=SCHEDULER | prediction,
            dtype=dtype,
        )


def random_state(cls, config, rng: np.random.Generator) -> nnx.State:
    """Parameters from NumPy, in the order of their names; nothing is compiled.

    Norms and biases are not at the round values that training starts from, so that a mix-up of two shows.
    """
    model = abstract_model(cls, config, dtype=jnp.float32, param_dtype=jnp.float32)
    state = nnx.state(model, nnx.Param)
    variables = dict(nnx.to_flat_state(state))
    for _, parameter in sorted(parameters(model).items()):
        values = rng.standard_normal(parameter.shape, np.float32)
        if parameter.leaf == "kernel":
            values /= math.sqrt(math.prod(parameter.shape[:-1]))  # keeps the variance from layer to layer
        else:
            values = values * np.float32(0.1) + (parameter.leaf == "scale")
        variables[parameter.path].set_value(jnp.asarray(values))
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layout", choices=[*LAYOUTS, *(layout + INPAINT for layout in LAYOUTS)], default="sd1")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_tiny_checkpoint(args.directory, layout=args.layout, dtype=args.dtype, seed=args.seed)
    print(f"{args.directory}: {sum(f.stat().st_size for f in args.directory.rglob('*') if f.is_file()):,} bytes")


if __name__ == "__main__":
    main()
