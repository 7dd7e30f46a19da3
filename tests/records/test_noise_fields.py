"""The fields of PyTorch's noise in configs, manifests and the text that A1111 reads."""

import pytest
from support.runs import config, saved

from tpusd.config.schema import config_values
from tpusd.errors import UserError
from tpusd.plan.specs import make_specs
from tpusd.recipes.infotext import read_infotext, write_infotext
from tpusd.records.manifest import OPTIONAL_FIELDS, described_values

TORCH = ("noise=torch_cpu", "noise_batch_size=2", "num_images_per_prompt=3", "seed=11")
FIELDS = ("noise", "noise_batch_size", "noise_threads")
COUNTED = {"a red fox": (5, False)}


def lines(*overrides):
    made = saved('prompt="a red fox"', *overrides)
    return [described_values(made, COUNTED, spec) for spec in make_specs(made)]


@pytest.mark.slow
def test_a_config_has_the_fields_only_where_they_are_set():
    assert not set(FIELDS) & set(config_values(config()))
    values = config_values(config(*TORCH))
    assert (values["noise"], values["noise_batch_size"], "noise_threads" in values) == ("torch_cpu", 2, False)


@pytest.mark.slow
def test_a_manifest_line_has_the_fields_only_where_they_are_set():
    assert not set(OPTIONAL_FIELDS) & set(lines()[0])
    assert [lines(*TORCH)[2][name] for name in FIELDS[:2]] == ["torch_cpu", 2] and "noise_threads" not in lines(*TORCH)[
        2
    ]
    assert lines("noise=torch_cuda", "noise_threads=43008")[0]["noise_threads"] == 43008


@pytest.mark.slow
def test_the_text_of_a1111_has_the_seed_of_the_copy_and_what_drew_it():
    def settings(line):
        made = read_infotext(write_infotext(line, max_chars=100)).settings
        return made["Seed"], made["RNG"]

    assert [settings(line) for line in lines(*TORCH)] == [("11", "CPU"), ("11", "CPU"), ("12", "CPU")]
    assert settings(lines("noise=torch_cuda")[0]) == ("0", "NV") and settings(lines()[0]) == ("0", "JAX")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["noise_batch_size=2"], "noise_batch_size=2: is for noise=torch_cpu and noise=torch_cuda; choose one of them"),
        (["noise=torch_cpu", "noise_threads=512"], "noise_threads=512: is for noise=torch_cuda; add it or remove"),
        (
            ["noise=torch_cuda", "noise_threads=300"],
            "noise_threads=300: must be a multiple of 256 from 256 to 16777216",
        ),
        (["noise=torch"], "noise=torch: must be one of threefry, torch_cpu, torch_cuda"),
    ],
)
def test_wrong_fields_are_one_line(overrides, line):
    with pytest.raises(UserError) as caught:
        config(*overrides)
    assert str(caught.value).startswith(line)
