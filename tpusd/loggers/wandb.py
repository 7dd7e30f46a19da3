"""Weights & Biases."""

from tpusd.loggers.base import PROJECT, LoggedRun


def log_to_wandb(run: LoggedRun) -> None:
    import os

    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    with wandb.init(
        project=project, name=run.name, config=dict(run.parameters), dir=os.environ.get("WANDB_DIR", str(run.path))
    ) as logged:
        images = [wandb.Image(str(run.path / record.file_name), caption=record.prompt) for record in run.images]
        logged.log({**run.metrics, "images_made": images})
