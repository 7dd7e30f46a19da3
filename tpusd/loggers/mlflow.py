"""Reports a run to MLflow, which reads where to write from MLFLOW_*."""

import os

from tpusd.loggers.base import PROJECT, LoggedRun
from tpusd.records.layout import CONFIG, MANIFEST


def log_to_mlflow(run: LoggedRun) -> None:
    import mlflow

    if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
        mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params({name: str(value)[:500] for name, value in run.parameters.items()})
        mlflow.log_metrics({name.replace("/", "."): value for name, value in run.metrics.items()})
        for record in run.images:
            mlflow.log_artifact(str(run.path / record.file_name), artifact_path="images")
        for name in (CONFIG, MANIFEST):
            mlflow.log_artifact(str(run.path / name))
