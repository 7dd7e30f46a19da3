"""Samplers are found by their modules, everything that names one follows from that, and unknown names are refused."""

import dataclasses
import json
import subprocess
import sys

import pytest
from support.runs import config
from support.sampler_cases import CASES

from tpusd.config.choices import group_choices
from tpusd.config.sampler import SamplerOptions, SamplerSettings
from tpusd.config.schema import config_values
from tpusd.config.yaml_files import to_yaml
from tpusd.errors import UserError
from tpusd.records.saved import read_saved
from tpusd.samplers.registry import samplers
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import make_table

# The keys of `sampler` in a config.yaml of 0.1.0 and in the recipe of its images, in order.
KEYS = (
    "name num_inference_steps prediction_type timestep_spacing steps_offset rescale_betas_zero_snr set_alpha_to_one "
    "eta variance_type use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas sigma_min sigma_max "
    "final_sigmas_type interpolation_type solver_order solver_type lower_order_final euler_at_final lambda_min_clipped "
    "predict_x0 disable_corrector original_inference_steps timestep_scaling"
).split()


def test_every_sampler_has_a_choice_in_conf_and_a_row_of_cases():
    assert list(samplers()) == group_choices()["sampler"] == sorted(CASES)


@pytest.mark.parametrize("name", list(CASES))
def test_a_sampler_names_only_options_that_a_config_has(name):
    sampler, options = samplers()[name], {field.name for field in dataclasses.fields(SamplerOptions)}
    assert set(sampler.choices) <= set(sampler.defaults) <= options
    for option, choices in sampler.choices.items():
        assert sampler.defaults[option] in choices


def test_options_of_a_saved_config_and_of_an_image_keep_their_names_and_order():
    assert list(dataclasses.asdict(SamplerSettings(name="ddim"))) == [*KEYS, "timesteps"]  # saved only where it is set
    assert list(config_values(config("sampler=ddim"))["sampler"]) == KEYS


def test_an_unknown_sampler_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"^sampler.name=dpmp_2m: no such sampler; did you mean dpmpp_2m; the samplers"):
        make_table(SamplerSettings(name="dpmp_2m"), SchedulerConfig())


def test_an_unknown_sampler_in_a_saved_config_is_refused_where_it_is_read(tmp_path):
    values = config_values(config("height=64", "width=64"))
    values["sampler"]["name"] = "turbo"
    (tmp_path / "config.yaml").write_text(to_yaml(values))
    (tmp_path / "manifest.jsonl").touch()
    with pytest.raises(UserError, match=r"config.yaml: sampler.name=turbo: no such sampler; the samplers are ddim, "):
        read_saved(tmp_path)


def test_the_schema_of_a_config_loads_no_numpy_and_the_registry_no_jax():
    code = (
        "import sys, json, tpusd.config.schema, tpusd.samplers.registry as registry\n"
        "before = {'numpy', 'jax', 'scipy'} & set(sys.modules)\n"
        "registry.samplers()\n"
        "print(json.dumps([sorted(before), sorted({'jax', 'scipy'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[], []]
