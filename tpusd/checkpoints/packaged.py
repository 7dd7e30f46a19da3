"""The configs of published models and CLIP's vocabulary, as they ship inside the package. Knows no weights."""

import functools
import gzip
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tpusd.checkpoints.architecture import Architecture, read_architecture, with_scheduler
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.tokenizer import Tokenizer, clip_vocabulary, open_tokenizer, write_tokenizer
from tpusd.config.assets import ASSETS
from tpusd.families.base import changed_config
from tpusd.families.latent_diffusion import UNET


@dataclass(frozen=True, kw_only=True)
class _Packaged:
    """folder: of assets/published. changes: fields of a part's config that differ there. scheduler: of its file."""

    folder: str
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)  # any JSON values


_PACKAGED = {
    "sd15": _Packaged(folder="sd15"),
    "sd21_base": _Packaged(
        folder="sd21", changes={UNET: {"sample_size": 64}}, scheduler={"prediction_type": "epsilon"}
    ),
    "sd21": _Packaged(folder="sd21"),
    "sdxl": _Packaged(folder="sdxl"),
}
PACKAGED_CONFIGS = tuple(_PACKAGED)


@functools.cache
def packaged_architecture(name: str) -> Architecture:
    """The architecture of a published model. name: one of PACKAGED_CONFIGS."""
    packaged = _PACKAGED[name]
    architecture = read_architecture(Directory(ASSETS / "published" / packaged.folder))
    changed = {part: changed_config(architecture.configs[part], fields) for part, fields in packaged.changes.items()}
    architecture = replace(architecture, configs={**architecture.configs, **changed})
    return with_scheduler(architecture, packaged.scheduler) if packaged.scheduler else architecture


@functools.cache
def clip_tokenizer(pad_token: str) -> Tokenizer:
    """CLIP's tokenizer, from the merges in assets/clip. It has no files that a checkpoint could be saved with."""
    merges = gzip.decompress((ASSETS / "clip" / "merges.txt.gz").read_bytes()).decode().splitlines()
    with tempfile.TemporaryDirectory(prefix="tpusd-") as folder:  # the library reads files alone, all of them at once
        write_tokenizer(Path(folder) / "tokenizer", clip_vocabulary(merges), merges, pad_token=pad_token)
        return replace(open_tokenizer(Directory(folder), "tokenizer"), files=())
