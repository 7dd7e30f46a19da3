"""`model.controlnets`: ControlNets beside a checkpoint, each from a directory of diffusers or from one file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tpusd.checkpoints.architecture import Architecture, read_config
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorInfo
from tpusd.checkpoints.kinds import is_controlnet
from tpusd.checkpoints.opened import Checkpoint
from tpusd.checkpoints.other_part import PartKind, open_part
from tpusd.config.controls import ControlNet
from tpusd.errors import UserError
from tpusd.families.base import CONTROLNET, Component, Family, NetworkConfig, entry
from tpusd.families.latent_diffusion import UNET
from tpusd.networks.config import MAX_LEVELS
from tpusd.networks.controlnet import ControlNetConfig
from tpusd.networks.unet_config import UNetConfig

EMBEDDING = "controlnet_cond_embedding."
HINTS = "input_hint_block."  # its name in the original code


def with_controlnets(checkpoint: Checkpoint, nets: Sequence[ControlNet]) -> Checkpoint:
    """The checkpoint with further parts, `controlnet_0`, `controlnet_1` and so on. Raises UserError."""
    for place, net in enumerate(nets):
        checkpoint = _with_controlnet(checkpoint, place, net)
    return checkpoint


def with_controlnet_configs(architecture: Architecture, nets: Sequence[ControlNet]) -> Architecture:
    """The same of configs alone; weights need not be there. Raises UserError.

    One of the Hub is taken for a copy of the UNet's first half.
    """
    for place, net in enumerate(nets):
        component, where = _component(architecture.family, place), f"model.controlnets[{place}]"
        config: NetworkConfig = _of_unet(architecture, None, where)
        if net.path is not None and Path(net.path).is_file():
            config = _of_unet(architecture, _without_prefix(component, Safetensors((Path(net.path),)).tensors), where)
        elif net.path is not None:
            config = read_config(component, component.classes[0], "", Directory(net.path, f"{where}.path"))
        architecture.family.check_controlnet(architecture.configs, config, where)
        architecture = replace(architecture, configs={**architecture.configs, f"{CONTROLNET}{place}": config})
    return architecture


def _with_controlnet(checkpoint: Checkpoint, place: int, net: ControlNet) -> Checkpoint:
    component = _component(checkpoint.family, place)
    kind = PartKind(
        part="controlnet",
        field=f"model.controlnets.{place}",
        text="ControlNet",
        alone=is_controlnet,
        layers=(EMBEDDING,),
    )
    found = open_part(kind, net, component, lambda tensors: _of_unet(checkpoint, tensors, kind.field))
    checkpoint.family.check_controlnet(checkpoint.configs, found.config, found.weights.where)
    part, identity = f"{CONTROLNET}{place}", checkpoint.identity
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


def _component(family: Family, place: int) -> Component:
    if family.controlnet is None:
        raise UserError(f"model.controlnets[{place}]: there are no ControlNets for {family.name}; leave it out")
    return family.controlnet


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
