"""`model.vae` and `model.unet`: another network than the checkpoint's own, from a directory of diffusers or a file.

A distilled UNet is published in this way, for a base model that has all other parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A part that can come from elsewhere.

    text: what errors call it.
    alone: whether the tensors of a file are this network alone.
    layers: what the names of diffusers begin with, and no others.
    """

    part: str
    text: str
    alone: Callable[[Mapping[str, TensorInfo]], bool]
    layers: tuple[str, ...]

    @property
    def field(self) -> str:
        """The group of the config, and the name in Identity."""
        return f"model.{self.part}"


_VAE = _Kind(part=VAE, text="VAE", alone=is_vae, layers=("decoder.up_blocks.", "decoder.mid_block."))
_UNET = _Kind(part=UNET, text="UNet", alone=has_unet, layers=("down_blocks.",))


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A network. paths: name in Identity -> file. commit: of its repository, if it came from one."""

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


def _with_other(checkpoint: Checkpoint, kind: _Kind, source: OtherPart) -> Checkpoint:
    component = checkpoint.family.components[kind.part]
    single = source.file is not None or (source.path is not None and Path(source.path).is_file())
    own_config = checkpoint.configs[kind.part]
    found = _from_file(kind, source, component, own_config) if single else _from_directory(kind, source, component)
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


def _from_file(kind: _Kind, source: OtherPart, component: Component, config: NetworkConfig) -> _Found:
    """The checkpoint's own config describes it: the published networks of a family differ in their weights alone."""
    path, commit = local_or_hub_file(source.path, source.repo, source.file, source.revision, kind.field)
    where = show_path(path)
    tensors = Safetensors((path,)).tensors
    prefix = next((o.prefix for o in component.original if any(n.startswith(o.prefix) for n in tensors)), None)
    if prefix is None and not kind.alone(tensors):
        raise UserError(f"{where}: has no {kind.text}; choose a file of a {kind.text}, or a checkpoint that has one")
    weights: Weights
    if prefix is None and any(name.startswith(kind.layers) for name in tensors):
        weights = FolderWeights(directory=Directory(path.parent), format="safetensors", name=path.name)
    else:
        naming = component.original[0].naming
        weights = OriginalWeights(path=path, original=OriginalNames(prefix or "", naming))
    inside = {name: info for name, info in tensors.items() if name.startswith(prefix or "")}
    check_size(config, inside, where)
    return _Found(config=config, weights=weights, paths={f"{kind.field}.safetensors": path}, commit=commit)


def _from_directory(kind: _Kind, source: OtherPart, component: Component) -> _Found:
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
    return _Found(config=config, weights=weights, paths={f"{kind.field}/{f.name}": f for f in files}, commit=commit)


def _local(kind: _Kind, source: OtherPart) -> tuple[Directory, str, None]:
    assert source.path is not None
    directory = Directory(source.path, f"{kind.field}.path")
    for folder in ("", kind.part):
        if directory.path(f"{folder}/{CONFIG}".lstrip("/")) is not None:
            return directory, folder, None
    raise UserError(
        f"{kind.field}.path={show_path(source.path)}: has neither {CONFIG} nor {kind.part}/{CONFIG}; give the "
        f"directory of a {kind.text}"
    )


def _downloaded(kind: _Kind, source: OtherPart, component: Component) -> tuple[Directory, str, str | None]:
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
