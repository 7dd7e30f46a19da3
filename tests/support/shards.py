"""Runs and sweeps made in shards, without a model, and what must not depend on that."""

import dataclasses
import functools
import json
import re

from support.runs import INLINE, StandInPipeline, config, prepare
from support.sweeps import make
from tpusd.records.run_json import read_run
from tpusd.records.saved import read_config
from tpusd.records.sweep import read_sweep
from tpusd.runs.start import start_run

COPIES = "num_images_per_prompt=3"  # of three rows: nine images


@functools.cache
def composed(*overrides):
    return config(INLINE, COPIES, "height=8", "width=8", *overrides)


def shard(path, which, *overrides, pipeline=None):
    """One shard of a run, or with None all of it; returns its pipeline."""
    pipeline = pipeline or StandInPipeline()
    made = dataclasses.replace(composed(*overrides), output=str(path), shard=which)
    start_run(made, hydra_files={"overrides.yaml": ["seed=0"]}, prepare=prepare, load=lambda *_: pipeline)
    return pipeline


def content(path, *, without=("index.html", "run.log", "run.json")):
    """Every file of a run but those that tell of sessions, and the shards' logs."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    values = read_config(path) | {"output": None}
    return {name: data for name, data in found.items() if name not in without and name[:7] != "shards/"} | {
        "config.yaml": values,
        "state": read_run(path)["state"],
    }


def sweep_shard(path, which, *overrides):
    which = [] if which is None else [f"shard={which}"]
    return make("seed=0,1,2", "guidance_scale=1,4", INLINE, "height=8", "width=8", f"output={path}", *which, *overrides)


def sweep_content(path):
    """Every file of a sweep but those that tell of sessions, and the shards' logs."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    left_out = (
        "index.html",
        "run.log",
        "run.json",
        "sweep.log",
        "config.yaml",
        "overrides.yaml",
        "hydra.yaml",
        "sweep.json",
    )
    found = {
        name: data for name, data in found.items() if name.split("/")[-1] not in left_out and "shards/" not in name
    }
    if "index.jsonl" in found:
        found["index.jsonl"] = re.sub(rb'"output=[^"]*"', b'"output=SWEEP"', found["index.jsonl"])
    found["sweep"] = json.loads(re.sub('"output=[^"]*"', '"output=SWEEP"', (path / "sweep.json").read_text())) | {
        "overrides": None
    }
    return found | {f"{run.name}/config.yaml": read_config(path / run.name) for run in read_sweep(path).runs}
