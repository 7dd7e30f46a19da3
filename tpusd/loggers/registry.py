"""The loggers by name, and a finished run reported to those that its config asks for.

They are optional: `loggers=[tensorboard]` asks for one, and its package is imported when the run is done. A logger that
fails costs a line on stderr, never an image. A new logger is a file beside this and a line in LOGGERS.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig, config_values
from tpusd.config.typed import flatten
from tpusd.errors import UserError
from tpusd.loggers.base import LoggedRun, Logger
from tpusd.loggers.mlflow import log_to_mlflow
from tpusd.loggers.tensorboard import log_to_tensorboard
from tpusd.loggers.wandb import log_to_wandb
from tpusd.process.report import report
from tpusd.records.manifest import read_manifest
from tpusd.records.run_json import latest, session_rate

LOGGERS: Mapping[str, Logger] = {
    "tensorboard": Logger(package="tensorboard", log=log_to_tensorboard),
    "wandb": Logger(package="wandb", log=log_to_wandb),
    "mlflow": Logger(package="mlflow", log=log_to_mlflow),
}
MAX_IMAGES = 32


def check_loggers(loggers: Sequence[str]) -> None:
    """Raises UserError if a package is missing: before anything is loaded, not after the last image."""
    for name in loggers:
        package = LOGGERS[name].package
        if importlib.util.find_spec(package) is None:
            raise UserError(f"loggers=[{name}]: {package} is not installed; pip install 'tpusd[{name}]'")


def log_run(path: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
    """Reports a run to each logger of its config; one that fails is a line on stderr.

    path: the run directory.
    config: as saved there.
    facts: its run.json.
    """
    if not config.loggers:
        return
    records = sorted(read_manifest(path), key=lambda record: record.key)
    session = latest(facts)
    seconds, rate = session["session"].get("seconds", {}), session_rate(session)
    metrics = {f"seconds/{name}": float(value) for name, value in seconds.items()} | {"images": float(len(records))}
    metrics |= {} if rate is None else {"images_per_second": rate}
    parameters = config_values(config) | {"prompts": config.prompts.name}
    run = LoggedRun(
        name=path.name,
        path=path,
        parameters={name: value for name, value in flatten(parameters) if value is not None},
        metrics=metrics,
        images=records[:MAX_IMAGES],
    )
    for name in config.loggers:
        try:
            LOGGERS[name].log(run)
        except Exception as error:  # of another program; the images are safe
            report(f"loggers=[{name}]: failed: {' '.join(str(error).split())[:200]}")
