"""Random CLIPs and safety checkers as transformers and diffusers publish them, written without PyTorch."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from support.checkpoints import load_tool
from tpusd.checkpoints.fill import parameters
from tpusd.checkpoints.tokenizer import write_byte_tokenizer
from tpusd.networks.abstract import abstract_model
from tpusd.networks.clip_text import CLIPTextConfig, CLIPTextModel
from tpusd.networks.clip_vision import CLIPVisionConfig, CLIPVisionModel
from tpusd.networks.safety_checker import SafetyCheckerModel

PROJECTION, TEXT_WIDTH, VOCABULARY = 20, 24, 514
VISION = dict(hidden_size=28, intermediate_size=44, num_hidden_layers=3, num_attention_heads=7)
LOGIT_SCALE = 4.6052  # its exponential is 100


def vision_config(image_size=30, patch_size=7, act="quick_gelu") -> CLIPVisionConfig:
    """A patch size that does not divide the picture."""
    sizes = dict(image_size=image_size, patch_size=patch_size, projection_dim=PROJECTION, hidden_act=act)
    return CLIPVisionConfig(**VISION, **sizes)


def text_config(act="quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY, eos_token_id=VOCABULARY - 1, hidden_size=TEXT_WIDTH, intermediate_size=36,
        num_hidden_layers=2, num_attention_heads=3, projection_dim=PROJECTION, hidden_act=act, with_projection=True,
    )  # fmt: skip


def random_tensors(cls, config, seed=0) -> dict[str, np.ndarray]:
    """A network's random parameters, by their names in PyTorch's files."""
    state = load_tool("make_tiny_checkpoint").random_state(cls, config, np.random.default_rng(seed))
    values = {path: np.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(state)}
    model = abstract_model(cls, config, dtype=jnp.float32, param_dtype=jnp.float32)
    return {name: np.ascontiguousarray(own.to_torch(values[own.path])) for name, own in parameters(model).items()}


def config_fields(config) -> dict:
    own = dict(vars(config))
    return {name: value for name, value in own.items() if name not in ("with_projection", "clip_skip")}


def write_clip(root: Path, *, act="quick_gelu", image_size=30, patch_size=7, seed=0) -> Path:
    """A whole CLIPModel with its tokenizer and its preprocessor."""
    vision, text = vision_config(image_size, patch_size, act), text_config(act)
    tensors = random_tensors(CLIPVisionModel, vision, seed) | random_tensors(CLIPTextModel, text, seed + 1)
    write_byte_tokenizer(root)
    tokens = {"bos_token_id": VOCABULARY - 2, "pad_token_id": VOCABULARY - 1}
    write(root, tensors | {"logit_scale": np.array(LOGIT_SCALE, np.float32)}, {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": PROJECTION,
        "vision_config": config_fields(vision), "text_config": config_fields(text) | tokens,
    })  # fmt: skip
    write_preprocessor(root, image_size)
    return root


def write_vision(root: Path, *, act="gelu", image_size=28, patch_size=7, seed=0) -> Path:
    """A CLIPVisionModelWithProjection."""
    vision = vision_config(image_size, patch_size, act)
    named = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
    write(root, random_tensors(CLIPVisionModel, vision, seed), named | config_fields(vision))
    write_preprocessor(root, image_size)
    return root


def checker_tensors(image_size=30, seed=0) -> dict[str, np.ndarray]:
    """Named as in the published file. Thresholds lie among the cosines of random pictures."""
    tensors = random_tensors(SafetyCheckerModel, vision_config(image_size), seed)
    rng = np.random.default_rng(seed)
    for name, number in (("concept_embeds", 17), ("special_care_embeds", 3)):
        tensors[name] = rng.standard_normal((number, PROJECTION)).astype(np.float32)
        tensors[f"{name}_weights"] = rng.uniform(0.25, 0.6, number).astype(np.float32)
    prefix = "vision_model."
    return {name.replace(prefix, prefix * 2) if name.startswith(prefix) else name: t for name, t in tensors.items()}


def write_checker(root: Path, *, image_size=30, seed=0, folder="", tensors=None) -> Path:
    """A safety checker, alone or (folder="safety_checker") within a checkpoint. Returns `root`."""
    values = {
        "architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip", "projection_dim": PROJECTION,
        "logit_scale_init_value": 2.6592, "text_config": {"hidden_size": 768}, "text_config_dict": None,
        "vision_config": config_fields(vision_config(image_size)), "vision_config_dict": None,
    }  # fmt: skip
    write(root / folder, checker_tensors(image_size, seed) if tensors is None else tensors, values)
    write_preprocessor(root / "feature_extractor" if folder else root, image_size)
    return root


def write(root: Path, tensors, config) -> None:
    root.mkdir(parents=True, exist_ok=True)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    (root / "config.json").write_text(json.dumps(config))


def write_preprocessor(root: Path, side: int, **changes) -> None:
    """As OpenAI's CLIP has it: sizes are numbers."""
    root.mkdir(parents=True, exist_ok=True)
    values = {
        "crop_size": side, "size": side, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (root / "preprocessor_config.json").write_text(json.dumps(values | changes))
