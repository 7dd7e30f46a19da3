"""Records what the 2022 program makes of a small random checkpoint, for tests/engine/test_recorded_2022.py.

The 2022 program is diffusers' FlaxStableDiffusionPipeline under `replicate`, `shard` and `jax.pmap` over 8 devices,
with keys from `split(PRNGKey(0), 8)`. It was removed upstream, so it runs in an environment of its own:

    python -m venv ref
    ref/bin/pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.6 jax==0.10.2 flax safetensors
    ref/bin/python tools/record_2022.py tests/data/sd2022

Writes the checkpoint (PyTorch's safetensors and Flax's msgpack side by side, both saved by diffusers and transformers
themselves) and expected.npz: images (8,H,W,3) in 0..1 as float16 for each number of steps, prompt and negative prompt.
"""

import argparse
import json
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["USE_FLAX"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import diffusers
import jax
import numpy as np
import torch
import transformers
from flax.jax_utils import replicate
from flax.training.common_utils import shard
from transformers.models.clip.tokenization_clip import bytes_to_unicode

PROMPT = "a portrait of an old sailor, oil on canvas"
NEGATIVE = "blurry, low quality"
CASES = {"plain_50": (50, None), "plain_5": (5, None), "negative_5": (5, NEGATIVE)}  # name: steps, negative prompt
GUIDANCE = 7.5
SEED = 0
CHANNELS = (32, 32)  # FlaxUNet2DConditionModel has 32 norm groups, whatever the config says


def save_tokenizer(directory: Path) -> None:
    """A CLIP tokenizer without merges: each byte a token, with and without the end-of-word mark."""
    directory.mkdir(parents=True)
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(directory / "vocab.json", directory / "merges.txt", model_max_length=77)
    tokenizer.save_pretrained(directory)


def save_checkpoint(directory: Path) -> None:
    """Random PyTorch models of the SD 1.x layout, saved as people's checkpoints are, rounded to float16 values."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=CHANNELS, layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=32, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text_config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    text_encoder = transformers.CLIPTextModel(text_config)
    for parameter in text_encoder.parameters():
        parameter.data *= 4  # the text must reach the pixels: initial weights of CLIP are small
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 1.5  # pictures that use the range 0..1 and seldom leave it
        for model in (unet, vae, text_encoder):
            for parameter in model.parameters():
                parameter.copy_(parameter.half().float())
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    save_tokenizer(directory / "tokenizer")
    unet.half().save_pretrained(directory / "unet")
    vae.half().save_pretrained(directory / "vae")
    text_encoder.half().save_pretrained(directory / "text_encoder")
    scheduler.save_pretrained(directory / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {
        name: ["diffusers", type(m).__name__] for name, m in (("unet", unet), ("vae", vae), ("scheduler", scheduler))
    }
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (directory / "model_index.json").write_text(json.dumps(index, indent=2))


def load_flax(directory: Path):
    """The Flax pipeline on these weights, converted by diffusers and transformers themselves; saves their msgpack."""
    from diffusers.models.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
    from safetensors.torch import load_file

    params, models = {}, {}
    for name, cls in (("unet", diffusers.FlaxUNet2DConditionModel), ("vae", diffusers.FlaxAutoencoderKL)):
        models[name] = cls.from_config(cls.load_config(directory / name))
        state = {k: v.float() for k, v in load_file(directory / name / "diffusion_pytorch_model.safetensors").items()}
        params[name] = convert_pytorch_state_dict_to_flax(state, models[name])
        models[name].save_pretrained(directory / name, jax.tree.map(lambda x: x.astype("float16"), params[name]))
    text_encoder = transformers.FlaxCLIPTextModel.from_pretrained(directory / "text_encoder", from_pt=True)
    params["text_encoder"] = jax.tree.map(lambda x: np.asarray(x, np.float32), text_encoder.params)
    half = jax.tree.map(lambda x: x.astype("float16"), params["text_encoder"])
    text_encoder.save_pretrained(directory / "text_encoder", params=half)
    scheduler = diffusers.FlaxPNDMScheduler.from_pretrained(directory / "scheduler")[0]
    params["scheduler"] = scheduler.create_state()
    pipeline = diffusers.FlaxStableDiffusionPipeline(
        vae=models["vae"], text_encoder=text_encoder, unet=models["unet"], scheduler=scheduler,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(directory / "tokenizer"),
        safety_checker=None, feature_extractor=None,
    )  # fmt: skip
    return pipeline, params


def record(directory: Path) -> dict[str, np.ndarray]:
    pipeline, params = load_flax(directory)
    n = jax.device_count()
    assert n == 8, n
    params, keys = replicate(params), jax.random.split(jax.random.PRNGKey(SEED), n)
    prompt_ids, negative_ids = (shard(pipeline.prepare_inputs([text] * n)) for text in (PROMPT, NEGATIVE))
    out = {}
    # sample_size below 64 is replaced by diffusers 0.39, so height and width are said
    kwargs = dict(height=64, width=64, guidance_scale=GUIDANCE, jit=True)
    for name, (steps, negative) in CASES.items():
        images = pipeline(
            prompt_ids, params, keys, num_inference_steps=steps, neg_prompt_ids=negative and negative_ids, **kwargs
        ).images.reshape(n, 64, 64, 3)
        clipped = np.mean((images == 0) | (images == 1))
        print(f"{name}: mean {images.mean():.3f}, std {images.std():.3f}, clipped {clipped:.1%}")
        assert images.std() > 0.1, "too flat to test anything"
        assert clipped < 0.25, "clipping would hide differences"
        out[name] = images.astype(np.float16)
    difference = np.abs(out.pop("plain_5").astype(np.float32) - out["negative_5"]).max()
    print(f"largest difference that the negative prompt makes: {difference:.3f}")
    assert difference > 0.05, "the text does not reach the pixels"
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    save_checkpoint(directory)
    recorded = record(directory)
    np.savez_compressed(directory / "expected.npz", **recorded)
    meta = dict(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=GUIDANCE,
        seed=SEED,
        cases={name: CASES[name] for name in recorded},
    )
    meta |= {module.__name__: module.__version__ for module in (diffusers, transformers, jax)}
    (directory / "expected.json").write_text(json.dumps(meta, indent=2) + "\n")
