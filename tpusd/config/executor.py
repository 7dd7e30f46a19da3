"""Where a run's images are made: on the devices of this machine, or by the workers of a cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from tpusd.config.typed import Advice, Help
from tpusd.errors import UserError, show

MAX_WORKERS = 10_000
MAX_RESOURCES = 32
MAX_AMOUNT = 1e15  # memory counts in bytes


@dataclass(frozen=True)
class Resources:
    """What a worker takes of its host, such as {TPU: 4}. amounts: (name, amount) pairs."""

    amounts: tuple[tuple[str, float], ...]

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str) -> "Resources":
        """{name: amount} -> resources. Raises UserError."""
        if not 0 < len(values) <= MAX_RESOURCES:
            raise UserError(
                f"{where}: must name 1 to {MAX_RESOURCES} resources, as in {{TPU: 4}}; null: the host's own"
            )
        for name, amount in values.items():
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"{where}: {show(name)} is not the name of a resource; write {{TPU: 4}}")
            if type(amount) not in (int, float) or not 0 < amount <= MAX_AMOUNT:
                raise UserError(f"{where}.{show(name)}={show(amount)}: must be a number above 0, as in {{TPU: 4}}")
        return cls(tuple((name, amount) for name, amount in values.items()))

    def to_values(self) -> dict[str, Any]:
        """The inverse."""
        return dict(self.amounts)

    def __str__(self) -> str:
        return "{" + ", ".join(f"{show(name)}: {amount:g}" for name, amount in self.amounts) + "}"


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """Where images are made. It decides no pixel beyond what the devices themselves decide."""

    name: Annotated[
        Literal["local", "ray"],
        Help("`local`: the devices of this machine; `ray`: the workers of a Ray cluster"),
    ] = "local"
    address: Annotated[
        str | None,
        Help("of the cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`; null: a cluster of this machine alone"),
    ] = None
    num_workers: Annotated[
        int | None,
        Interval(ge=1, le=MAX_WORKERS),
        Advice("null: one for each host"),
        Help("null: one for each host that has accelerators, more and fewer as the cluster grows and shrinks"),
    ] = None
    resources_per_worker: Annotated[
        Resources | None, Help("what a worker takes, as in `{TPU: 4}`; null: the accelerators of its host")
    ] = None
    unit_seconds: Annotated[
        float,
        Interval(ge=0.1, le=3600),
        Advice("60 suits most runs"),
        Help("how long the work is that a worker is given at a time"),
    ] = 60.0


LOCAL = ExecutorConfig()


def check_executor(config: ExecutorConfig) -> None:
    """The rules between the fields. Raises UserError."""
    if config.name == "local":
        for name in ("address", "num_workers", "resources_per_worker"):
            value = getattr(config, name)
            if value is not None:
                raise UserError(f"executor.{name}={show(value)}: is for a cluster; add executor=ray")
    if config.address is not None:
        _check_address(config.address)


def _check_address(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise UserError(
            f"executor.address={show(address)}: must be auto, HOST:PORT or ray://HOST:PORT, as in ray://10.0.0.2:10001"
        )
