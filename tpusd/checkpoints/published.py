"""The configs of published models, as they ship inside the package: their architecture without a download."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

from tpusd.checkpoints.architecture import Architecture, read_architecture
from tpusd.checkpoints.files import Directory, shown
from tpusd.checkpoints.source import ModelSource
from tpusd.errors import UserError

# Repository -> folder of assets/published, and the latent size where it differs from that folder's.
_REPOSITORIES = {
    "CompVis/stable-diffusion-v1-4": ("sd15", None),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd15", None),
    "stabilityai/stable-diffusion-2-1": ("sd21", None),
    "stabilityai/stable-diffusion-2-1-base": ("sd21", 64),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", None),
}


def find_architecture(source: ModelSource) -> Architecture:
    """The networks of a packaged, local or published checkpoint; weights and tokenizers need not be there.

    source: a ModelSource, or a config with the same fields. Raises UserError.
    """
    assets = Path(str(resources.files("tpusd"))) / "assets"
    if source.asset is not None:
        return read_architecture(Directory(assets / source.asset))
    if source.path is not None:
        return read_architecture(Directory(source.path))
    if source.repo not in _REPOSITORIES:
        raise UserError(
            f"model.repo={shown(source.repo)}: its configs are not in the package; download it, then use "
            "model=local model.path=DIR"
        )
    folder, latents = _REPOSITORIES[source.repo]
    architecture = read_architecture(Directory(assets / "published" / folder))
    if latents is None:
        return architecture
    return replace(architecture, unet_config=replace(architecture.unet_config, sample_size=latents))
