"""What a checkpoint's configs say of its networks: enough to build them as shapes, without weights or tokenizers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.model_index import check_components, read_family
from tpusd.checkpoints.tokenizer import MAX_LENGTH
from tpusd.errors import UserError, show, show_path
from tpusd.families.base import Agreement, Component, Configs, Family, NetworkConfig
from tpusd.networks.abstract import abstract_model
from tpusd.samplers.schedule import SchedulerConfig


class _Parsed(Protocol):
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self: ...


C = TypeVar("C", bound=_Parsed)
SCHEDULER_FILE = "scheduler/scheduler_config.json"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The networks of a checkpoint as their configs describe them."""

    family: Family
    configs: Configs  # part -> config
    options: Mapping[str, bool]  # as family.options gives them
    scheduler_config: SchedulerConfig
    scheduler_values: Mapping[str, Any]  # the JSON object of scheduler_config.json, to save it again

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the networks."""
        return tuple(self.configs)

    @property
    def controls(self) -> tuple[str, ...]:
        """Those of `model.controlnets`, in their order."""
        return tuple(part for part in self.configs if part not in self.family.components)

    def abstract(
        self, part: str, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
    ) -> nnx.Module:
        """A part as shapes only, freshly built."""
        network = self.family.component(part).network
        return abstract_model(network, self.configs[part], dtype=dtype, param_dtype=param_dtype)


def read_architecture(directory: Directory) -> Architecture:
    """Reads and checks model_index.json and the configs of networks and scheduler. Raises UserError."""
    family, index = read_family(directory)
    check_components(family, index, directory)
    configs = {
        part: read_config(component, index[part][1], part, directory) for part, component in family.components.items()
    }
    check_agreement(family, configs, show_path(directory.root))
    scheduler_values = directory.json(SCHEDULER_FILE, infinity=True)  # in lambda_min_clipped
    return Architecture(
        family=family,
        configs=configs,
        options=family.options(index),
        scheduler_config=_parsed(SchedulerConfig, scheduler_values, SCHEDULER_FILE, directory),
        scheduler_values=scheduler_values,
    )


def with_scheduler(architecture: Architecture, changes: Mapping[str, Any]) -> Architecture:
    """The architecture with other fields of its scheduler's file. changes: any JSON values, which must be valid."""
    values = {**architecture.scheduler_values, **changes}
    return replace(architecture, scheduler_values=values, scheduler_config=SchedulerConfig.from_dict(values))


def read_config(component: Component, class_name: str, folder: str, directory: Directory) -> NetworkConfig:
    """A network's config. class_name: of model_index.json. folder: empty for the directory itself. Raises UserError."""
    name = f"{folder}/config.json".lstrip("/")
    values = dict(component.corrected(directory.json(name)))
    if component.library == "transformers":
        # The class decides the architecture; not every writer of the file has put it into `architectures`.
        values["architectures"] = [class_name.removeprefix("Flax")]
    return _parsed(component.config, values, name, directory)


def _parsed(cls: type[C], values: Mapping[str, Any], name: str, directory: Directory) -> C:
    """`cls.from_dict(values)`, with whatever a stranger's values raise there as one bounded line."""
    try:
        return cls.from_dict(values)
    except (UserError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        reason = show(str(error).removeprefix(f"{name}: "), 600)
        raise UserError(
            f"{directory.shown(name)}: {reason}; choose another checkpoint, or get this one again"
        ) from None


def check_agreement(family: Family, configs: Configs, where: str) -> None:
    """What one config says of another's network, and of the tokenizer's ids.

    Raises UserError that begins with `where`.
    """
    agreements = [
        *family.agreements(configs),
        *(
            Agreement("text max_position_embeddings", length, "tokens of a prompt", MAX_LENGTH)
            for length in family.token_lengths(configs)
        ),
    ]
    for left, a, right, b in agreements:
        if a != b:
            raise UserError(
                f"{where}: {left}={a} but {right}={b}: they must be equal; "
                "this kind of model is not implemented, or the files of two checkpoints are mixed up"
            )
