"""A finished run told to TensorBoard, Weights & Biases or MLflow: its config, its rates, and some of its images.

They are optional: `loggers=[tensorboard]` asks for one, and its package is imported when the run is done. A logger that
fails costs a warning, never an image. Where W&B and MLflow write to is set as they say (WANDB_*, MLFLOW_*);
TensorBoard's files stand in the run directory.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig, config_values
from tpusd.errors import UserError
from tpusd.loggers.base import LoggedRun
from tpusd.loggers.mlflow import log_to_mlflow
from tpusd.loggers.tensorboard import log_to_tensorboard
from tpusd.loggers.wandb import log_to_wandb
from tpusd.process.report import report

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # logger -> the module it needs
MAX_IMAGES = 32


def check_loggers(loggers: Sequence[str]) -> None:
    """Raises UserError where a package is missing: before anything is loaded, not after the last image."""
    for logger in loggers:
        if importlib.util.find_spec(PACKAGES[logger]) is None:
            raise UserError(f"loggers=[{logger}]: {PACKAGES[logger]} is not installed; pip install 'tpusd[{logger}]'")


def log_run(path: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
    """Tells every logger of the config of the run at `path`; one that fails is a line on stderr. facts: run.json's."""
    if not config.loggers:
        return
    from tpusd.records.manifest import read_manifest
    from tpusd.records.run_json import images_per_second, latest

    records = sorted(read_manifest(path), key=lambda record: (record["row"], record["copy"]))
    told = latest(facts)
    seconds, rate = told["session"].get("seconds", {}), images_per_second(told)
    metrics = {f"seconds/{name}": float(value) for name, value in seconds.items()} | {"images": float(len(records))}
    metrics |= {} if rate is None else {"images_per_second": rate}
    run = LoggedRun(
        name=path.name,
        path=path,
        parameters=dict(_dotted(config_values(config) | {"prompts": config.prompts.name}, "")),
        metrics=metrics,
        images=records[:MAX_IMAGES],
    )
    for logger in config.loggers:
        try:
            LOGGERS[logger](run)
        except Exception as error:  # of somebody else's program, and the images are safe
            report(f"loggers=[{logger}]: failed: {' '.join(str(error).split())[:200]}")


LOGGERS: Mapping[str, Callable[[LoggedRun], None]] = {
    "tensorboard": log_to_tensorboard,
    "wandb": log_to_wandb,
    "mlflow": log_to_mlflow,
}


def _dotted(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
