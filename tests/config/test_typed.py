import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Annotated, Literal, get_type_hints

import pytest
from annotated_types import Interval, Len, MultipleOf
from hypothesis import given
from hypothesis import strategies as st

from tpusd.config.options import describe, options
from tpusd.config.schema import RunConfig
from tpusd.config.typed import Advice, Help, flatten, plain, read, read_value
from tpusd.errors import UserError

Level = Annotated[int, Interval(ge=1, le=9)]


@dataclass(frozen=True, kw_only=True)
class Part:
    kind: Annotated[Literal["day", "night"], Help("when")]
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    part: Annotated[Part, Help("a group")]
    name: str = "a"
    on: bool = False
    share: Annotated[float, Interval(ge=0, le=1), Advice("0 switches it off")] = 0.5
    width: Annotated[int | None, Interval(ge=8, le=64), MultipleOf(8)] = None
    levels: Level | Annotated[tuple[Level, ...], Len(1, 3)] = 2
    names: tuple[str, ...] = ()


GOOD = {"part": {"kind": "day"}}


def fault(values):
    with pytest.raises(UserError) as error:
        read(Whole, GOOD | values)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def test_a_whole_number_passes_for_a_float_and_a_list_for_a_tuple():
    made = read(Whole, {"part": {"kind": "night", "scale": 3}, "share": 1, "levels": [1, 9], "names": ["x"]})
    assert made == Whole(part=Part(kind="night", scale=3.0), share=1.0, levels=(1, 9), names=("x",))
    assert type(made.share) is float and type(made.part.scale) is float


def test_plain_values_survive_both_ways_in_the_order_of_the_fields():
    values = {
        "part": {"kind": "night", "scale": None},
        "name": "b",
        "on": True,
        "share": 0.25,
        "width": 16,
        "levels": [3, 4],
        "names": ["x", "y"],
    }
    assert plain(read(Whole, values)) == values
    assert list(plain(read(Whole, dict(reversed(values.items()))))) == list(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"nam": "x"}, "nam=x: no such field; did you mean name"),
        ({7: "x"}, "7=x: no such field; the fields are part, name"),
        ({"part": {}}, "part.kind: missing; set part.kind=..."),
        ({"part": {"kind": "dat"}}, "part.kind=dat: must be one of day, night; did you mean day"),
        ({"part": {"kind": ["day"]}}, "part.kind=['day']: must be one of day, night"),
        ({"part": [1]}, "part=[1]: must be a group of fields, not one value"),
        ({"name": 5}, "name=5: must be text, not a whole number; quote it as 'name=\"5\"'"),
        ({"name": None}, "name=null: must be text, not null"),
        ({"on": 1}, "on=1: must be true or false, not a whole number"),
        ({"share": True}, "share=True: must be a number, not true or false"),
        ({"share": "much"}, "share=much: must be a number, not text"),
        ({"share": math.nan}, "share=nan: must be from 0 to 1; 0 switches it off"),
        ({"share": 10**400}, "must be from 0 to 1; 0 switches it off"),
        ({"part": {"kind": "day", "scale": 10**400}}, "is too large"),
        ({"width": True}, "width=True: must be a whole number, not true or false"),
        ({"width": 8.0}, "width=8.0: must be a whole number, not a number with a point"),
        ({"width": 13}, "width=13: must be a multiple of 8 from 8 to 64; try width=16"),
        ({"width": -(10**400)}, "must be a multiple of 8 from 8 to 64; try width=8"),
        ({"width": 10**400}, "try width=64"),
        ({"levels": 10}, "levels=10: must be from 1 to 9"),
        ({"levels": []}, "levels=[]: must have 1 to 3 entries"),
        ({"levels": [1, 2, 3, 4]}, "must have 1 to 3 entries"),
        ({"levels": [1, 0]}, "levels[1]=0: must be from 1 to 9"),
        ({"levels": [1, [2]]}, "levels[1]=[2]: must be a whole number, not a list"),
        ({"names": "x"}, "names=x: must be a list, as in [a, b], not text"),
        ({"names": {"x"}}, "must be a list, as in [a, b], not set"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_path_and_its_rule(values, expected):
    assert expected in fault(values)


def test_reading_stops_at_the_first_fault_of_a_huge_list():
    asked = []

    class Entries(list):
        def __iter__(self):
            for entry in super().__iter__():
                asked.append(entry)
                yield entry

    assert "names[0]=7" in fault({"names": Entries([7] * 1000)})
    assert len(asked) == 1


def test_a_number_that_python_does_not_write_is_refused_in_one_line():
    assert "must be a multiple of 8" in fault({"width": 16 ** (sys.get_int_max_str_digits() + 1)})


def test_general_advice_ends_the_lines_that_have_no_other():
    with pytest.raises(UserError, match="name=5: must be text, not a whole number; look it up"):
        read(Whole, GOOD | {"name": 5}, advice="look it up")
    with pytest.raises(UserError, match="0 switches it off$"):
        read(Whole, GOOD | {"share": 2}, advice="look it up")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.sampled_from([option.path for option in options(RunConfig) if "." not in option.path]), ANYTHING)
def test_any_value_of_any_field_is_read_or_refused_in_one_line(name, value):
    hint = get_type_hints(RunConfig, include_extras=True)[name]
    try:
        made = read_value(hint, value, name)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert read_value(hint, plain(made), name) == made


def test_nested_values_flatten_to_dotted_names():
    values = {"a": 1, "b": {"c": [2], "d": {"e": None}}, "f": {}}
    assert list(flatten(values)) == [("a", 1), ("b.c", [2]), ("b.d.e", None)]


def test_options_are_all_fields_with_their_parts_before_their_own_fields():
    found = {option.path: option for option in options(Whole)}
    assert list(found)[:4] == ["part", "part.kind", "part.scale", "name"]
    assert (found["part"].is_group, found["part.kind"].is_group) == (True, False)
    assert (found["part.kind"].default, found["share"].default) == (dataclasses.MISSING, 0.5)
    assert (found["part.kind"].help, found["name"].help) == ("when", "")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("part", "a group of fields"),
        ("part.kind", "`day`, `night`"),
        ("part.scale", "a number, or null"),
        ("name", "text"),
        ("share", "a number from 0 to 1"),
        ("width", "a multiple of 8 from 8 to 64, or null"),
        ("levels", "a whole number from 1 to 9 or a list of whole numbers"),
        ("names", "a list of texts"),
    ],
)
def test_what_a_field_accepts_is_said_in_words(path, words):
    assert {option.path: describe(option.hint) for option in options(Whole)}[path] == words


def test_every_field_of_a_run_has_help():
    assert [option.path for option in options(RunConfig) if not option.help] == []
