"""`model.vae` and `model.unet`: another network than the checkpoint's own, from a directory of diffusers or a file.

A distilled UNet is published in this way, for a base model that has all other parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tpusd.checkpoints.architecture import check_agreement, read_config
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorInfo
from tpusd.checkpoints.hub_file import hub_file
from tpusd.checkpoints.kinds import has_unet, is_vae
from tpusd.checkpoints.opened import Checkpoint, FolderWeights, OriginalWeights, Weights, check_size
from tpusd.checkpoints.source import local_or_hub_file, weight_files
from tpusd.config.schema import OtherPart
from tpusd.errors import UserError, show, show_path
from tpusd.families.base import Component, NetworkConfig, OriginalNames
from tpusd.families.latent_diffusion import UNET, VAE

CONFIG = "config.json"


class PartSource(Protocol):
    """Where a network is: the fields that an OtherPart and a ControlNet of the config have in common."""

    @property
    def path(self) -> str | None: ...
    @property
    def repo(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def file(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class PartKind:
    """A network that comes from elsewhere.

    part: its folder in a checkpoint.
    field: the group of the config, and the name in Identity.
    text: what errors call it.
    alone: whether the tensors of a file are this network alone.
    layers: what the names of diffusers begin with, and no others.
    """

    part: str
    field: str
    text: str
    alone: Callable[[Mapping[str, TensorInfo]], bool]
    layers: tuple[str, ...]


_VAE = PartKind(
    part=VAE, field="model.vae", text="VAE", alone=is_vae, layers=("decoder.up_blocks.", "decoder.mid_block.")
)
_UNET = PartKind(part=UNET, field="model.unet", text="UNet", alone=has_unet, layers=("down_blocks.",))


@dataclass(frozen=True, kw_only=True)
class FoundPart:
    """A network from elsewhere. paths: name in Identity -> file. commit: of its repository, if it came from one."""

    config: NetworkConfig
    weights: Weights
    paths: dict[str, Path]
    commit: str | None = None


def with_other_parts(checkpoint: Checkpoint, *, unet: OtherPart, vae: OtherPart) -> Checkpoint:
    """The checkpoint with another UNet and another autoencoder, where they are set. Raises UserError."""
    for kind, source in ((_UNET, unet), (_VAE, vae)):
        if source != OtherPart():
            checkpoint = _with_other(checkpoint, kind, source)
    return checkpoint


def _with_other(checkpoint: Checkpoint, kind: PartKind, source: OtherPart) -> Checkpoint:
    component = checkpoint.family.components[kind.part]
    found = open_part(kind, source, component, lambda tensors: checkpoint.configs[kind.part])
    configs = {**checkpoint.configs, kind.part: found.config}
    check_agreement(checkpoint.family, configs, f"{found.weights.where} beside {show_path(checkpoint.directory)}")
    identity = checkpoint.identity
    own = {name: path for name, path in identity.paths.items() if not name.startswith(f"{kind.part}/")}
    commits = {**identity.part_commits, kind.part: found.commit}
    return replace(
        checkpoint,
        configs=configs,
        weights={**checkpoint.weights, kind.part: found.weights},
        identity=replace(identity, paths={**own, **found.paths}, part_commits=commits),
    )


def open_part(
    kind: PartKind,
    source: PartSource,
    component: Component,
    config: Callable[[Mapping[str, TensorInfo]], NetworkConfig],
) -> FoundPart:
    """Finds a network and reads all but its weights' data. Raises UserError.

    config: the tensors of a single file, without their prefix -> the config, which such a file does not have.
    """
    if source.file is not None or (source.path is not None and Path(source.path).is_file()):
        return _from_file(kind, source, component, config)
    return _from_directory(kind, source, component)


def _from_file(
    kind: PartKind,
    source: PartSource,
    component: Component,
    config: Callable[[Mapping[str, TensorInfo]], NetworkConfig],
) -> FoundPart:
    path, commit = local_or_hub_file(source.path, source.repo, source.file, source.revision, kind.field)
    where = show_path(path)
    tensors = Safetensors((path,)).tensors
    prefix = next((o.prefix for o in component.original if any(n.startswith(o.prefix) for n in tensors)), None)
    if not prefix and not kind.alone(tensors):
        raise UserError(f"{where}: has no {kind.text}; choose a file of a {kind.text}, or a checkpoint that has one")
    weights: Weights
    if not prefix and any(name.startswith(kind.layers) for name in tensors):
        weights = FolderWeights(directory=Directory(path.parent), format="safetensors", name=path.name)
    else:
        naming = component.original[0].naming
        weights = OriginalWeights(path=path, original=OriginalNames(prefix or "", naming))
    inside = {name.removeprefix(prefix or ""): info for name, info in tensors.items() if name.startswith(prefix or "")}
    own = config(inside)
    check_size(own, inside, where)
    return FoundPart(config=own, weights=weights, paths={f"{kind.field}.safetensors": path}, commit=commit)


def _from_directory(kind: PartKind, source: PartSource, component: Component) -> FoundPart:
    """A directory that holds the network, or a whole checkpoint in whose folder it is."""
    local = source.path is not None
    directory, folder, commit = _local(kind, source) if local else _downloaded(kind, source, component)
    config = read_config(component, component.classes[0], folder, directory)
    names = {*directory.names(folder)}
    chosen = weight_files(names, component, None)
    if chosen is None:
        raise UserError(
            f"{directory.shown(folder)}: has no weights ({component.weights}.safetensors missing); choose another "
            f"{kind.text}"
        )
    prefix = f"{folder}/" if folder else ""
    weights = FolderWeights(directory=directory, format=chosen.format, name=prefix + chosen.name)
    opened = weights.open()
    check_size(config, opened.tensors, weights.where)
    files = [directory.root / f"{prefix}{CONFIG}", *opened.files]
    return FoundPart(config=config, weights=weights, paths={f"{kind.field}/{f.name}": f for f in files}, commit=commit)


def _local(kind: PartKind, source: PartSource) -> tuple[Directory, str, None]:
    assert source.path is not None
    directory = Directory(source.path, f"{kind.field}.path")
    for folder in ("", kind.part):
        if directory.path(f"{folder}/{CONFIG}".lstrip("/")) is not None:
            return directory, folder, None
    raise UserError(
        f"{kind.field}.path={show_path(source.path)}: has neither {CONFIG} nor {kind.part}/{CONFIG}; give the "
        f"directory of a {kind.text}"
    )


def _downloaded(kind: PartKind, source: PartSource, component: Component) -> tuple[Directory, str, str | None]:
    assert source.repo is not None
    for folder in ("", kind.part):
        prefix = f"{folder}/" if folder else ""
        try:
            config = hub_file(source.repo, prefix + CONFIG, source.revision, kind.field)
        except UserError:
            if folder == kind.part:
                raise
            continue
        hub_file(source.repo, f"{prefix}{component.weights}.safetensors", config.commit, kind.field)
        root = config.path.parent if not folder else config.path.parent.parent
        return Directory(root, f"{kind.field}.repo"), folder, config.commit
    raise AssertionError(show(source.repo))
