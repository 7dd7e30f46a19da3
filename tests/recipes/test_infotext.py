import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpusd.errors import UserError
from tpusd.recipes.a1111 import carry_over
from tpusd.recipes.infotext import read_infotext, write_infotext

RECIPE = {
    "prompt": "a red fox",
    "negative_prompt": "blurry",
    "num_inference_steps": 20,
    "sampler": "euler_ancestral",
    "guidance_scale": 7.5,
    "seed": 4294967295,
    "height": 24,
    "width": 40,
    "model": "sd15",
}
PROMPTS = [
    "a fox, red: (very:1.3), <lora:x:1>",
    'say "hi", \\o/',
    "two\nlines, and: more",
    "日本の狐 🦊، שלום",
    "x: y, " * 99,
]


def a1111(text):
    """How A1111 1.10 reads an infotext (parse_generation_parameters and unquote in modules/infotext_utils.py)."""
    setting = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    lines = text.strip().split("\n")
    last = lines.pop() if len(setting.findall(lines[-1])) >= 3 else ""
    texts, which = {"Prompt": "", "Negative prompt": ""}, "Prompt"
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            which, line = "Negative prompt", line[16:].strip()
        texts[which] += line if texts[which] == "" else "\n" + line
    found = dict(texts)
    for name, value in setting.findall(last):
        if value[:1] == value[-1:] == '"' and value:
            try:
                value = json.loads(value)
            except ValueError:
                pass
        size = re.match(r"^(\d+)x(\d+)$", value)
        found |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    return found


def written(**changes):
    return write_infotext(RECIPE | changes, max_chars=80_000)


def test_an_unknown_sampler_has_no_name_in_a1111():
    with pytest.raises(UserError, match="sampler.name=turbo: no such sampler"):
        written(sampler="turbo")


def test_a1111_reads_every_field_back():
    found = a1111(written(sampler_settings={"use_karras_sigmas": True}, model="a, b: c"))
    assert found.pop("Version").startswith("tpusd ")
    assert found == {
        "Prompt": "a red fox",
        "Negative prompt": "blurry",
        "Steps": "20",
        "Sampler": "Euler a",
        "CFG scale": "7.5",
        "Seed": "4294967295",
        "Size-1": "40",
        "Size-2": "24",
        "Model": "a, b: c",
        "RNG": "JAX",
        "Schedule type": "Karras",
    }


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("negative", [None, "", "Steps: 1, Seed: 2, Size: 3x4", *PROMPTS])
def test_a1111_reads_hard_prompts_back(prompt, negative):
    found = a1111(written(prompt=prompt, negative_prompt=negative))
    assert found["Prompt"] == prompt.strip() and found["Negative prompt"] == (negative or "").strip()
    assert found["Steps"] == "20" and found["Seed"] == "4294967295"


@pytest.mark.slow
@given(st.text(), st.text(), st.dictionaries(st.from_regex(r"[A-Z][a-z]{1,9}", fullmatch=True), st.text()))
def test_our_reader_takes_any_text_as_a1111_does(prompt, negative, settings):
    line = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.items())
    for text in (f"{prompt}\nNegative prompt: {negative}\n{line}", prompt, written(prompt=prompt, model=negative)):
        ours, theirs = read_infotext(text), a1111(text)
        assert (ours.prompt, ours.negative_prompt) == (theirs.pop("Prompt"), theirs.pop("Negative prompt"))
        sizes = {name for name in ours.settings if f"{name}-1" in theirs}
        assert {name: value for name, value in ours.settings.items() if name not in sizes} == {
            name: value for name, value in theirs.items() if name.rsplit("-", 1)[0] not in sizes
        }


def test_text_of_a1111_itself_is_read():
    text = (
        "portrait of a cat\nwith a hat, (sharp:1.2)\nNegative prompt: ugly, [blurry]\nbad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Lora hashes: "one: 1a2b, two: 3c4d", Version: v1.10.1'
    )
    found = read_infotext(text)
    assert (
        found.prompt == "portrait of a cat\nwith a hat, (sharp:1.2)" and found.negative_prompt == "ugly, [blurry]\nbad"
    )
    assert found.settings["Lora hashes"] == "one: 1a2b, two: 3c4d" and found.settings["Size"] == "512x768"
    names = "Steps|Sampler|Schedule type|CFG scale|Seed|Size|Model hash|Model|Lora hashes|Version"
    assert list(found.settings) == names.split("|")


def test_text_without_settings_is_all_prompt():
    assert read_infotext("a fox, red: very").settings == {}
    assert read_infotext("a fox\nblue").prompt == "a fox\nblue"


@pytest.mark.parametrize(("scale", "shown"), [(0.0, "1"), (0.5, "1"), (1.0, "1"), (1.5, "1.5"), (12, "12")])
def test_the_prompt_alone_is_cfg_1_in_a1111(scale, shown):
    """A1111 skips the negative prompt at 1 alone; below, it takes more of the negative prompt."""
    assert a1111(written(guidance_scale=scale))["CFG scale"] == shown


@pytest.mark.parametrize(("scale", "lines"), [("0", 1), ("0.5", 1), ("1", 0), ("1.0", 0), ("7.5", 0), ("-1", 1)])
def test_low_guidance_of_a1111_is_carried_over_with_a_line(scale, lines):
    carried = carry_over(
        read_infotext(f"a fox\nSteps: 20, Sampler: Euler a, CFG scale: {scale}, Seed: 0, Size: 512x512")
    )
    said = [line for line in carried.left_out if line.startswith(f"CFG scale: {scale}: ")]
    assert len(said) == lines
    assert (f"guidance_scale={float(scale)}" in carried.overrides) == (scale != "-1")
    assert all("0 to 1 is the prompt alone" in line for line in said if scale != "-1")
