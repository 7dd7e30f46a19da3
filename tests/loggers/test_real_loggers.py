"""Loggers with their real packages, none of which may reach a network. Needs the extras tensorboard, wandb, mlflow."""

import numpy as np
import pytest
from PIL import Image
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.runs.start import start_run

pytestmark = [pytest.mark.libraries, pytest.mark.slow, pytest.mark.filterwarnings("default")]


def make_run(path, logger):
    made = config(f"output={path}", INLINE, f"loggers=[{logger}]", "seed=5")
    return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())


def test_tensorboard_reads_images_config_and_rates(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = make_run(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"00000-000", "00001-000", "00002-000"}
    assert {"images", "images_per_second", "seconds/generate"} <= set(tags["scalars"])
    (image,) = events.Images("00001-000")
    assert image.encoded_image_string == (path / "images" / "00001-000.png").read_bytes()
    assert (image.width, image.height) == (40, 24)
    (text,) = (
        events.Tensors("config/text_summary") if "config/text_summary" in tags["tensors"] else events.Tensors("config")
    )
    assert b'"seed": 5' in text.tensor_proto.string_val[0]


def test_mlflow_keeps_parameters_rates_and_images(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    path = make_run(tmp_path / "run", "mlflow")
    (logged,) = mlflow.search_runs(experiment_names=["tpusd"], output_format="list")
    assert logged.data.params["seed"] == "5" and logged.data.params["sampler.name"] == "pndm"
    assert logged.data.metrics["images"] == 3 and logged.info.run_name == "run"
    client = mlflow.MlflowClient()
    names = {file.path for file in client.list_artifacts(logged.info.run_id, "images")}
    assert names == {record["file_name"] for record in manifest(path)}


def test_wandb_offline_keeps_a_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = make_run(tmp_path / "run", "wandb")
    (offline,) = (path / "wandb").glob("offline-run-*")
    media = sorted((offline / "files" / "media" / "images").glob("*.png"))
    assert len(media) == 3
    kept = {np.asarray(Image.open(file).convert("RGB")).tobytes() for file in media}
    assert kept == {np.asarray(Image.open(path / record["file_name"])).tobytes() for record in manifest(path)}
