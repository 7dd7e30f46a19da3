import dataclasses
import datetime
import json
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import config

from tpusd.config.rows import Row
from tpusd.config.schema import PromptsConfig, config_values, make_config
from tpusd.errors import UserError
from tpusd.prompts.rows import column_notes, read_rows


def read(tmp_path, name, text, column=None):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_rows(PromptsConfig(name="file", path=str(path), column=column))


def prompts(rows):
    return [row.prompt for row in rows]


def test_txt_is_a_prompt_a_line_and_skips_blank_ones(tmp_path):
    assert prompts(read(tmp_path, "p.txt", 'a, fox\n\n  an owl  \r\n日本 "quoted"')) == [
        "a, fox",
        "an owl",
        '日本 "quoted"',
    ]


def test_txt_lines_end_at_line_ends_alone(tmp_path):
    assert prompts(read(tmp_path, "p.txt", "a\u2028b\x0cc\rd")) == ["a\u2028b\x0cc", "d"]


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert prompts(read(tmp_path, "p.csv", b"\xef\xbb\xbfprompt\na\n")) == ["a"]
    assert prompts(read(tmp_path, "p.txt", b"\xef\xbb\xbfa\n")) == ["a"]


def test_csv_and_tsv_read_quotes_newlines_and_further_columns(tmp_path):
    rows = read(
        tmp_path,
        "p.csv",
        'id,caption,seed,guidance_scale,negative_prompt\n7,"a, ""b""\nc",0,1.5,\n8,d,,,blurry\n',
        "caption",
    )
    assert rows == (
        Row(prompt='a, "b"\nc', seed=0, guidance_scale=1.5, extra={"id": "7"}),
        Row(prompt="d", negative_prompt="blurry", extra={"id": "8"}),
    )
    assert prompts(read(tmp_path, "p.tsv", "prompt\tx\na, b\t1\n")) == ["a, b"]


def test_jsonl_keeps_types_of_further_columns(tmp_path):
    lines = [{"prompt": "a", "seed": 3, "negative_prompt": "", "tags": ["x", {"y": 1}], "n": None}, {"prompt": "b"}]
    rows = read(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert rows == (
        Row(prompt="a", seed=3, negative_prompt="", extra={"tags": ["x", {"y": 1}], "n": None}),
        Row(prompt="b"),
    )


@pytest.mark.slow
def test_rows_survive_the_way_through_a_saved_config(tmp_path):
    rows = read(
        tmp_path,
        "p.jsonl",
        '{"prompt": "a", "seed": 0, "guidance_scale": 0, "id": 5}\n{"prompt": "b", "negative_prompt": ""}',
    )
    values = config_values(config()) | {"prompts": {"name": "file", "rows": [row.to_values() for row in rows]}}
    made = make_config(values)
    assert read_rows(made.prompts) == rows and make_config(config_values(made)) == made


@pytest.mark.parametrize(
    ("name", "text", "column", "expected"),
    [
        ("p.txt", "", None, "holds no prompt"),
        ("p.txt", "\n \n", None, "holds no prompt"),
        ("p.csv", "prompt\n", None, "holds no prompt"),
        ("p.csv", 'prompt,x\na,1\n"b,2\n', None, "p.csv line 3: is not readable"),
        ("p.csv", 'prompt,x\n"a\nb",1\nc\n', None, "p.csv line 4: has 1 cells and the header has 2"),
        ("p.csv", "prompt,prompt\na,b\n", None, "p.csv line 1: column prompt is twice"),
        ("p.csv", "captions,x\na,b\n", "caption", "it has captions, x; choose one with prompts.column=captions"),
        ("p.csv", "prompt,seed\na,1\n ,2\n", None, "p.csv line 3: prompt is empty"),
        ("p.csv", "prompt,seed\na,1.5\n", None, "p.csv line 2: seed=1.5: must be a whole number"),
        ("p.csv", "prompt,seed\na,4294967296\n", None, "p.csv line 2: seed=4294967296: must be from 0"),
        ("p.csv", "prompt,guidance_scale\na,nan\n", None, "p.csv line 2: guidance_scale=nan: must be"),
        ("p.csv", "prompt,guidance_scale\na,much\n", None, "p.csv line 2: guidance_scale=much: must be a number"),
        ("p.csv", "caption,prompt\na,b\n", "caption", "has both caption and prompt"),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": "b"\n',
            None,
            "p.jsonl line 2: is not JSON (Expecting ',' delimiter, column 15)",
        ),
        ("p.jsonl", '["a"]\n', None, "p.jsonl line 1: must be an object"),
        ("p.jsonl", "[" * 100_000, None, "p.jsonl line 1: is nested over"),
        ("p.jsonl", '{"prompt": 3}\n', None, "p.jsonl line 1: prompt=3: must be text"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', None, "p.jsonl line 1: seed=True: must be a whole number"),
        ("p.jsonl", '{"prompt": "a", "sha256": 1}\n', None, "column sha256 has the name of a manifest field"),
        ("p.jsonl", '{"prompt": "a", "x": NaN}\n', None, "line 1: holds NaN, which is not JSON"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', None, "half of a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "guidance_scale": 1' + "0" * 400 + "}\n", None, "must be from 0 to 1000"),
        ("p.txt", b"ok\n\xff\n", None, "p.txt line 2: is not UTF-8"),
        ("p.txt", b"\xff\xfea\0", None, "is UTF-16"),
        ("p.txt", "a", "prompt", "a txt file has no columns"),
        ("p.xlsx", "a", None, "must end in .txt, .csv, .tsv, .jsonl, .json, .parquet"),
        ("p.txt", "a" * 200_001, None, "has 200001 characters"),
    ],
)
def test_faults_are_told_with_their_place(tmp_path, name, text, column, expected):
    with pytest.raises(UserError) as error:
        read(tmp_path, name, text, column)
    assert expected in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("path", ["missing.txt", "directory.txt", "nul\0.txt"])
def test_files_that_cannot_be_read_are_told(tmp_path, path):
    (tmp_path / "directory.txt").mkdir()
    with pytest.raises(UserError, match="no such file|is not a file|cannot be read"):
        read_rows(PromptsConfig(name="file", path=str(tmp_path / path)))


def test_more_rows_than_keys_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tpusd.prompts.rows.MAX_ROWS", 3)
    assert len(read(tmp_path, "p.txt", "a\nb\nc\n")) == 3
    with pytest.raises(UserError, match="more than 3 prompts"):
        read(tmp_path, "p.txt", "a\nb\nc\nd\n")


TEXTS = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.sampled_from(
            [
                "prompt",
                "seed",
                ",",
                "\t",
                "\n",
                "\r",
                '"',
                "{",
                "}",
                ":",
                '"prompt"',
                '"seed"',
                "1",
                "-",
                "[",
                "é",
                "\0",
            ]
        ),
        max_size=25,
    ).map(lambda parts: "".join(parts).encode()),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=TEXTS, suffix=st.sampled_from([".txt", ".csv", ".tsv", ".jsonl", ".json"]), header=st.booleans())
def test_any_file_gives_rows_or_one_line(tmp_path_factory, data, suffix, header):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(b"prompt,seed\n" * header + data)
    try:
        rows = read_rows(PromptsConfig(name="file", path=str(path)))
        assert rows and all(row.prompt.strip() for row in rows)
    except UserError as error:
        assert len(str(error)) < 1200 and "\n" not in str(error)


def test_all_faulty_rows_are_listed_at_once(tmp_path):
    file = ("p.csv", "prompt,seed\na,x\nb,1\n,2\nc,3,4\nd,-1\n")
    with pytest.raises(UserError) as caught:
        read(tmp_path, *file)
    line = str(caught.value)
    assert "4 rows are wrong" in line and "\n" not in line
    for words in ("line 2: seed=x", "line 4: prompt is empty", "line 5: has 3 cells", "line 6: seed=-1"):
        assert words in line, words
    lines = ["not json"] * 25 + ['{"prompt": "a"}']
    file = ("p.jsonl", "\n".join(lines))
    with pytest.raises(UserError) as caught:
        read(tmp_path, *file)
    assert "25 rows are wrong" in str(caught.value) and str(caught.value).endswith("and 15 more")


def test_a_missing_column_is_one_fault_and_not_one_a_row(tmp_path):
    file = ("p.csv", "caption\n" + "a\n" * 50)
    with pytest.raises(UserError, match="has no column prompt; it has caption") as caught:
        read(tmp_path, *file)
    assert "rows are wrong" not in str(caught.value)


@pytest.mark.parametrize(("sign", "suffix"), [(";", "csv"), ("\t", "csv"), (",", "csv"), ("\t", "tsv")])
def test_separators_are_recognised(tmp_path, sign, suffix):
    """Spreadsheets write semicolons where a comma is a decimal point."""
    file = (f"p.{suffix}", f'seed{sign}"prompt"\n7{sign}"a{sign} b, c"\n')
    (row,) = read(tmp_path, *file)
    assert (row.prompt, row.seed) == (f"a{sign} b, c", 7)


@pytest.mark.parametrize(
    ("name", "content"), [("p.csv", "prompt,seed\na,7.0\n"), ("p.jsonl", '{"prompt": "a", "seed": 7.0}')]
)
def test_a_whole_number_with_a_point_is_a_seed(tmp_path, name, content):
    """As pandas writes a column of whole numbers with empty cells."""
    file = (name, content)
    (row,) = read(tmp_path, *file)
    assert row.seed == 7 and type(row.seed) is int


def test_a_column_that_looks_like_a_field_is_said_to_have_no_effect(tmp_path):
    file = ("p.csv", "prompt,steps,cfg,neg,artist\na,20,7,dark,me\n")
    notes = column_notes(read(tmp_path, *file))
    assert [note.partition("column ")[2].split()[0] for note in notes] == ["steps", "cfg", "neg"]
    assert "rename it to num_inference_steps" in notes[0]
    assert "rename it to guidance_scale" in notes[1] and "rename it to negative_prompt" in notes[2]


def test_a_million_columns_are_refused_soon(tmp_path):
    header = ",".join(f"c{i}" for i in range(500_000))
    file = ("p.csv", f"prompt,{header}\n")
    start = time.monotonic()
    with pytest.raises(UserError, match="500001 columns; at most 1000"):
        read(tmp_path, *file)
    assert time.monotonic() - start < 5


def test_empty_prompts_are_skipped_where_that_is_asked_for(tmp_path):
    lines = ['{"prompt": "a"}', '{"prompt": " "}', '{"prompt": null}', '{"prompt": "b", "seed": 3}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    (tmp_path / "p.csv").write_text("prompt,seed\na,\n,\n,\nb,3\n")
    for name in ("p.jsonl", "p.csv"):
        path = str(tmp_path / name)
        rows = read_rows(PromptsConfig(name="file", path=path, on_empty="skip"))
        assert [(row.prompt, row.seed) for row in rows] == [("a", None), ("b", 3)]
        with pytest.raises(UserError, match=r"2 rows are wrong: .*prompts.on_empty=skip"):
            read_rows(PromptsConfig(name="file", path=path))
    with pytest.raises(UserError, match="prompts.on_empty=skip: is for files"):
        config("prompts.rows=[{prompt: a}]", "+prompts.on_empty=skip")


def test_a_row_has_its_own_steps_and_size(tmp_path):
    (first, second) = read(tmp_path, "p.csv", "prompt,num_inference_steps,height,width\na,20,64,96.0\nb,,,\n")
    assert first == Row(prompt="a", num_inference_steps=20, height=64, width=96) and second == Row(prompt="b")
    file = ("p.csv", "prompt,num_inference_steps,height,width\na,0,8,8\na,20,100,8\na,20,8,9000\na,2.5,8,8\n")
    with pytest.raises(UserError) as caught:
        read(tmp_path, *file)
    for words in (
        "line 2: num_inference_steps=0: must be from 1 to 1000",
        "line 3: height=100: must be a multiple of 8",
        "line 4: width=9000",
        "line 5: num_inference_steps=2.5: must be a whole number",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        '[{"prompt": "a", "seed": 3}, {"prompt": "b", "tags": [1]}]',
        '{"version": 2, "prompts": [{"prompt": "a", "seed": 3}, {"prompt": "b", "tags": [1]}]}',
        '\ufeff[{"seed": 3.0, "prompt": "a"}, {"prompt": "b", "tags": [1]}]',
    ],
)
def test_json_is_a_list_of_objects(tmp_path, content):
    expected = (Row(prompt="a", seed=3), Row(prompt="b", extra={"tags": [1]}))
    assert read(tmp_path, "p.json", content) == expected


def test_json_may_be_a_list_of_texts(tmp_path):
    assert prompts(read(tmp_path, "p.json", '["a, b", "c"]')) == ["a, b", "c"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1}', "is not a list of prompts"),
        ("[1, 2]", "2 rows are wrong: row 0: must be an object or text, not 1"),
        ('[{"prompt": "a"},\n{"prompt"}]', "p.json: is not JSON (Expecting ':' delimiter, line 2, column 10)"),
        ("[" * 100_000, "p.json: is nested over 43 deep"),
        ("[" + "0," * (1 << 23) + "0]", "holds over 8388608 values"),
        ("[]", "holds no prompt"),
        ('[{"prompt": "a"}, {"prompt": "b", "height": 7}]', "p.json row 1: height=7: must be a multiple of 8"),
    ],
)
def test_faults_of_json_are_one_line(tmp_path, content, expected):
    with pytest.raises(UserError) as caught:
        read(tmp_path, "p.json", content)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow; pip install 'tpusd\[parquet\]'"):
        read(tmp_path, "p.parquet", b"PAR1")


@pytest.mark.libraries
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (lambda pa: {"prompt": shared(pa, "a" * 199_000, 1_000_000)}, "holds over 512 MiB of text"),
        (lambda pa: {"prompt": shared(pa, "a" * 8_000_000, 1000)}, "has rows of over 4 MiB"),
        (lambda pa: {"prompt": ["a"], "x": [[0] * 9_600_000]}, "holds over 9500000 values"),
        (lambda pa: {"prompt": ["a"] * 18, "x": ["b" * 15_000_000] * 18}, "has a row group of over 256 MiB"),
        (lambda pa: {"prompt": ["a"]} | {f"c{number}": [1] for number in range(1000)}, "has 1001 columns"),
    ],
)
def test_small_parquet_files_of_large_values_are_refused(tmp_path, columns, expected):
    """Without its bounds the first one takes 199 GB."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    dictionary = expected != "has a row group of over 256 MiB"
    options = {"compression": "zstd", "use_dictionary": dictionary, "dictionary_pagesize_limit": 1 << 28}
    parquet.write_table(pyarrow.table(columns(pyarrow)), tmp_path / "p.parquet", **options)
    started = time.process_time()
    with pytest.raises(UserError, match=expected):
        read_rows(PromptsConfig(name="file", path=str(tmp_path / "p.parquet")))
    assert time.process_time() - started < 10


def shared(pyarrow, text, number):
    """A column in which every row has the same text, which its file holds once."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * number, pyarrow.int32()), pyarrow.array([text]))


@pytest.mark.libraries
def test_parquet_is_read_as_jsonl_is(tmp_path):
    """Written by pyarrow. pandas writes a column of whole numbers with gaps as one of numbers with a point."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "caption": ["a", "日本の狐", None],
        "seed": [7.0, None, 1.0],
        "height": [None, 64, None],
        "image": [{"bytes": b"\x89PNG", "path": "a.png"}] * 3,
        "day": [datetime.date(2026, 1, 2)] * 3,
        "tags": [["x"], [], None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet", row_group_size=1)
    made = PromptsConfig(name="file", path=str(tmp_path / "p.parquet"), column="caption", on_empty="skip")
    assert read_rows(made) == (
        Row(prompt="a", seed=7, extra={"day": "2026-01-02", "tags": ["x"]}),
        Row(prompt="日本の狐", height=64, extra={"day": "2026-01-02", "tags": []}),
    )
    with pytest.raises(UserError, match="p.parquet row 2: caption=null: must be text"):
        read_rows(dataclasses.replace(made, on_empty="error"))
    whole = (tmp_path / "p.parquet").read_bytes()
    for data in (b"", b"PAR1" * 9, whole[:-40], whole[:200] + whole[-200:], whole[:100] + b"\xff" * 99 + whole[199:]):
        with pytest.raises(UserError, match="p.parquet: is not a readable parquet file|row"):
            read(tmp_path, "broken_p.parquet", data)
