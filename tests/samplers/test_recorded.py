"""Every sampler and shared option against what PyTorch diffusers gave when tools/record_sampler_goldens.py ran."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from support.sampler_cases import NAMES, golden_cases, golden_model, golden_noise, golden_start, run_in_float64

import tpusd
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import SamplerSettings, make_table

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = Path(tpusd.__file__).parent / "assets" / "published"
SD15 = json.loads((PUBLISHED / "sd15/scheduler/scheduler_config.json").read_text())
RECORDED = json.loads(gzip.decompress((DATA / "sampler_goldens.json.gz").read_bytes()))


def options_of(record):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record["options"].items()}


@pytest.mark.parametrize("name", NAMES)
def test_table_gives_the_recorded_timesteps_and_sample(name):
    for record in (record for record in RECORDED["records"] if record["name"] == name):
        config = SchedulerConfig.from_dict(SD15 | {"prediction_type": record["prediction_type"]})
        settings = SamplerSettings(name=name, num_inference_steps=record["steps"], **options_of(record))
        table = make_table(settings, config)
        np.testing.assert_allclose(table.timesteps, record["timesteps"], atol=1e-3, rtol=0, err_msg=str(record))
        ours = run_in_float64(table, lambda x, t: golden_model(x, t, np.sin), golden_start(), golden_noise)
        # Euler's class works in float32 whatever it is given, and at zero terminal SNR it begins at sigma 4096.
        bound = max(2e-5, table.init_scale * 2.0**-22)
        scale = max(1.0, np.abs(record["sample"]).max())
        assert np.abs(ours - record["sample"]).max() < bound * scale, record


@pytest.mark.parametrize("name", NAMES)
def test_every_shared_option_is_recorded(name):
    recorded = [
        (options_of(record), record["steps"], record["prediction_type"])
        for record in RECORDED["records"]
        if record["name"] == name
    ]
    assert recorded == golden_cases(name) and RECORDED["diffusers"] == "0.42.1"
