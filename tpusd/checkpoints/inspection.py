"""What a file, a directory or a repository is, without reading its weights: as plain values, for text and for JSON.

Reads headers and small files. Only the sha256 sums read a whole file.
"""

import contextlib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpusd.checkpoints.adapters.embedding import describe_embedding
from tpusd.checkpoints.architecture import Architecture
from tpusd.checkpoints.checkpoint import describe
from tpusd.checkpoints.fill import match, parameters
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorInfo
from tpusd.checkpoints.kinds import EMBEDDING, other_kind
from tpusd.checkpoints.opened import Checkpoint, Weights
from tpusd.checkpoints.single_file import SingleFile, describe_single_file, weights_of
from tpusd.checkpoints.source import ModelSource, is_pickle, resolve_source
from tpusd.errors import UserError, show, show_path
from tpusd.storage import file_sha256

Report = dict[str, Any]  # JSON values, in the order in which they are shown
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_OLD_HASH = (0x100000, 0x10000)  # where A1111's first hash began, and how much it read


def inspect(place: str, config: str | None = None) -> Report:
    """A .safetensors file, a directory of diffusers, or owner/name on the Hub. Raises UserError.

    config: as model.config, for a single file.
    """
    path = Path(place).expanduser()
    if path.is_file():
        if is_pickle(path):
            return _pickle(path)
        return _file(path, config)
    if path.is_dir():
        return _directory(path)
    if not _REPO.fullmatch(place):
        raise UserError(f"{show(place)}: no such file or directory; a repository is owner/name")
    return _repository(place)


def _pickle(path: Path) -> Report:
    """Of a small file of tensors alone, which an embedding is: it is read without unpickling."""
    try:
        found = describe_embedding(path)
    except UserError:
        raise UserError(
            f"{show_path(path)}: is a pickle, which can run code and is never opened, and not an embedding"
        ) from None
    kind = {"kind": EMBEDDING.name, "is": EMBEDDING.text, "note": EMBEDDING.advice}
    return {"path": str(path), "bytes": path.stat().st_size, **kind, **found, "sha256": file_sha256(path)}


def _file(path: Path, config: str | None) -> Report:
    file = Safetensors((path,))
    report: Report = {"path": str(path), "kind": "checkpoint", "bytes": path.stat().st_size}
    kind = other_kind(file.tensors)
    if kind is not None:
        report |= {"kind": kind.name, "is": kind.text, "note": kind.advice}
    if kind is EMBEDDING:
        with contextlib.suppress(UserError):
            report |= describe_embedding(path)
    report |= _contents(file.tensors)
    if kind is None:
        report |= _checkpoint(path, config)
    report |= {"metadata": dict(file.metadata), "hashes": hashes(path)}
    return report


def _checkpoint(path: Path, config: str | None) -> Report:
    """What a run would take the file for; what it would refuse is in `refused`."""
    try:
        single = describe_single_file(path, ModelSource(path=str(path), config=config))
    except UserError as error:
        return {"refused": str(error)}
    architecture = single.architecture
    return {
        "family": architecture.family.name,
        "prediction_type": architecture.scheduler_config.prediction_type,
        "notes": list(single.notes),
        "parts": {part: _part(part, single) for part in architecture.family.components},
    }


def _part(part: str, single: SingleFile) -> Report:
    if part not in single.parts:
        return {"refused": "is missing"}
    prefix = single.parts[part].prefix
    inside = {name: info for name, info in single.file.tensors.items() if name.startswith(prefix)}
    return {"prefix": prefix, **_contents(inside), **_fit(single.architecture, part, weights_of(single, part))}


def _directory(path: Path) -> Report:
    checkpoint = describe(resolve_source(ModelSource(path=str(path))))
    return {"path": str(path), "kind": "checkpoint", **_described(checkpoint)}


def _described(checkpoint: Checkpoint) -> Report:
    parts = {}
    for part, weights in checkpoint.weights.items():
        parts[part] = {**_contents(weights.open(()).tensors), **_fit(checkpoint, part, weights)}
    return {
        "family": checkpoint.family.name,
        "prediction_type": checkpoint.scheduler_config.prediction_type,
        "notes": list(checkpoint.notes),
        "parts": parts,
        "sha256": dict(checkpoint.identity.sha256),
    }


def _fit(architecture: Architecture, part: str, weights: Weights) -> Report:
    """Whether every tensor has its place; what does not fit, as a run would say it."""
    wanted = parameters(architecture.abstract(part))
    try:
        source = weights.open(wanted)
        match(architecture.family.components[part], source.layout, source.tensors, wanted, weights.where)
    except UserError as error:
        return {"refused": str(error)}
    return {"fits": len(wanted)}


def _repository(repo: str) -> Report:
    """Its files, by the Hub's own list: nothing is downloaded."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=20)
    except Exception as error:  # the HTTP libraries share no base class
        raise UserError(
            f"{show(repo)}: the Hub does not show it ({type(error).__name__}); check the name and the connection"
        ) from None
    files = {
        file.rfilename: {"bytes": file.size, "sha256": file.lfs.sha256 if file.lfs else None}
        for file in info.siblings or ()
        if file.rfilename.endswith((".safetensors", ".msgpack")) or file.rfilename == "model_index.json"
    }
    is_directory = "model_index.json" in files
    hint = f"model.repo={repo}" if is_directory else f"model.repo={repo} model.file=NAME"
    return {"repo": repo, "kind": "repository", "commit": info.sha, "use": f"model=local {hint}", "files": files}


def _contents(tensors: Mapping[str, TensorInfo]) -> Report:
    """How many tensors and numbers there are, and of which types."""
    precision = Counter(info.dtype for info in tensors.values())
    numbers = sum(math.prod(info.shape) for info in tensors.values())
    return {"tensors": len(tensors), "parameters": numbers, "precision": dict(precision.most_common())}


def hashes(path: Path) -> dict[str, str]:
    """The hashes by which Civitai and A1111 name a file.

    AutoV1: of 64 kB at 1 MB. AutoV2: of the whole file. AutoV3: of a safetensors file without its header.
    """
    start, length = _OLD_HASH
    whole, data = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        old = hashlib.sha256(file.read(length)).hexdigest()
        file.seek(0)
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
        whole.update(size + header)
        while block := file.read(1 << 20):
            whole.update(block)
            data.update(block)
    sha256 = whole.hexdigest()
    return {"sha256": sha256, "AutoV1": old[:8], "AutoV2": sha256[:10], "AutoV3": data.hexdigest()[:12]}
