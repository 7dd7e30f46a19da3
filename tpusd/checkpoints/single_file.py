"""A checkpoint as one .safetensors file in the layout of the original code (LDM, SGM), as communities exchange them.

What it is follows from its tensors. Configs and tokenizers come from the package, or from a directory that
`model.config` names. Strict as for directories: a tensor under a network's prefix that no parameter takes is an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tpusd.checkpoints import model_index
from tpusd.checkpoints.architecture import SCHEDULER_FILE, Architecture, read_architecture, with_scheduler
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.formats.safetensors import Safetensors
from tpusd.checkpoints.formats.scaled import is_about_scales
from tpusd.checkpoints.formats.single_file import EMA_PREFIX
from tpusd.checkpoints.kinds import input_channels, other_kind
from tpusd.checkpoints.opened import Checkpoint, Identity, OriginalWeights, Weights, check_size, check_vocabulary
from tpusd.checkpoints.packaged import PACKAGED_CONFIGS, clip_tokenizer, packaged_architecture
from tpusd.checkpoints.prediction import find_prediction
from tpusd.checkpoints.source import CheckpointSource, local_or_hub_file
from tpusd.checkpoints.tokenizer import FILES, Tokenizer, open_tokenizer
from tpusd.config.schema import OtherPart
from tpusd.errors import UserError, show, show_path
from tpusd.families.base import Family, OriginalNames, changed_config, entry
from tpusd.families.latent_diffusion import UNET, VAE
from tpusd.families.registry import FAMILIES
from tpusd.networks.clip_text import CLIPTextConfig
from tpusd.networks.unet_config import UNetConfig

MAX_LISTED = 5  # tensors without use that a line names
NAME = "checkpoint.safetensors"  # in Identity, so that a renamed file is the same checkpoint
# What training and other programs leave beside the networks: without effect on a picture, and not worth a line.
_EXPECTED = re.compile(
    r"^(model_ema\..*|betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights|"
    r"global_step|v_pred|ztsnr|denoiser\.\w+|scale_factor|model\.(betas|alphas_cumprod|sqrt_\w+)|"
    r"cond_stage_model\.logit_scale|embedding_manager\..*)$"
)


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """What a single file is. parts: where each network is; a part that the file lacks is not there.

    config: the directory of `model.config`; None: the architecture is a packaged one.
    notes: what the user should know, a line each.
    """

    file: Safetensors
    path: Path
    architecture: Architecture
    config: Directory | None
    parts: Mapping[str, OriginalNames]
    notes: tuple[str, ...]


def open_single_file(source: CheckpointSource) -> Checkpoint:
    """Reads and checks all but the weights' data. Raises UserError."""
    found = local_or_hub_file(source.path, source.repo, source.file, source.revision, "model")
    single = describe_single_file(found.path, source)
    family, where = single.architecture.family, show_path(found.path)
    weights: dict[str, Weights] = {}
    for part in family.components:
        if part not in single.parts:
            if part == VAE and source.vae != OtherPart():
                continue
            advice = "set model.vae.path=FILE or model.vae.repo=OWNER/NAME" if part == VAE else "choose another file"
            raise UserError(f"{where}: has no {part} of {family.name}; {advice}")
        weights[part] = weights_of(single, part, ema=part == UNET and source.use_ema)
    tokenizers = _tokenizers(single)
    return Checkpoint(
        **vars(single.architecture),
        directory=found.path.parent,
        identity=Identity({NAME: found.path, **_config_files(single)}, source.repo, found.commit, None),
        tokenizers=tokenizers,
        weights=weights,
        notes=single.notes,
    )


def weights_of(single: SingleFile, part: str, *, ema: bool = False) -> OriginalWeights:
    """Where a part that the file has is. ema: the averaged copy. Raises UserError if its size cannot be right."""
    original = single.parts[part]
    prefix = EMA_PREFIX if ema else original.prefix
    inside = {name: info for name, info in single.file.tensors.items() if name.startswith(prefix)}
    check_size(single.architecture.configs[part], inside, show_path(single.path))
    return OriginalWeights(path=single.path, original=original, ema=ema)


def describe_single_file(path: Path, source: CheckpointSource) -> SingleFile:
    """What the file at `path` is, by its tensors and the fields of `source`; reads no weights. Raises UserError."""
    where = show_path(path)
    file = Safetensors((path,))
    if (kind := other_kind(file.tensors)) is not None:
        raise UserError(f"{where}: is {kind.text}; {kind.advice}")
    if source.use_ema and not any(name.startswith(EMA_PREFIX) for name in file.tensors):
        raise UserError(f"model.use_ema=true: {where} has no averaged copy of its UNet; leave the field out")
    family = _family(file)
    architecture, config, published = _architecture(file, family, source.config, where)
    prediction = find_prediction(file, source.prediction_type, published, where)
    if config is None and len(published) > 1:  # the packaged models of one architecture differ in what they predict
        same = (one for one in _packaged(file, family) if _predicts(one) == prediction.type)
        architecture = next(same, architecture)
    parts = {part: names for part, names in _parts(file, family).items() if names is not None}
    named, architecture = _named(architecture, config), _with_inputs(architecture, file)
    named += ", for inpainting" * family.inpaints(architecture.configs)
    notes = [f"{where}: is {named}; prediction_type={prediction.type}, by {prediction.source}"]
    if unused := _unused(file, parts):
        listed = ", ".join(show(name, 80) for name in unused[:MAX_LISTED])
        more = f" and {len(unused) - MAX_LISTED} more" if len(unused) > MAX_LISTED else ""
        notes.append(f"{where}: {len(unused)} of its tensors have no use: {listed}{more}")
    return SingleFile(
        file=file,
        path=path,
        architecture=with_scheduler(architecture, prediction.scheduler),
        config=config,
        parts=parts,
        notes=tuple(notes),
    )


def _with_inputs(architecture: Architecture, file: Safetensors) -> Architecture:
    """The architecture with the file's own input channels where these are those of inpainting."""
    configs = architecture.configs
    unet = changed_config(configs[UNET], {"in_channels": input_channels(file.tensors)})
    changed = {**configs, UNET: unet}
    return replace(architecture, configs=changed) if architecture.family.inpaints(changed) else architecture


def _parts(file: Safetensors, family: Family) -> dict[str, OriginalNames | None]:
    """Where the file has each network of a family; None: it lacks it."""
    return {
        part: next((o for o in component.original if any(n.startswith(o.prefix) for n in file.tensors)), None)
        for part, component in family.components.items()
    }


def _family(file: Safetensors) -> Family:
    """The family of which the file has the largest share of the networks, and which it fills best."""

    def fit(family: Family) -> tuple[int, int]:
        parts = _parts(file, family)
        present = sum(names is not None for names in parts.values())
        return present, present - len(parts)

    return max(FAMILIES, key=fit)


def _architecture(
    file: Safetensors, family: Family, config: str | None, where: str
) -> tuple[Architecture, Directory | None, list[str]]:
    """The architecture, the directory that it is from, and what the published models of it predict."""
    if config is None:
        candidates = _packaged(file, family)
        if not candidates:
            raise UserError(
                f"{where}: its UNet takes text of a width that no published model has; give its configs with "
                "model.config=DIR, a directory in the layout of diffusers"
            )
        return candidates[0], None, [_predicts(one) for one in candidates]
    if config in PACKAGED_CONFIGS:
        architecture, directory = packaged_architecture(config), None
    else:
        if not Path(config).is_dir():
            raise UserError(
                f"model.config={show_path(config)}: must be one of {', '.join(PACKAGED_CONFIGS)}, or a directory "
                "in the layout of diffusers"
            )
        directory = Directory(config, "model.config")
        architecture = read_architecture(directory)
    if architecture.family is not family:
        raise UserError(
            f"model.config={show_path(config)}: is of {architecture.family.name}, but {where} is of {family.name}"
        )
    return architecture, directory, [_predicts(architecture)]


def _packaged(file: Safetensors, family: Family) -> list[Architecture]:
    """The packaged architectures of a family whose UNet takes text of the same width."""
    prefix = family.components[UNET].original[0].prefix
    widths = {i.shape[-1] for n, i in file.tensors.items() if n.startswith(prefix) and n.endswith(".attn2.to_k.weight")}
    packaged = (packaged_architecture(name) for name in PACKAGED_CONFIGS)
    return [
        one
        for one in packaged
        if one.family is family and {entry(one.configs, UNET, UNetConfig).cross_attention_dim} == widths
    ]


def _predicts(architecture: Architecture) -> str:
    return architecture.scheduler_config.prediction_type or "epsilon"


def _named(architecture: Architecture, config: Directory | None) -> str:
    """What a file is, in words."""
    if config is not None:
        return f"{architecture.family.name} with the configs of {show_path(config.root)}"
    names = (name for name in PACKAGED_CONFIGS if packaged_architecture(name).configs == architecture.configs)
    return f"of the architecture {next(names)}"


def _unused(file: Safetensors, parts: Mapping[str, OriginalNames]) -> list[str]:
    """The tensors outside of all networks that are not expected there."""
    prefixes = tuple(original.prefix for original in parts.values())
    others = (name for name in file.tensors if not name.startswith(prefixes) and not is_about_scales(name))
    return [name for name in others if not _EXPECTED.match(name)]


def _tokenizers(single: SingleFile) -> tuple[Tokenizer, ...]:
    """Those of the directory of configs, where it has them, else CLIP's own."""
    tokenizers = []
    for part, component in single.architecture.family.components.items():
        if component.tokenizer is None:
            continue
        config = entry(single.architecture.configs, part, CLIPTextConfig)
        if single.config is not None and single.config.names(component.tokenizer):
            tokenizer, where = (
                open_tokenizer(single.config, component.tokenizer),
                single.config.shown(component.tokenizer),
            )
        else:
            # OpenCLIP's models were trained with zeros after the end of the text, OpenAI's with more ends of text.
            pad = "!" if config.hidden_act == "gelu" else "<|endoftext|>"
            tokenizer, where = clip_tokenizer(pad), "CLIP's tokenizer"
        tokenizers.append(check_vocabulary(tokenizer, config, where))
    return tuple(tokenizers)


def _config_files(single: SingleFile) -> dict[str, Path]:
    """The files of model.config that decide an image."""
    if single.config is None:
        return {}
    family = single.architecture.family
    names = [model_index.FILE, SCHEDULER_FILE]
    names += [f"{part}/config.json" for part in family.components]
    names += [f"{folder}/{name}" for folder in family.tokenizers for name in FILES]
    paths = {name: single.config.path(name) for name in names}
    return {f"config/{name}": path for name, path in paths.items() if path is not None}
