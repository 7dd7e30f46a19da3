import pytest
from support.runs import config

from tpusd.config.rows import Row
from tpusd.errors import UserError
from tpusd.plan.batches import make_plan
from tpusd.plan.specs import make_specs

ROWS = [Row(prompt="a"), Row(prompt="b", guidance_scale=1.0), Row(prompt="c", seed=0, negative_prompt="")]


def plan(*overrides, rows=ROWS, devices=1, **options):
    return make_plan(config(*overrides), rows, devices, height=24, width=40, **options)


def specs_of(made):
    return {(spec.row, spec.copy): spec for batch in made.batches for spec in batch.specs}


def test_every_row_and_copy_stands_in_the_plan_once():
    made = plan("num_images_per_prompt=5", devices=2)
    assert sorted((spec.row, spec.copy) for batch in made.batches for spec in batch.specs) == [
        (row, copy) for row in range(3) for copy in range(5)
    ]
    assert made.num_images == made.num_to_make == 15 and made.num_done == 0


def test_image_does_not_depend_on_devices_batch_size_or_what_is_done():
    alone = specs_of(plan("num_images_per_prompt=3"))
    packed = specs_of(plan("num_images_per_prompt=5", "batch_size_per_device=3", devices=4, done={(0, 0)}))
    assert all(packed[key] == spec for key, spec in alone.items() if key != (0, 0))


def test_prompts_added_at_the_end_change_no_earlier_image():
    before, after = specs_of(plan()), specs_of(plan(rows=[*ROWS, Row(prompt="d")]))
    assert before.items() <= after.items()


def test_images_without_guidance_have_batches_of_their_own():
    made = plan("num_images_per_prompt=3", "batch_size_per_device=2", devices=2)
    assert [(batch.uses_cfg, len(batch.specs)) for batch in made.batches] == [(True, 4), (False, 3), (True, 2)]
    assert all(spec.uses_cfg == batch.uses_cfg for batch in made.batches for spec in batch.specs)
    assert {batch.padded_size for batch in made.batches} == {4} and made.num_batches == 3


def test_named_images_alone_are_planned_and_stay_as_they_are():
    whole = specs_of(plan("num_images_per_prompt=2"))
    named = plan("num_images_per_prompt=2", "images=[00002-001,00000-000]")
    assert list(specs_of(named).items()) == [(key, whole[key]) for key in ((0, 0), (2, 1))] and named.num_images == 2


@pytest.mark.parametrize("name", ["00003-000", "00000-001", "3-0", "00000-000.png", "../00000-000", "0000000-000", ""])
def test_images_that_the_run_does_not_have_are_refused(name):
    with pytest.raises(UserError, match="images="):
        plan(f"images=['{name}']")


def test_guidance_of_zero_is_a_value_and_not_the_absence_of_one():
    (spec,) = make_specs(config(), [Row(prompt="a", guidance_scale=0.0)], height=24, width=40)
    assert spec.guidance_scale == 0 and spec.uses_cfg


def test_row_values_win_over_the_runs_own():
    first, second, third = make_specs(config("negative_prompt=blurry", "guidance_scale=3"), ROWS, height=24, width=40)
    assert [spec.negative_prompt for spec in (first, second, third)] == ["blurry", "blurry", ""]
    assert [spec.guidance_scale for spec in (first, second, third)] == [3, 1, 3]
    assert [spec.row_seed for spec in (first, second, third)] == [None, None, 0]


def test_finished_images_are_left_out():
    made = plan("num_images_per_prompt=2", devices=8, done={(0, 1), (2, 0), (99, 0)})
    assert sorted(specs_of(made)) == [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert made.num_done == 2


def test_finished_run_has_no_batches():
    made = plan(done={(0, 0), (1, 0), (2, 0)})
    assert list(made.batches) == [] and made.num_batches == made.num_to_make == 0
