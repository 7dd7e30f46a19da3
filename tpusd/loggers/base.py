"""What a logger is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = "tpusd"
TENSORBOARD = "tensorboard"  # directory of the run


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """`parameters`: the config, a dotted name a field; `metrics`: numbers; `images`: the first of the manifest."""

    name: str
    path: Path
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    images: Sequence[Mapping[str, Any]]
