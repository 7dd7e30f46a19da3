"""`model.vae`: another autoencoder than the checkpoint's own, from a directory of diffusers or from one file."""

from dataclasses import dataclass, replace
from pathlib import Path

from tpusd.checkpoints.architecture import check_agreement, read_config
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.formats.safetensors import Safetensors
from tpusd.checkpoints.hub_file import hub_file
from tpusd.checkpoints.kinds import is_vae
from tpusd.checkpoints.opened import Checkpoint, FolderWeights, OriginalWeights, Weights, check_size
from tpusd.checkpoints.source import local_or_hub_file, weight_files
from tpusd.config.schema import OtherVAE
from tpusd.errors import UserError, show, show_path
from tpusd.families.base import Component, NetworkConfig, OriginalNames
from tpusd.families.latent_diffusion import VAE

CONFIG = "config.json"
_NAME = "model.vae"  # in Identity


@dataclass(frozen=True, kw_only=True)
class _Found:
    """An autoencoder. paths: name in Identity -> file. commit: of its repository, if it came from one."""

    config: NetworkConfig
    weights: Weights
    paths: dict[str, Path]
    commit: str | None = None


def with_other_vae(checkpoint: Checkpoint, vae: OtherVAE) -> Checkpoint:
    """The checkpoint with another autoencoder. Raises UserError."""
    component = checkpoint.family.components[VAE]
    single = vae.file is not None or (vae.path is not None and Path(vae.path).is_file())
    found = _from_file(vae, component, checkpoint.configs[VAE]) if single else _from_directory(vae, component)
    configs = {**checkpoint.configs, VAE: found.config}
    check_agreement(checkpoint.family, configs, f"{found.weights.where} beside {show_path(checkpoint.directory)}")
    own = {name: path for name, path in checkpoint.identity.paths.items() if not name.startswith(f"{VAE}/")}
    return replace(
        checkpoint,
        configs=configs,
        weights={**checkpoint.weights, VAE: found.weights},
        identity=replace(checkpoint.identity, paths={**own, **found.paths}, vae_commit=found.commit),
    )


def _from_file(vae: OtherVAE, component: Component, config: NetworkConfig) -> _Found:
    """The checkpoint's own config describes it: published autoencoders of a family differ in their weights alone."""
    path, commit = local_or_hub_file(vae.path, vae.repo, vae.file, vae.revision, "model.vae")
    where = show_path(path)
    tensors = Safetensors((path,)).tensors
    prefix = next((o.prefix for o in component.original if any(n.startswith(o.prefix) for n in tensors)), None)
    if prefix is None and not is_vae(tensors):
        raise UserError(f"{where}: has no VAE; choose a file of a VAE, or a checkpoint that has one")
    weights: Weights
    if prefix is None and any(name.startswith(("decoder.up_blocks.", "decoder.mid_block.")) for name in tensors):
        weights = FolderWeights(directory=Directory(path.parent), format="safetensors", name=path.name)
    else:
        weights = OriginalWeights(path=path, original=OriginalNames(prefix or "", "vae"))
    inside = {name: info for name, info in tensors.items() if name.startswith(prefix or "")}
    check_size(config, inside, where)
    return _Found(config=config, weights=weights, paths={f"{_NAME}.safetensors": path}, commit=commit)


def _from_directory(vae: OtherVAE, component: Component) -> _Found:
    """A directory that holds an autoencoder, or a whole checkpoint in whose `vae` folder it is."""
    directory, folder, commit = _downloaded(vae, component) if vae.path is None else _local(vae.path)
    config = read_config(component, component.classes[0], folder, directory)
    names = {*directory.names(folder)}
    chosen = weight_files(names, component, None)
    if chosen is None:
        raise UserError(
            f"{directory.shown(folder)}: has no weights ({component.weights}.safetensors missing); choose another VAE"
        )
    prefix = f"{folder}/" if folder else ""
    weights = FolderWeights(directory=directory, format=chosen.format, name=prefix + chosen.name)
    opened = weights.open()
    check_size(config, opened.tensors, weights.where)
    files = [directory.root / f"{prefix}{CONFIG}", *opened.files]
    return _Found(config=config, weights=weights, paths={f"{_NAME}/{f.name}": f for f in files}, commit=commit)


def _local(path: str) -> tuple[Directory, str, None]:
    directory = Directory(path, "model.vae.path")
    for folder in ("", VAE):
        if directory.path(f"{folder}/{CONFIG}".lstrip("/")) is not None:
            return directory, folder, None
    raise UserError(
        f"model.vae.path={show_path(path)}: has neither {CONFIG} nor {VAE}/{CONFIG}; give the directory of a VAE"
    )


def _downloaded(vae: OtherVAE, component: Component) -> tuple[Directory, str, str | None]:
    assert vae.repo is not None
    for folder in ("", VAE):
        prefix = f"{folder}/" if folder else ""
        try:
            config = hub_file(vae.repo, prefix + CONFIG, vae.revision, "model.vae")
        except UserError:
            if folder == VAE:
                raise
            continue
        hub_file(vae.repo, f"{prefix}{component.weights}.safetensors", config.commit, "model.vae")
        root = config.path.parent if not folder else config.path.parent.parent
        return Directory(root, "model.vae.repo"), folder, config.commit
    raise AssertionError(show(vae.repo))
