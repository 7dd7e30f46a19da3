"""The fields of a ControlNet: where its files are, how strong it is, and in which steps."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from tpusd.config.typed import Advice, Help
from tpusd.errors import UserError, show

MAX_CONTROLNETS = 8
ControlScale = Annotated[float, Interval(ge=0, le=100), Advice("1 is as it was trained, 0 switches it off")]
Fraction = Annotated[float, Interval(ge=0, le=1), Advice("it is a fraction of the steps")]


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """A ControlNet beside the checkpoint: exactly one of `asset`, `path` and `repo` is set."""

    asset: Annotated[str | None, Help("a ControlNet inside the package, by name: `outline`, for model=tiny")] = None
    path: Annotated[str | None, Help("a directory in the layout of diffusers, or one .safetensors file")] = None
    repo: Annotated[str | None, Help("owner/name on the Hugging Face Hub")] = None
    revision: Annotated[str | None, Help("the repo's branch, tag or commit")] = None
    file: Annotated[str | None, Help("a .safetensors file in the repo; null: the repo is a directory of diffusers")] = (
        None
    )
    scale: Annotated[ControlScale, Help("how strong it is; `control_scale` multiplies it")] = 1.0
    start: Annotated[Fraction, Help("the fraction of the steps before which it has no effect")] = 0.0
    end: Annotated[Fraction, Help("the fraction of the steps after which it has no effect")] = 1.0

    def steps(self, num_calls: int) -> list[bool]:
        """Which model calls it has an effect on, of `num_calls`: those that are whole within `start` and `end`."""
        return [self.start <= call / num_calls and (call + 1) / num_calls <= self.end for call in range(num_calls)]

    def alone(self) -> "ControlNet":
        """Which network it is, however strong."""
        return ControlNet(asset=self.asset, path=self.path, repo=self.repo, revision=self.revision, file=self.file)


def check_controlnet(net: ControlNet, field: str) -> None:
    """The rules between its fields. Raises UserError. field: such as `model.controlnets[0]`."""
    sources = {name: value for name in ("asset", "path", "repo") if (value := getattr(net, name)) is not None}
    if len(sources) != 1:
        given = " ".join(f"{field}.{name}={show(value)}" for name, value in sources.items()) or field
        raise UserError(
            f"{given}: exactly one of asset, path and repo must be set; "
            "write model.controlnets=[{path: DIR, scale: 0.8}]"
        )
    if net.path is not None and not net.path.strip():
        raise UserError(f"{field}.path='': must name a directory or a .safetensors file")
    for name in ("revision", "file"):
        if net.repo is None and (value := getattr(net, name)) is not None:
            raise UserError(f"{field}.{name}={show(value)}: is for a ControlNet from the Hub; set {field}.repo")
    if net.start >= net.end:
        raise UserError(
            f"{field}.start={net.start:g}: must be smaller than {field}.end={net.end:g}; 0 and 1: all steps"
        )
