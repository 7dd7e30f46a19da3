"""Reports a run to Weights & Biases, which reads where to write from WANDB_*."""

import os

from tpusd.loggers.base import PROJECT, LoggedRun


def log_to_wandb(run: LoggedRun) -> None:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    directory = os.environ.get("WANDB_DIR", str(run.path))
    with wandb.init(project=project, name=run.name, config=dict(run.parameters), dir=directory) as logged:
        images = [wandb.Image(str(run.path / record.file_name), caption=record.prompt) for record in run.images]
        logged.log({**run.metrics, "images_made": images})
