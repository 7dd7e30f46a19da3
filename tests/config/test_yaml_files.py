"""Our reader of YAML against PyYAML's safe loader, and its bounds."""

import io
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tpusd.config import yaml_files
from tpusd.config.yaml_files import check_yaml, parse_yaml, to_yaml
from tpusd.errors import UserError

DOCUMENTS = [
    "",
    "# nothing\n",
    "a: 1\nb: [1, 2.5, .inf, 1e3, 0x1F, 0o17, 1_000, 1:30]\n",
    "a: yes\nb: ~\nc: null\nd:\ne: 2026-11-27\nf: 2026-11-27 10:00:00\n",
    "a: &x {p: 1, q: [2]}\nb: *x\nc: [*x, *x]\n",
    "base: &b {p: 1, q: 2}\nmore: {<<: *b, q: 3}\nother:\n  <<: [{p: 9, r: 1}, *b]\n  s: 4\n",
    "a: \"quoted 1\"\nb: '1'\nc: |\n  block\n  text\nd: >\n  folded\n  text\n",
    "? a\n: 1\n1: one\n1.5: x\nnull: y\ntrue: z\n",
    "a: !!str 1\nb: !!int '7'\nc: !!float 3\nd: !!map {x: 1}\ne: !!seq [1]\nf: ! 12\n",
    "a: !!binary aGVsbG8=\n",
    "a: 1\na: 2\n",
    "- [[], {}, '']\n- - - 1\n",
]


@pytest.mark.parametrize("text", DOCUMENTS)
def test_documents_are_read_as_pyyaml_reads_them(text):
    assert parse_yaml(text.encode(), "x") == parse_yaml(io.BytesIO(text.encode()), "x") == yaml.safe_load(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_is_written_is_read(values):
    try:
        text = to_yaml(values).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return
    assert parse_yaml(text, "x") == values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "is not YAML"),
        ("a: *b\n", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "more than one document"),
        ("? [a]\n: 1\n", "is not YAML"),
        ("a: !!set {x, y}\n", "tag"),
        ("a: !!python/object/apply:os.system [x]\n", "tag"),
        ("a: !!map x\n", "tag"),
        ("a: [<<]\n", "is not YAML"),
        ("a: {<<: 3}\n", "is not YAML"),
        ("a: !!int x\n", "is not YAML"),
        ("a: " + "[" * 60 + "]" * 60, "is nested over 50 deep"),
        ("[" * 1_000_000, "exceeded maximum nesting depth"),
        ("a: &a [*a]", "contains itself"),
        ("[" + "1," * 1_100_000 + "1]", "has a list of over 1048576 entries"),
        ("a: '" + "x" * (17 << 20) + "'", "holds a text of over 16 MiB"),
        ("a: " + "x " * (9 << 20), "holds a text of over 16 MiB"),
        ("a: \xff", "is not YAML"),
    ],
)
def test_what_is_out_of_bounds_or_no_data_is_one_line(text, expected):
    started = time.process_time()
    data = text.encode("latin-1")
    with pytest.raises(UserError) as error:
        parse_yaml(data, "file.yaml")
    assert str(error.value).startswith("file.yaml: ") and expected in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert time.process_time() - started < 10


def test_values_are_counted_before_another_library_reads_them(monkeypatch):
    text = b"[a, {b: c}, {b: d}]"  # a group counts twice, and a name once
    check_yaml(text, "x", max_values=9)
    with pytest.raises(UserError, match="holds over 8 values"):
        check_yaml(text, "x", max_values=8)
    monkeypatch.setattr(yaml_files, "MAX_VALUES", 4)
    with pytest.raises(UserError, match="holds over 4 values"):
        parse_yaml(b"[a, {b: c}]", "x")
