"""The sizes of a run's images in pixels."""

from typing import TYPE_CHECKING

from tpusd.config.limits import check_size
from tpusd.config.schema import RunConfig
from tpusd.errors import UserError

if TYPE_CHECKING:
    from tpusd.checkpoints.architecture import Architecture


def image_size(config: RunConfig, architecture: "Architecture") -> tuple[int, int]:
    """Height and width, the model's own where the config leaves them open. Raises UserError."""
    family, configs = architecture.family, architecture.configs
    height, width = config.height, config.width
    if height is None or width is None:
        own_height, own_width = family.image_size(configs)
        height = own_height if height is None else height
        width = own_width if width is None else width
    check_image_size(config, architecture, height, width)
    return height, width


def check_image_size(config: RunConfig, architecture: "Architecture", height: int, width: int) -> None:
    """Raises UserError for a size that the model cannot make."""
    multiple = architecture.family.size_multiple(architecture.configs)
    for name, size in (("height", height), ("width", width)):
        check_size(name, size)
        if size % multiple:
            raise UserError(f"{name}={size}: must be a multiple of {multiple} for model={config.model.name}")
