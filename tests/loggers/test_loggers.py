import sys

import pytest
from support.runs import INLINE, StandInPipeline, config, prepare

from tpusd.errors import UserError
from tpusd.loggers import registry as loggers
from tpusd.loggers.base import Logger
from tpusd.records.run_json import read_run
from tpusd.runs.prepare import prepare_run
from tpusd.runs.start import start_run


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "mlflow"])
def test_missing_logger_is_told_before_anything_is_made(monkeypatch, logger):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{logger} is not installed; pip install 'tpusd\[{logger}\]'"):
        prepare_run(config(f"loggers=[{logger}]"))


def test_unknown_logger_is_refused():
    with pytest.raises(UserError, match="loggers.*must be one of tensorboard, wandb, mlflow"):
        config("loggers=[tensorbored]")


def test_logger_that_fails_costs_a_line_and_no_image(tmp_path, monkeypatch, capsys):
    def fail(run):
        assert run.metrics["images"] == 3 and run.parameters["sampler.name"] == "pndm" and len(run.images) == 3
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(loggers.LOGGERS, "wandb", Logger(package="wandb", log=fail))
    made = config(f"output={tmp_path / 'run'}", INLINE, "loggers=[wandb]")
    path = start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())
    assert "tpusd: loggers=[wandb]: failed: no route to host\n" in capsys.readouterr().err
    assert read_run(path)["state"] == "finished" and "wandb" not in sys.modules


@pytest.mark.slow
def test_no_logger_is_imported_unless_asked_for(tmp_path):
    start_run(config(f"output={tmp_path / 'run'}", INLINE), prepare=prepare, load=lambda *_: StandInPipeline())
    assert not {"tensorboard", "wandb", "mlflow"} & set(sys.modules)
