"""The fields of a LoRA: where its file is, and how strong it is."""

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval

from tpusd.config.typed import Advice, Help
from tpusd.errors import UserError, show

Scale = Annotated[float, Interval(ge=-100, le=100), Advice("1 is as it was trained, 0 switches it off")]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A LoRA: a file of differences to the model's weights. One of `asset`, `path` and `repo` is set."""

    asset: Annotated[str | None, Help("a LoRA inside the package, by name: `old_photograph`, for model=tiny")] = None
    path: Annotated[str | None, Help("a safetensors file")] = None
    repo: Annotated[str | None, Help("owner/name on the Hugging Face Hub")] = None
    file: Annotated[str | None, Help("the repo's file; null: the only safetensors file that it has")] = None
    revision: Annotated[str | None, Help("the repo's branch, tag or commit")] = None
    scale: Annotated[Scale, Help("how strong it is in the UNet")] = 1.0
    text_encoder_scale: Annotated[Scale | None, Help("how strong it is in the text encoders; null: as `scale`")] = None
    sha256: Annotated[str | None, Help("of the file; a run refuses another file")] = None

    @property
    def scale_in_text(self) -> float:
        """The scale in the text encoders."""
        return self.scale if self.text_encoder_scale is None else self.text_encoder_scale


@dataclass(frozen=True, kw_only=True)
class AppliedLora:
    """What a LoRA is to an image: which bytes, and how strong in the UNet and in the text encoders."""

    sha256: str
    scale: float
    text_encoder_scale: float


def applied(loras: tuple[LoraConfig, ...]) -> tuple[AppliedLora, ...]:
    """The LoRAs of a config whose sha256 are known."""
    return tuple(
        AppliedLora(sha256=lora.sha256 or "", scale=lora.scale, text_encoder_scale=lora.scale_in_text) for lora in loras
    )


def same_file(lora: LoraConfig) -> LoraConfig:
    """Which file it is, however strong it is."""
    return replace(lora, scale=1.0, text_encoder_scale=None)


def check_lora(lora: LoraConfig, field: str) -> None:
    """The rules between its fields. Raises UserError. field: such as `loras[0]`."""
    sources = {name: value for name in ("asset", "path", "repo") if (value := getattr(lora, name)) is not None}
    if len(sources) != 1:
        given = " ".join(f"{field}.{name}={show(value)}" for name, value in sources.items()) or field
        rule = "exactly one of asset, path and repo must be set"
        raise UserError(f"{given}: {rule}; write loras=[{{path: FILE.safetensors, scale: 0.8}}]")
    if lora.path is not None and not lora.path.strip():
        raise UserError(f"{field}.path='': must name a safetensors file")
    if lora.repo is None:
        for name in ("file", "revision"):
            if (value := getattr(lora, name)) is not None:
                raise UserError(f"{field}.{name}={show(value)}: is for files of the Hub; leave it out")
