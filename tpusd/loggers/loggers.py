"""A finished run told to TensorBoard, Weights & Biases or MLflow: its config, its rates, and some of its images.

They are optional: `loggers=[tensorboard]` asks for one, and its package is imported when the run is done. A logger that
fails costs a warning, never an image. Where W&B and MLflow write to is set as they say (WANDB_*, MLFLOW_*);
TensorBoard's files stand in the run directory.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig, config_values
from tpusd.errors import UserError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # logger -> the module it needs
PROJECT = "tpusd"
TENSORBOARD = "tensorboard"  # directory of the run
MAX_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """`parameters`: the config, a dotted name a field; `metrics`: numbers; `images`: the first of the manifest."""

    name: str
    path: Path
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    images: Sequence[Mapping[str, Any]]


def check_loggers(loggers: Sequence[str]) -> None:
    """Raises UserError where a package is missing: before anything is loaded, not after the last image."""
    for logger in loggers:
        if importlib.util.find_spec(PACKAGES[logger]) is None:
            raise UserError(f"loggers=[{logger}]: {PACKAGES[logger]} is not installed; pip install 'tpusd[{logger}]'")


def log_run(path: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
    """Tells every logger of the config of the run at `path`; one that fails is a line on stderr. facts: run.json's."""
    if not config.loggers:
        return
    from tpusd.records.directory import read_manifest
    from tpusd.records.run_json import latest
    from tpusd.results import images_per_second

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
            print(f"tpusd: loggers=[{logger}]: failed: {' '.join(str(error).split())[:200]}", file=sys.stderr)


def _tensorboard(run: LoggedRun) -> None:
    import json
    import time

    from PIL import Image
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def text(tag: str, words: str) -> Summary.Value:
        tensor = TensorProto(dtype=DT_STRING, string_val=[words.encode()])
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)

    def image(record: Mapping[str, Any]) -> Summary.Value:
        file = run.path / record["file_name"]
        with Image.open(file) as opened:
            width, height = opened.size
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
        return Summary.Value(tag=Path(record["file_name"]).stem, image=picture)

    values = [Summary.Value(tag=name, simple_value=value) for name, value in run.metrics.items()]
    # The text plugin shows Markdown, so texts go in as code, indented.
    values.append(text("config", "    " + json.dumps(run.parameters, indent=1).replace("\n", "\n    ")))
    for record in run.images:
        values += [
            image(record),
            text(f"{Path(record['file_name']).stem}/prompt", "    " + record["prompt"].replace("\n", "\n    ")),
        ]
    writer = EventFileWriter(str(run.path / TENSORBOARD))
    try:
        for value in values:
            writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))
    finally:
        writer.close()


def _wandb(run: LoggedRun) -> None:
    import os

    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    with wandb.init(
        project=project, name=run.name, config=dict(run.parameters), dir=os.environ.get("WANDB_DIR", str(run.path))
    ) as logged:
        images = [wandb.Image(str(run.path / record["file_name"]), caption=record["prompt"]) for record in run.images]
        logged.log({**run.metrics, "images_made": images})


def _mlflow(run: LoggedRun) -> None:
    import os

    import mlflow

    if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
        mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params({name: str(value)[:500] for name, value in run.parameters.items()})
        mlflow.log_metrics({name.replace("/", "."): value for name, value in run.metrics.items()})
        for record in run.images:
            mlflow.log_artifact(str(run.path / record["file_name"]), artifact_path="images")
        for name in ("config.yaml", "manifest.jsonl"):
            mlflow.log_artifact(str(run.path / name))


LOGGERS: Mapping[str, Callable[[LoggedRun], None]] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _dotted(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
