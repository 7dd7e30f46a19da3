import pytest
from support.runs import saved

from tpusd.config.cache import CacheConfig
from tpusd.config.rows import Row
from tpusd.errors import UserError
from tpusd.plan.batches import Kind, count_batches, full_calls, guided_of, guided_pieces, kind_of, num_programs, pack
from tpusd.plan.specs import make_specs, planned

ROWS = [Row(prompt="a"), Row(prompt="b", guidance_scale=1.0), Row(prompt="c", seed=0, negative_prompt="")]


def plan(*overrides, rows=ROWS, devices=1, done=frozenset()):
    """The batches of a run on so many devices."""
    config = saved(*overrides, rows=rows)
    images = (("run", spec) for spec in make_specs(config, done))
    return list(pack(images, devices * config.batch_size_per_device, lambda run, spec: 50))


def specs_of(batches):
    return {(spec.row, spec.copy): spec for batch in batches for spec in batch.specs}


@pytest.mark.slow
def test_every_row_and_copy_stands_in_the_plan_once():
    made = plan("num_images_per_prompt=5", devices=2)
    every = [(row, copy) for row in range(3) for copy in range(5)]
    assert sorted((spec.row, spec.copy) for batch in made for spec in batch.specs) == every
    images = planned(saved("num_images_per_prompt=5", rows=ROWS))
    assert list(images) == every and len(images) == 15 and all(key in images for key in every)
    assert not any(key in images for key in [(3, 0), (0, 5), (-1, 0), (0,), "00000-000"])


def test_plan_of_many_images_holds_none_of_them():
    images = planned(saved("num_images_per_prompt=4096", rows=[Row(prompt="a")] * 10_000))
    assert len(images) == 40_960_000 and (9_999, 4095) in images and (10_000, 0) not in images


@pytest.mark.slow
def test_image_does_not_depend_on_devices_batch_size_or_what_is_done():
    alone = specs_of(plan("num_images_per_prompt=3"))
    packed = specs_of(plan("num_images_per_prompt=5", "batch_size_per_device=3", devices=4, done={(0, 0)}))
    assert all(packed[key] == spec for key, spec in alone.items() if key != (0, 0))


@pytest.mark.slow
def test_prompts_added_at_the_end_change_no_earlier_image():
    before, after = specs_of(plan()), specs_of(plan(rows=[*ROWS, Row(prompt="d")]))
    assert before.items() <= after.items()


def test_images_without_guidance_have_batches_of_their_own():
    made = plan("num_images_per_prompt=3", "batch_size_per_device=2", devices=2)
    kinds = [{kind_of(spec, 50).guided for spec in batch.specs} for batch in made]
    assert [(kind, len(batch.specs)) for kind, batch in zip(kinds, made, strict=True)] == [
        ({True}, 4),
        ({False}, 3),
        ({True}, 2),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_batches_are_counted_as_they_are_packed(size):
    config = saved("num_images_per_prompt=5", rows=[*ROWS, Row(prompt="d", guidance_scale=1.0)])
    num_calls = {0: 50, 1: 30, 2: 20, 3: 50}
    images = [("run", spec) for spec in make_specs(config)]
    batches = list(pack(images, size, lambda run, spec: num_calls[spec.row]))
    assert sorted(spec.name for batch in batches for spec in batch.specs) == sorted(spec.name for _, spec in images)
    kinds = [(kind_of(spec, num_calls[spec.row]), num_calls[spec.row]) for _, spec in images]
    assert count_batches(kinds, size) == len(batches)


@pytest.mark.slow
def test_a_batch_is_cut_where_its_run_changes():
    first, second = (list(make_specs(saved(rows=ROWS[:2]))) for _ in range(2))
    images = [("a", first[0]), ("b", second[0])]
    (batch,) = pack(images, 8, lambda run, spec: 1)
    assert [part.entries for part in batch.parts()] == [(("a", first[0]),), (("b", second[0]),)]


@pytest.mark.slow
def test_named_images_alone_are_planned_and_stay_as_they_are():
    whole = specs_of(plan("num_images_per_prompt=2"))
    named = plan("num_images_per_prompt=2", "images=[00002-001,00000-000]")
    assert list(specs_of(named).items()) == [(key, whole[key]) for key in ((0, 0), (2, 1))]


@pytest.mark.parametrize("name", ["00003-000", "00000-001", "3-0", "00000-000.png", "../00000-000", "0000000-000", ""])
def test_images_that_the_run_does_not_have_are_refused(name):
    with pytest.raises(UserError, match="images="):
        plan(f"images=['{name}']")


def test_guidance_of_zero_is_a_value_and_not_the_absence_of_one():
    (spec,) = make_specs(saved(rows=[Row(prompt="a", guidance_scale=0.0)]))
    assert spec.guidance_scale == 0


def test_row_values_win_over_the_runs_own():
    first, second, third = make_specs(saved("negative_prompt=blurry", "guidance_scale=3", rows=ROWS))
    assert [spec.negative_prompt for spec in (first, second, third)] == ["blurry", "blurry", ""]
    assert [spec.guidance_scale for spec in (first, second, third)] == [3, 1, 3]
    assert [spec.row_seed for spec in (first, second, third)] == [None, None, 0]


def test_finished_images_are_left_out():
    made = plan("num_images_per_prompt=2", devices=8, done={(0, 1), (2, 0), (99, 0)})
    assert sorted(specs_of(made)) == [(0, 0), (1, 0), (1, 1), (2, 1)]


def test_finished_run_has_no_batches():
    made = plan(done={(0, 0), (1, 0), (2, 0)})
    assert made == []


def guided(scale=7.5, interval=(0.0, 1.0), num_calls=10):
    (spec,) = make_specs(saved(f"guidance_scale={scale}", f"guidance_interval={list(interval)}", rows=ROWS[:1]))
    return guided_of(spec, num_calls)


@pytest.mark.slow
def test_guidance_is_for_the_calls_of_its_interval():
    assert guided() is True and guided(scale=1) is False
    assert guided(interval=(0.2, 0.7)) == range(2, 7) and guided(interval=(0.25, 0.7)) == range(3, 7)
    assert guided(interval=(0, 0.5), num_calls=4) == range(2)
    assert guided(interval=(0.01, 0.09)) is False  # no call begins in it
    assert guided(interval=(0.2, 0.7), scale=0.5) is False


def test_calls_are_cut_where_guidance_begins_and_ends():
    assert guided_pieces(True, 5) == [(range(5), True)] and guided_pieces(False, 5) == [(range(5), False)]
    assert guided_pieces(range(2, 4), 5) == [(range(2), False), (range(2, 4), True), (range(4, 5), False)]
    assert guided_pieces(range(2), 5) == [(range(2), True), (range(2, 5), False)]
    assert guided_pieces(range(3, 5), 5) == [(range(3), False), (range(3, 5), True)]


def kind(guided, **more):
    return Kind(guided=guided, loras=(), **{"given_noise": False, "from_picture": False, **more})


def test_programs_are_counted():
    guided = ([True], [False, False], [True, False], [range(2)], [range(2), True])
    assert [num_programs(kind(own) for own in kinds) for kinds in guided] == [3, 3, 4, 4, 4]
    assert num_programs([kind(True), kind(True, given_noise=True), kind(range(2), given_noise=True)]) == 5
    picture = kind(True, from_picture=True)
    cached = [
        kind(True, cache=CacheConfig(name="deepcache", interval=n, branch=b)) for n, b in ((2, 0), (3, 0), (2, 1))
    ]
    assert num_programs(cached) == 4 and num_programs([kind(True), *cached]) == 5  # by branch alone
    assert num_programs([picture]) == 4 and num_programs([kind(True), picture]) == 5  # with the encoder of pictures
    assert num_programs([kind(True), picture, kind(range(2), from_picture=True)]) == 6


def full(guided=True, num_calls=8, **fields):
    return [
        i
        for i, all_of_it in enumerate(full_calls(CacheConfig(name="deepcache", **fields), guided, num_calls))
        if all_of_it
    ]


def test_a_cache_computes_all_at_its_steps_and_where_guidance_begins_and_ends():
    assert full(interval=3) == [0, 3, 6] and full(interval=1) == list(range(8)) and full(interval=100) == [0]
    assert full(steps=(0, 1, 5, 40)) == [0, 1, 5]
    assert full(guided=range(2, 7), interval=4) == [0, 2, 4, 7] and full(guided=range(5), interval=4) == [0, 4, 5]
    assert full_calls(CacheConfig(), True, 3) == (True, True, True)


def test_images_of_one_cache_have_batches_of_their_own():
    fields = ("cache=none", "cache=deepcache", "cache=deepcache cache.interval=2", "cache=deepcache cache.interval=1")
    specs = [next(make_specs(saved(*text.split(), rows=ROWS[:1]))) for text in fields]
    batches = list(pack([("run", spec) for spec in specs * 2], 8, lambda _, spec: 10))
    assert [[spec.cache.interval for spec in batch.specs] for batch in batches] == [[None, 1, None, 1], [3, 3], [2, 2]]
    kinds = [(kind_of(spec, 10), 10) for spec in specs * 2]
    assert count_batches(kinds, 8) == 3 and num_programs(kind for kind, _ in kinds) == 4


@pytest.mark.slow
def test_images_of_a_batch_have_guidance_for_the_same_calls():
    specs = [
        next(make_specs(saved(f"guidance_interval={interval}", f"sampler.num_inference_steps={steps}", rows=ROWS[:1])))
        for interval in ("[0,1]", "[0,0.5]", "[0.2,1]") for steps in (5, 10)
    ]  # fmt: skip
    batches = pack([("run", spec) for spec in specs * 3], 4, lambda _, spec: spec.sampler.num_inference_steps)
    made = [[kind_of(spec, spec.sampler.num_inference_steps) for spec in batch.specs] for batch in batches]
    assert all(len(set(kinds)) == 1 for kinds in made) and sum(map(len, made)) == 18
    kinds = [(kind_of(spec, calls := spec.sampler.num_inference_steps), calls) for spec in specs * 3]
    assert count_batches(kinds, 4) == len(made)
