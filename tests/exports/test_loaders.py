"""Run and sweep directories in the libraries that people load them with. Needs the extra `results`."""

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import StandInPipeline, config, manifest, prepare

from tpusd.config.grammar import hydra_value
from tpusd.export import main as export
from tpusd.runs.start import start_run

pytestmark = [pytest.mark.libraries, pytest.mark.slow]
ROWS = [
    {"prompt": "a red fox", "tag": "single_object", "include": [{"class": "fox", "count": 1}]},
    {"prompt": '日本, "two": owls\nat night', "negative_prompt": "dark", "tag": "two"},
    {"prompt": "<b>", "seed": 7, "guidance_scale": 1.0},
]


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("loaders") / "run"
    made = config(f"output={path}", f"prompts.rows={hydra_value(ROWS)}", "num_images_per_prompt=2")
    return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_jsonlines_reads_a_manifest(run_path):
    jsonlines = pytest.importorskip("jsonlines")
    with jsonlines.open(run_path / "manifest.jsonl") as lines:
        records = list(lines.iter(type=dict))
    assert [record["prompt"] for record in records] == [row["prompt"] for row in ROWS for _ in range(2)]


@pytest.mark.filterwarnings("default")
def test_datasets_reads_a_run_with_prompts_as_captions(run_path, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.load_dataset(
        "imagefolder", data_dir=str(run_path), split="train", cache_dir=str(tmp_path / "cache")
    )
    records = sorted(manifest(run_path), key=lambda record: record["file_name"])
    assert len(dataset) == len(records) == 6
    for example, record in zip(sorted(dataset, key=lambda one: (one["row"], one["copy"])), records, strict=True):
        assert (example["prompt"], example["seed"]) == (record["prompt"], record["seed"])
        assert np.array_equal(np.asarray(example["image"].convert("RGB")), pixels(run_path / record["file_name"]))


def test_pandas_and_duckdb_read_a_manifest(run_path):
    pandas, duckdb = pytest.importorskip("pandas"), pytest.importorskip("duckdb")
    frame = pandas.read_json(run_path / "manifest.jsonl", lines=True)
    assert list(frame.groupby("prompt").size()) == [2, 2, 2] and frame["guidance_scale"].min() == 1
    counted = duckdb.sql(f"select guidance_scale, count(*) from '{run_path}/manifest.jsonl' group by all order by all")
    assert counted.fetchall() == [(1.0, 2), (4.0, 4)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves a shard open
def test_webdataset_reads_the_shards(run_path, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    assert export([str(run_path), str(tmp_path / "out"), "--format=webdataset", "--shard-size=4"]) == 0
    shards = sorted(map(str, (tmp_path / "out").iterdir()))
    assert len(shards) == 2
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    records = list(manifest(run_path))
    assert [sample["__key__"] for sample in samples] == [Path(record["file_name"]).stem for record in records]
    for sample, record in zip(samples, records, strict=True):
        assert sample["txt"] == record["prompt"] and sample["json"] == record
        assert np.array_equal(sample["png"], pixels(run_path / record["file_name"]))
    gc.collect()
