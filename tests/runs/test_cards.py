"""Few-step models: what conf/model sets follows the card, and a run says which of its settings contradict it."""

import pytest
from support.runs import config, saved

from tpusd.config.schema import config_values, make_config
from tpusd.recipes.command import config_overrides
from tpusd.records.saved import override
from tpusd.runs.cards import CARDS, card_notes

INK = "{path: /ink.safetensors, scale: 0.5}"


def notes(*overrides):
    return [note for note in card_notes(saved(*overrides, "prompt=a", height=512, width=512)) if "licence" not in note]


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_defaults_are_the_cards_and_nothing_is_said_of_them(name):
    made, card = config(f"model={name}"), CARDS[name]
    assert notes(f"model={name}") == []
    assert made.sampler.name == card.samplers[0] and made.sampler.num_inference_steps in card.steps
    assert (made.sampler.timestep_spacing, made.sampler.timesteps) == (card.spacing, card.timesteps)
    assert made.guidance_scale <= 1
    assert {lora.repo for lora in made.loras} == set(card.loras)
    assert all(lora.revision is not None and lora.file is not None for lora in made.loras)
    assert made.model.revision is not None and (made.model.unet.repo is None) == (made.model.unet.revision is None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["model=sd_turbo", "guidance_scale=7.5"], "guidance_scale=7.5: model=sd_turbo is made for no guidance"),
        (["model=sd_turbo", "sampler=ddim"], "sampler=ddim: model=sd_turbo is made for sampler=euler or euler_anc"),
        (
            ["model=sd_turbo", "sampler.num_inference_steps=30"],
            "num_inference_steps=30: model=sd_turbo is made for 1 to 4",
        ),
        (
            ["model=sdxl_lightning", "sampler.timestep_spacing=leading"],
            "sampler.timestep_spacing=leading: model=sdxl_lightning is made for timestep_spacing=trailing",
        ),
        (["model=sdxl_lightning", "sampler.num_inference_steps=3"], "is made for 2 or 4 or 8 steps"),
        (["model=sd_turbo", "cache=deepcache"], "cache=deepcache: model=sd_turbo is distilled, so its few steps have"),
        (
            ["model=sdxl_lightning", "sampler.num_inference_steps=8"],
            "sampler.num_inference_steps=8: sdxl_lightning_4step_unet.safetensors is made for another number of steps; "
            "add model.unet.file=sdxl_lightning_8step_unet.safetensors",
        ),
        (
            ["model=hyper_sd15", "sampler.num_inference_steps=2"],
            "add model.loras.0.file=Hyper-SD15-2steps-lora.safetensors",
        ),
        (["model=lcm_sd15", "guidance_scale=7.5"], "guidance_scale=7.5: model=lcm_sd15 is made for at most 2"),
        (
            ["model=lcm_sd15", "model.loras=[]"],
            "loras: model=lcm_sd15 is only its base model without the LoRA of latent",
        ),
        (
            ["model=dmd2_sdxl", "sampler.timesteps=null"],
            "sampler.timesteps=null: model=dmd2_sdxl is made for timesteps=",
        ),
        (["model=lcm_sd15", "negative_prompt=dark"], "negative_prompt: no effect without guidance"),
    ],
)
def test_a_setting_that_contradicts_the_card_is_named(overrides, expected):
    (note,) = notes(*overrides)
    assert note.startswith(expected) or expected in note


def test_a_size_and_the_settings_of_rows_are_looked_at_too():
    rows = 'prompts.rows=[{prompt: "a", num_inference_steps: 9}, {prompt: "b", guidance_scale: 5, height: 768}]'
    made = saved("model=sdxl_turbo", rows, height=512, width=512)
    assert [note.partition(":")[0] for note in card_notes(made)] == [
        "num_inference_steps=9", "guidance_scale=5", "512x768", "model=sdxl_turbo",
    ]  # fmt: skip


@pytest.mark.slow
def test_licences_that_do_not_allow_every_use_are_named():
    named = {
        name for name in CARDS if any("licence" in note for note in card_notes(saved(f"model={name}", "prompt=a")))
    }
    assert named == {"sd_turbo", "sdxl_turbo", "dmd2_sdxl"}


@pytest.mark.parametrize("file, steps", [("model.unet.file=sdxl_lightning_8step_unet.safetensors", 8)])
def test_the_file_of_other_steps_is_a_word_away(file, steps):
    assert notes("model=sdxl_lightning", file, f"sampler.num_inference_steps={steps}") == []


@pytest.mark.slow
def test_the_loras_of_a_run_come_before_those_of_its_model():
    made = config("model=lcm_sd15", f"loras=[{INK}]", "prompt=a")
    assert [lora.path or lora.repo for lora in made.loras] == ["/ink.safetensors", "latent-consistency/lcm-lora-sdv1-5"]
    assert make_config(config_values(made)) == made  # a saved config has them once
    weaker = config("model=hyper_sdxl", "model.loras.0.scale=0.7", "prompt=a")
    assert [lora.scale for lora in weaker.loras] == [0.7]


@pytest.mark.slow
def test_a_lora_of_the_model_is_merged_once():
    made = saved("model=hyper_sdxl", "prompt=a")
    again = override(made, ["model=hyper_sdxl"])
    assert again.loras == made.loras and len(made.loras) == 1
    named = "{repo: ByteDance/Hyper-SD, file: Hyper-SDXL-4steps-lora.safetensors, scale: 0.5}"
    assert [lora.scale for lora in config("model=hyper_sdxl", f"loras=[{named}]").loras] == [0.5]
    other = override(saved("model=sdxl", "prompt=a"), ["model=hyper_sdxl"])
    assert [lora.repo for lora in other.loras] == ["ByteDance/Hyper-SD"]


@pytest.mark.slow
def test_a_command_leaves_out_what_the_model_brings():
    def words(*overrides):
        return [word for word in config_overrides(config(*overrides)) if "lora" in word.partition("=")[0]]

    assert words("model=lcm_sd15") == []
    (own,) = words("model=lcm_sd15", f"loras=[{INK}]")
    assert own.startswith("loras=") and "latent" not in own
    for overrides in (["model=lcm_sd15", "model.loras=[]"], ["model=hyper_sdxl", "model.loras.0.scale=0.7"]):
        made = config(*overrides)
        assert words(*overrides)[0] == "model.loras=[]"
        assert config(*config_overrides(made)).loras == made.loras


@pytest.mark.slow
def test_a_sampler_that_the_user_chooses_wins_and_keeps_the_models_steps():
    made = config("model=sdxl_lightning", "sampler=ddim")
    assert (made.sampler.name, made.sampler.num_inference_steps, made.sampler.timestep_spacing) == (
        "ddim",
        4,
        "trailing",
    )
    assert config("model=sdxl_lightning", "sampler.num_inference_steps=8").sampler.num_inference_steps == 8
    assert config("model=sd15").sampler == config("model=tiny").sampler
