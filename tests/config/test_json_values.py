"""JSON of strangers: bounded, and only what can be written again."""

import json
import time

import pytest

from tpusd.config.json_values import MAX_DEPTH, MAX_VALUES, JsonError, parse_json


@pytest.mark.parametrize(
    "text",
    [
        "null",
        '{"a": [1, 2.5, "x", null, true, {"b": []}]}',
        '"\\ud83e\\udd8a and \\u0000"',  # a whole pair
        "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        json.dumps("[{" * 1000),  # brackets in a string are text
        json.dumps(['a \\" [[[', "," * 2_000_000]),  # so are commas
        "1" + "0" * 400,
    ],
)
def test_json_is_read_as_python_reads_it(text):
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON ("),
        ("", "is not JSON ("),
        ("\ufeff{}", "is not JSON ("),
        ("NaN", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("1e400", "too large"),
        ("9" * 5000, "too many digits"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "is nested over 50 deep"),
        ("[" * 100_000, "is nested over 50 deep"),
        ('{"a":' * 100_000, "is nested over 50 deep"),
        ("[" + "[]," * MAX_VALUES + "1]", "holds over 1000000 values"),
        ("[" + "1," * MAX_VALUES + "1]", "holds over 1000000 values"),
    ],
)
def test_what_cannot_be_held_or_written_again_is_refused(text, expected):
    started = time.process_time()
    with pytest.raises(JsonError) as error:
        parse_json(text)
    assert expected in str(error.value) and len(str(error.value)) < 120
    assert time.process_time() - started < 2


def test_bytes_must_be_utf8():
    with pytest.raises(JsonError, match="UTF-8"):
        parse_json('"é"'.encode("latin-1"))
