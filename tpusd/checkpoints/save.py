"""Our parameters -> an ordinary diffusers directory, which PyTorch diffusers and this package load alike."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from tpusd.checkpoints.architecture import MODELS
from tpusd.checkpoints.checkpoint import config_values
from tpusd.checkpoints.fill import cast, parameters
from tpusd.checkpoints.tokenizer import Tokenizer
from tpusd.networks.abstract import abstract_model

# The reference's version whose format this is; diffusers warns of a directory that names none.
DIFFUSERS_VERSION = "0.42.1"


def save_checkpoint(
    directory: str | Path,
    *,
    unet: tuple[Any, nnx.State],
    vae: tuple[Any, nnx.State],
    text_encoder: tuple[Any, nnx.State],
    tokenizer: Tokenizer,
    scheduler_config: Mapping[str, Any],
    text_encoder_2: tuple[Any, nnx.State] | None = None,
    tokenizer_2: Tokenizer | None = None,
    force_zeros_for_empty_prompt: bool = True,
    dtype="float32",
) -> None:
    """Writes a StableDiffusionPipeline directory, or a StableDiffusionXLPipeline one if there is a second text encoder.

    Networks are (config, state) pairs. scheduler_config: the values of scheduler_config.json with `_class_name`. dtype:
    of the stored weights, float32 or float16. Files of an earlier save are replaced; model_index.json is written last,
    so a directory whose writing was cut off is not taken for a checkpoint.
    """
    root = Path(directory)
    (root / "model_index.json").unlink(missing_ok=True)
    pairs = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "unet": unet, "vae": vae}
    for part, pair in pairs.items():
        if pair is not None:
            _save_part(root / part, part, *pair, dtype=np.dtype(dtype))
    tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2}
    for folder, one in tokenizers.items():
        if one is not None:
            (root / folder).mkdir(parents=True, exist_ok=True)
            for file in one.files:
                shutil.copyfile(file, root / folder / file.name)
    _write_json(
        root / "scheduler" / "scheduler_config.json", {"_diffusers_version": DIFFUSERS_VERSION, **scheduler_config}
    )

    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler_config["_class_name"]],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if text_encoder_2 is None:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    else:
        index |= {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": force_zeros_for_empty_prompt,
        }
    _write_json(root / "model_index.json", index)


def _save_part(folder: Path, part: str, config, state: nnx.State, *, dtype: np.dtype) -> None:
    values = {path: variable.get_value() for path, variable in nnx.to_flat_state(state)}
    tensors = {}
    for name, parameter in parameters(
        abstract_model(MODELS[part], config, dtype=jnp.float32, param_dtype=jnp.float32)
    ).items():
        ours = np.asarray(values.pop(parameter.path))
        assert ours.shape == parameter.shape, f"{part}: {name} is {ours.shape}, the config asks for {parameter.shape}"
        tensors[name] = cast(parameter.to_torch(ours), dtype, f"{part}: {name}")
    assert not values, f"{part}: the state has more than the config describes: {list(values)[:3]}"
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    file = folder / f"{stem}.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library makes files that nobody else can read
    _write_json(folder / "config.json", _published(part, config, dtype))


def _published(part: str, config, dtype: np.dtype) -> dict[str, Any]:
    """config.json as the reference reads it: our fields and what is fixed in our implementation."""
    values = config_values(config)
    if part == "unet":
        return {"_class_name": "UNet2DConditionModel", "_diffusers_version": DIFFUSERS_VERSION, **values}
    if part == "vae":
        levels = len(config.block_out_channels)
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        return {"_class_name": "AutoencoderKL", "_diffusers_version": DIFFUSERS_VERSION, **values, **blocks}
    projection = "WithProjection" if values.pop("with_projection") else ""
    fixed = {
        "architectures": [f"CLIPTextModel{projection}"],
        "model_type": "clip_text_model",
        "torch_dtype": dtype.name,
    }
    return {**fixed, **values}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
