"""`model.controlnets`: ControlNets and T2I-Adapters beside a checkpoint, from directories or single files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tpusd.checkpoints import t2i_adapters
from tpusd.checkpoints.architecture import Architecture, read_config
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorInfo
from tpusd.checkpoints.hub_file import hub_file
from tpusd.checkpoints.kinds import is_controlnet, is_t2i_adapter
from tpusd.checkpoints.opened import Checkpoint
from tpusd.checkpoints.other_part import CONFIG, PartKind, open_part
from tpusd.checkpoints.source import local_or_hub_file
from tpusd.config.assets import packaged
from tpusd.config.controls import ControlNet
from tpusd.errors import UserError, show
from tpusd.families.base import CONTROLNET, T2I_ADAPTER, Component, Family, NetworkConfig, entry
from tpusd.families.latent_diffusion import UNET
from tpusd.networks.config import MAX_LEVELS
from tpusd.networks.controlnet import ControlNetConfig
from tpusd.networks.unet_config import UNetConfig

EMBEDDING = "controlnet_cond_embedding."
HINTS = "input_hint_block."  # its name in the original code


def with_controlnets(checkpoint: Checkpoint, nets: Sequence[ControlNet]) -> Checkpoint:
    """The checkpoint with further parts, such as `controlnet_0`, `t2i_adapter_1` and so on. Raises UserError."""
    for place, net in enumerate(nets):
        checkpoint = _with_controlnet(checkpoint, place, _with_path(net, f"model.controlnets[{place}]"))
    return checkpoint


def with_controlnet_configs(architecture: Architecture, nets: Sequence[ControlNet]) -> Architecture:
    """The same of configs alone; weights need not be there. Raises UserError.

    One of the Hub is taken for a ControlNet that is a copy of the UNet's first half.
    """
    for place, net in enumerate(nets):
        where = f"model.controlnets[{place}]"
        net = _with_path(net, where)
        is_adapter = net.path is not None and _is_adapter(net, where)
        part, component = _component(architecture.family, place, is_adapter=is_adapter)
        config: NetworkConfig
        if net.path is None:
            config = _of_unet(architecture, None, where)
        elif not Path(net.path).is_file():
            directory = Directory(net.path, f"{where}.path")
            config = read_config(component, component.classes[0], _folder(directory, is_adapter), directory)
        else:
            tensors = Safetensors((Path(net.path),)).tensors
            inside = _without_prefix(component, tensors)
            config = t2i_adapters.config_of(tensors, where) if is_adapter else _of_unet(architecture, inside, where)
        architecture.family.check_controlnet(architecture.configs, config, where)
        architecture = replace(architecture, configs={**architecture.configs, part: config})
    return architecture


def _with_controlnet(checkpoint: Checkpoint, place: int, net: ControlNet) -> Checkpoint:
    field = f"model.controlnets.{place}"
    is_adapter = _is_adapter(net, field)
    part, component = _component(checkpoint.family, place, is_adapter=is_adapter)
    kind = PartKind(
        part=_FOLDERS[is_adapter],
        field=field,
        text="T2I-Adapter" if is_adapter else "ControlNet",
        alone=is_t2i_adapter if is_adapter else is_controlnet,
        layers=("adapter.",) if is_adapter else (EMBEDDING,),
    )

    def config(tensors: Mapping[str, TensorInfo]) -> NetworkConfig:
        return t2i_adapters.config_of(tensors, field) if is_adapter else _of_unet(checkpoint, tensors, field)

    found = open_part(kind, net, component, config)
    checkpoint.family.check_controlnet(checkpoint.configs, found.config, found.weights.where)
    identity = checkpoint.identity
    return replace(
        checkpoint,
        configs={**checkpoint.configs, part: found.config},
        weights={**checkpoint.weights, part: found.weights},
        identity=replace(
            identity,
            paths={**identity.paths, **found.paths},
            part_commits={**identity.part_commits, part: found.commit},
        ),
    )


def _with_path(net: ControlNet, field: str) -> ControlNet:
    """Where one of the package is. Raises UserError."""
    if net.asset is None:
        return net
    folder = packaged("controlnets", net.asset, f"{field}.asset={show(net.asset)}", "ControlNet")
    return replace(net, asset=None, path=str(folder))


_FOLDERS = ("controlnet", "adapter")  # in which a pipeline of diffusers has them: a ControlNet, a T2I-Adapter


def _is_adapter(net: ControlNet, field: str) -> bool:
    """Whether its files are of a T2I-Adapter. Files that are missing are found later, and are of none."""
    if net.file is not None or (net.path is not None and Path(net.path).is_file()):
        path, _ = local_or_hub_file(net.path, net.repo, net.file, net.revision, field)
        return is_t2i_adapter(Safetensors((path,)).tensors)
    if net.path is not None:
        directory = Directory(net.path, f"{field}.path")
    else:
        assert net.repo is not None
        try:
            config = hub_file(net.repo, CONFIG, net.revision, field)
        except UserError:  # it may be in a folder
            return False
        directory = Directory(config.path.parent, f"{field}.repo")
    if directory.path(CONFIG) is None:
        return directory.path(f"{_FOLDERS[True]}/{CONFIG}") is not None
    return directory.json(CONFIG).get("_class_name") == "T2IAdapter"


def _folder(directory: Directory, is_adapter: bool) -> str:
    """Where the config of a directory is."""
    return "" if directory.path(CONFIG) is not None else _FOLDERS[is_adapter]


def _component(family: Family, place: int, *, is_adapter: bool) -> tuple[str, Component]:
    """The name of the part, and what it is."""
    prefix = T2I_ADAPTER if is_adapter else CONTROLNET
    if prefix not in family.beside:
        raise UserError(f"model.controlnets[{place}]: there are no ControlNets for {family.name}; leave it out")
    return f"{prefix}{place}", family.beside[prefix]


def _without_prefix(component: Component, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    prefix = component.original[0].prefix
    return {name.removeprefix(prefix): info for name, info in tensors.items()}


def _of_unet(architecture: Architecture, tensors: Mapping[str, TensorInfo] | None, where: str) -> ControlNetConfig:
    """The config of a single file, which was made from a UNet of this shape. Raises UserError.

    tensors: of the file; None: they are not there.
    """
    try:
        config = ControlNetConfig.of_unet(entry(architecture.configs, UNET, UNetConfig))
    except ValueError as error:
        raise UserError(
            f"{where}: a file does not say its layers, and they are not those of the checkpoint's UNet ({error}); give "
            "a directory of diffusers, which has a config.json"
        ) from None
    widths = [] if tensors is None else _embedding_widths(tensors)
    return replace(config, conditioning_embedding_out_channels=tuple(widths)) if widths else config


def _embedding_widths(tensors: Mapping[str, TensorInfo]) -> list[int]:
    """Channels of the first convolution that reads the picture, and of those that halve it."""
    numbers = range(1, 2 * MAX_LEVELS, 2)
    names = [("conv_in", 0), *((f"blocks.{number}", 2 * number + 2) for number in numbers)]
    found = (tensors.get(f"{EMBEDDING}{own}.weight") or tensors.get(f"{HINTS}{theirs}.weight") for own, theirs in names)
    return [info.shape[0] for info in found if info is not None and len(info.shape) == 4]
