"""The fields of prompt syntax in configs, plans, manifests, recipes, resumed runs and sweeps."""

import dataclasses

import pytest
from support.checkpoints import tiny
from support.runs import config, saved

from tpusd.config.schema import config_values
from tpusd.errors import UserError
from tpusd.plan.batches import num_programs
from tpusd.plan.specs import make_specs
from tpusd.recipes.command import config_overrides
from tpusd.recipes.own import _config
from tpusd.records.manifest import OPTIONAL_FIELDS, described_values
from tpusd.records.saved import refuse_other_run, text_fields
from tpusd.runs.prepare import prepare_run

LONG = "an owl at night, " * 8


def prepared(*overrides):
    return prepare_run(config("model=local", f"model.path={tiny()}", "height=64", "width=64", *overrides))


@pytest.mark.slow
def test_the_fields_are_saved_only_where_they_are_set():
    assert not {"syntax", "weighting"} & set(config_values(config())["prompts"])
    values = config_values(config("prompts.syntax=compel"))
    assert values["prompts"]["syntax"] == "compel" and "weighting" not in values["prompts"]


@pytest.mark.slow
def test_a_manifest_line_says_how_the_prompt_was_read():
    def line(*overrides):
        made = saved('prompt="a fox"', *overrides)
        return described_values(made, {"a fox": (5, False)}, next(make_specs(made)))

    fields = ("prompt_syntax", "prompt_weighting", "on_truncate")
    assert not set(fields) & set(line()) and set(fields) <= set(OPTIONAL_FIELDS)
    assert [line("prompts.syntax=a1111").get(name) for name in fields] == ["a1111", "a1111", None]
    made = line("prompts.syntax=compel", "prompts.weighting=comfy", "on_truncate=chunk")
    assert [made.get(name) for name in fields] == ["compel", "comfy", "chunk"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["prompts.weighting=comfy"], "prompts.weighting=comfy: is for prompts.syntax=a1111 and prompts.syntax=compel"),
        (["prompts.syntax=a111"], "prompts.syntax=a111: must be one of plain, a1111, compel; did you mean a1111"),
    ],
)
def test_wrong_fields_are_one_line(overrides, line):
    with pytest.raises(UserError) as caught:
        config(*overrides)
    assert str(caught.value).startswith(line)


@pytest.mark.slow
def test_the_plan_counts_a_program_for_each_number_of_chunks():
    run = prepared(
        "prompts.syntax=a1111",
        'prompts.rows=[{prompt: a}, {prompt: "(b:2)"}, {prompt: a BREAK b}]',
        "num_images_per_prompt=2",
    )
    kinds = [run.kind(spec) for spec in make_specs(run.config)]
    assert [kind.text.chunks for kind in kinds] == [1, 1, 1, 1, 2, 2] and num_programs(kinds) == 5
    plain = prepared("prompts.rows=[{prompt: a}]", "on_truncate=chunk")
    assert [plain.kind(spec).text for spec in make_specs(plain.config)] == [None]


@pytest.mark.slow
def test_long_prompts_are_cut_refused_or_whole():
    prompt = f'prompt="{LONG}"'
    assert "their ends are left out" in prepared(prompt).warnings[0]
    run = prepared(prompt, "on_truncate=chunk")
    assert not any("left out" in warning for warning in run.warnings)
    assert run.tokens[LONG] == (8 * 13 + 2, False)
    with pytest.raises(UserError, match="on_truncate=error: 1 of 1 rows have a text of more than the 77 tokens"):
        prepared(prompt, "prompts.syntax=a1111", "on_truncate=error")
    cut = prepared(f'prompt="{LONG}"', "prompts.syntax=compel")
    assert "their ends are left out: prompt of row 0" in cut.warnings[0]


def test_marks_that_are_not_implemented_are_a_line_with_the_row():
    with pytest.raises(UserError, match=r"^prompt of row 1: AND joins prompts in A1111, which is not implemented"):
        prepared("prompts.syntax=a1111", 'prompts.rows=[{prompt: a}, {prompt: "a AND b"}]')


@pytest.mark.slow
def test_another_way_to_read_prompts_is_another_run(tmp_path):
    plain = saved('prompt="a fox"')
    for other in ("prompts.syntax=a1111", "on_truncate=chunk"):
        with pytest.raises(UserError, match="(prompts.syntax|on_truncate)="):
            refuse_other_run(tmp_path, plain, saved('prompt="a fox"', other), advice="choose another")
    assert text_fields(saved("on_truncate=error")) == text_fields(plain)


def test_a_recipe_has_the_fields():
    made = saved('prompt="a fox"', "prompts.syntax=a1111", "prompts.weighting=comfy", "on_truncate=chunk")
    spec = next(make_specs(made))
    recipe = described_values(made, {"a fox": (5, False)}, spec) | {
        "model_settings": config_values(made)["model"],
        "precision_settings": config_values(made)["precision"],
        "sampler_settings": config_values(made)["sampler"],
        "image_format": "png",
        "image_quality": None,
    }
    again, _ = _config(recipe)
    words = config_overrides(again)
    assert words == config_overrides(dataclasses.replace(made, prompts=again.prompts))
    assert {"prompts.syntax=a1111", "prompts.weighting=comfy", "on_truncate=chunk"} <= set(words)
    assert not any("prompts." in word or "on_truncate" in word for word in config_overrides(saved("on_truncate=error")))
