"""`rows`, `limit` and `shard` choose images of a plan, and number none of them again."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import saved

from tpusd.config.rows import Row
from tpusd.config.shards import Shard
from tpusd.errors import UserError
from tpusd.plan.specs import Stripe, image_sizes, make_specs, planned

BASE = saved(rows=[Row(prompt="a")])
ROWS = [Row(prompt=f"p{number}", height=32 if number == 4 else None) for number in range(6)]


def chosen(*overrides):
    return make_specs(saved(*overrides, rows=ROWS))


@pytest.mark.parametrize(
    ("overrides", "numbers"),
    [
        (["rows=2:4"], [2, 3]),
        (["rows=4:"], [4, 5]),
        (["rows=:2"], [0, 1]),
        (["rows=4:100"], [4, 5]),
        (["limit=2"], [0, 1]),
        (["limit=100"], [0, 1, 2, 3, 4, 5]),
        (["rows=2:5", "limit=2"], [2, 3]),
        (["first_row=10", "rows=12:14"], [12, 13]),
    ],
)
def test_chosen_images_are_those_of_the_whole_run(overrides, numbers):
    first = [word for word in overrides if word.startswith("first_row")]
    whole = {(spec.row, spec.copy): spec for spec in chosen("num_images_per_prompt=2", *first)}
    part = list(chosen("num_images_per_prompt=2", *overrides))
    assert [(spec.row, spec.copy) for spec in part] == [(row, copy) for row in numbers for copy in (0, 1)]
    assert all(whole[spec.row, spec.copy] == spec for spec in part)


def test_sizes_of_rows_that_are_not_made_are_not_compiled():
    assert len(image_sizes(saved(rows=ROWS))) == 2 and len(image_sizes(saved("rows=0:4", rows=ROWS))) == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rows=6:9"], "rows=6:9: the prompt set has rows 0 to 5"),
        (["first_row=10", "rows=2:4"], "the prompt set has rows 10 to 15"),
        (["rows=4:2"], "rows=4:2: holds no row"),
        (["rows=3"], "rows=3: must be START:STOP"),
        (["rows=':'"], "rows=:: must be START:STOP"),
        (["rows=-1:2"], "rows=-1:2: must be START:STOP"),
        (["limit=0"], "limit=0: must be from 1"),
    ],
)
def test_rows_that_are_not_there_are_one_line(overrides, expected):
    with pytest.raises(UserError) as error:
        list(chosen(*overrides))
    assert expected in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 7), st.integers(1, 7), st.integers(0, 3))
def test_shards_have_every_image_once_and_grow_without_moving_one(count, offset, num_rows, copies, first):
    def parts(num_rows, copies):
        prompts = dataclasses.replace(BASE.prompts, rows=(Row(prompt="a"),) * num_rows)
        config = dataclasses.replace(BASE, prompts=prompts, num_images_per_prompt=copies, first_row=first)
        shards = [Shard(index=index, count=count) for index in range(1, count + 1)]
        return config, [planned(config, Stripe(shard=shard, offset=offset)) for shard in shards]

    config, made = parts(num_rows, copies)
    whole = list(planned(config))
    assert sorted(key for part in made for key in part) == whole
    for part in made:
        assert len(part) == len(list(part)) == sum(key in part for key in whole)
    assert max(map(len, made)) - min(map(len, made)) <= min(num_rows, copies, count)
    _, grown = parts(num_rows + 2, copies + 1)
    assert all(set(before) <= set(after) for before, after in zip(made, grown, strict=True))


def test_stripes_of_chosen_images_have_each_once():
    config = saved("images=[00001-000,00002-000,00005-000]", rows=ROWS)
    parts = [list(planned(config, Stripe(shard=Shard(index=index, count=2)))) for index in (1, 2)]
    assert parts == [[(2, 0)], [(1, 0), (5, 0)]]
    assert [len(planned(config, Stripe(shard=Shard(index=index, count=2)))) for index in (1, 2)] == [1, 2]
