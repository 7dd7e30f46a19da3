"""What a run does with pictures that a safety checker finds, and where that checker comes from."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from tpusd.config.typed import Help
from tpusd.errors import UserError, show


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """The safety checker of a run. Without `path` and `repo` it is the checkpoint's own."""

    name: Annotated[
        Literal["off", "record", "blur", "drop"],
        Help(
            "what becomes of a picture that the checker finds: `record` only notes its scores, `blur` blurs its file, "
            "`drop` writes none; `off`: nobody looks"
        ),
    ] = "off"
    path: Annotated[str | None, Help("the directory of a safety checker, or of a checkpoint that has one")] = None
    repo: Annotated[str | None, Help("owner/name on the Hugging Face Hub, of the same")] = None
    revision: Annotated[str | None, Help("the repo's branch, tag or commit")] = None
    sha256: Annotated[str | None, Help("one digest of all its files; a run refuses another checker")] = None

    @property
    def is_on(self) -> bool:
        """Whether the checker looks at the pictures."""
        return self.name != "off"


OFF = SafetyConfig()


def check_safety(config: SafetyConfig) -> None:
    """The rules between its fields. Raises UserError."""
    for name in ("path", "repo", "revision", "sha256"):
        value = getattr(config, name)
        if value is not None and not config.is_on:
            raise UserError(
                f"safety.{name}={show(value)}: is for a run with a safety checker; add safety=record, safety=blur or "
                "safety=drop"
            )
    if config.path is not None and config.repo is not None:
        raise UserError(f"safety.path={show(config.path)}: safety.repo is set too; leave one of the two out")
    if config.path is not None and not config.path.strip():
        raise UserError("safety.path='': must name a directory")
    if config.repo is None and config.revision is not None:
        raise UserError(f"safety.revision={show(config.revision)}: is for a checker from the Hub; set safety.repo")
    if config.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", config.sha256):
        raise UserError(
            f"safety.sha256={show(config.sha256)}: must be 64 hexadecimal digits, as a saved config.yaml has"
        )
