"""A picture of any mode and size -> the pixels that CLIP reads, as transformers' CLIPImageProcessor makes them.

Transparent pixels become white, as in transformers 5. The arithmetic is that of its Pillow back end, bit for bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Interval, Len

from tpusd.errors import UserError, show
from tpusd.networks.config import read_config

if TYPE_CHECKING:
    from PIL import Image

MAX_RESIZED = 64 << 20  # pixels of a resized picture, before it is cropped: of a long and narrow one they are many
Side = Annotated[int, Interval(ge=1, le=4096)]  # pixels
Channel = Annotated[float, Interval(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Interval(ge=1e-6, le=1e6)]
# What transformers and diffusers write besides.
_HARMLESS = frozenset({
    "auto_map", "data_format", "default_to_square", "device", "feature_extractor_type", "image_processor_type",
    "input_data_format", "pad_size", "processor_class", "return_tensors", "disable_grouping",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PreprocessorConfig:
    """Fields of preprocessor_config.json; defaults are those of CLIPImageProcessor.

    shortest_edge: a picture keeps its shape, and its shorter side gets this length. None: `height` and `width` decide.
    resample: the filter, by Pillow's number; 3 is bicubic. All of them average where a picture gets smaller.
    image_mean, image_std: of red, green and blue, after the rescaling.
    """

    do_resize: bool = True
    shortest_edge: Side | None = 224
    height: Side | None = None
    width: Side | None = None
    resample: Annotated[int, Interval(ge=0, le=5)] = 3
    do_center_crop: bool = True
    crop_height: Side = 224
    crop_width: Side = 224
    do_rescale: bool = True
    rescale_factor: Annotated[float, Interval(ge=1e-6, le=1)] = 1 / 255
    do_normalize: bool = True
    image_mean: Annotated[tuple[Channel, ...], Len(3, 3)] = (0.48145466, 0.4578275, 0.40821073)
    image_std: Annotated[tuple[Deviation, ...], Len(3, 3)] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str = "preprocessor_config.json") -> "PreprocessorConfig":
        """Reads preprocessor_config.json. Raises UserError for what is not implemented.

        values: any JSON values. name: of the file, with which an error begins.
        """
        own = dict(values)
        size, crop = own.pop("size", {"shortest_edge": 224}), own.pop("crop_size", 224)
        flat: dict[str, Any] = {"shortest_edge": size} if isinstance(size, int) else _sides(size, f"{name}: size")
        cropped = {"height": crop, "width": crop} if isinstance(crop, int) else _sides(crop, f"{name}: crop_size")
        flat = {"shortest_edge": None} | flat | {f"crop_{side}": value for side, value in cropped.items()}
        only: dict[str, tuple[object, ...]] = {"do_convert_rgb": (True,)}
        return read_config(cls, own | flat, only=only, harmless=_HARMLESS, name=name)

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None) or (self.height is None) == (self.shortest_edge is None):
            raise ValueError("size must be either shortest_edge, or height and width")

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of what `preprocess` gives; None where they are the picture's."""
        if self.do_center_crop:
            return self.crop_height, self.crop_width
        return (self.height, self.width) if self.do_resize and self.height and self.width else None


def _sides(value: object, where: str) -> dict[str, Any]:
    """A group of sides, whose values are checked later. Raises UserError."""
    if not isinstance(value, Mapping) or not value.keys() <= {"shortest_edge", "height", "width"}:
        raise UserError(f"{where}={show(value)}: must be a number, {{shortest_edge: N}} or {{height: N, width: N}}")
    return dict(value)


def preprocess(picture: "Image.Image | np.ndarray", config: PreprocessorConfig) -> np.ndarray:
    """(H,W,3) float32. picture: one of Pillow's, of any mode, or (H,W,3) uint8. Raises UserError for an extreme shape.

    Decodes the picture if that is not done yet, so it raises what Pillow raises for a broken file.
    """
    from PIL import Image

    image = rgb(picture if isinstance(picture, Image.Image) else Image.fromarray(picture))
    if config.do_resize:
        height, width = resized_size(image.height, image.width, config)
        image = image.resize((width, height), resample=Image.Resampling(config.resample))
    pixels = np.asarray(image)
    if config.do_center_crop:
        for axis, side in enumerate((config.crop_height, config.crop_width)):
            pixels = _cropped(pixels, axis, side)
    values: np.ndarray = pixels.astype(np.float64) * config.rescale_factor if config.do_rescale else pixels
    values = values.astype(np.float32)
    if config.do_normalize:
        values = (values - np.array(config.image_mean, np.float32)) / np.array(config.image_std, np.float32)
    return values


def rgb(image: "Image.Image") -> "Image.Image":
    """The picture in red, green and blue, on white where it is transparent."""
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, over).convert("RGB")


def resized_size(height: int, width: int, config: PreprocessorConfig) -> tuple[int, int]:
    """Height and width after resizing, before the crop. Raises UserError where they are too large."""
    edge = config.shortest_edge
    if edge is None:
        assert config.height is not None and config.width is not None  # by the rule between the fields
        return config.height, config.width
    longer = int(edge * max(height, width) / min(height, width))
    if edge * longer > MAX_RESIZED:
        raise UserError(
            f"picture of {width}x{height} pixels: is too long and narrow for CLIP, which would make it {edge} pixels "
            "wide; leave it out"
        )
    return (longer, edge) if width <= height else (edge, longer)


def _cropped(pixels: np.ndarray, axis: int, side: int) -> np.ndarray:
    """The middle of one axis, between zeros where the picture is smaller."""
    length = pixels.shape[axis]
    start = (length - side) // 2
    if length < side:
        before = math.ceil((side - length) / 2)
        around = [(0, 0)] * pixels.ndim
        around[axis] = (before, side - length - before)
        pixels, start = np.pad(pixels, around), start + before
    kept = [slice(None)] * pixels.ndim
    kept[axis] = slice(max(0, start), start + side)
    return pixels[tuple(kept)]
