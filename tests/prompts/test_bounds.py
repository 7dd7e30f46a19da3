"""Prompt files that are made to take time or memory: a line, status 2, and both stay small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTES = 500  # of memory that reading may take, beside what an empty reading takes
SECONDS = 20  # of processor time
READ = """
import resource, sys, time
from tpusd.config.schema import PromptsConfig
from tpusd.errors import UserError
from tpusd.prompts.rows import read_rows
empty, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    said = f"{len(read_rows(PromptsConfig(name='file', path=sys.argv[1])))} rows"
except UserError as error:
    said = str(error)
taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - empty
print(taken >> 10, time.process_time() - began, said, sep="\\t")
"""


def read(path):
    """(MiB, seconds, what was said) of reading a prompt file in a process of its own."""
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr[-500:]
    mebibytes, seconds, said = done.stdout.split("\t")
    return int(mebibytes), float(seconds), said


def repeated(text, size):
    """At least `size` bytes of it, in pieces."""
    piece = text * max(1, 65536 // len(text))
    for _ in range(size // len(piece) + 1):
        yield piece


def line_of(begin, text, end, size):
    yield begin
    yield from repeated(text, size)
    yield end + "\n"


def lines_of(line, size):
    yield from repeated(line + "\n", size)


HOSTILE = {  # suffix, pieces of a file of so many bytes, what the error says
    "a million columns": ("csv", lambda size: line_of("prompt", ",c", "", size), "characters"),
    "columns": ("csv", lambda size: [*line_of("prompt", ",c", "", 3_000_000)], "columns; at most 1000 are read"),
    "cells": ("csv", lambda size: ["prompt\n", *line_of("a", ",", "", size)], "characters"),
    "rows of many cells": ("csv", lambda size: ["prompt\n", *lines_of("," * 1_000_000, size)], "rows are wrong"),
    "open quote": ("csv", lambda size: ["prompt\n", *line_of('"', "a,\n", "", size)], "characters"),
    "long line": ("txt", lambda size: line_of("", "a ", "", size), "characters"),
    "nested lists": ("jsonl", lambda size: line_of('{"prompt": "a", "x": [', "[],", "0]}", size), "characters"),
    "deep lists": ("jsonl", lambda size: line_of('{"prompt": "a", "x": ', "[", "", 100_000), "nested over"),
    "rows of lists": (
        "jsonl",
        lambda size: lines_of('{"prompt": "a", "x": [' + "[]," * 100_000 + "0]}", size),
        "values",
    ),
    "no rows": ("jsonl", lambda size: lines_of("x", size), "rows are wrong"),
    "empty lines": ("txt", lambda size: repeated("\n", max(size, 20_000_000)), "lines"),
    "empty rows": ("jsonl", lambda size: lines_of("{}", size), "has no column prompt"),
    "small rows": ("txt", lambda size: lines_of("a", size), "more than 1048576 prompts"),
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_prompt_files_end_in_a_line(tmp_path, name):
    suffix, pieces, expected = HOSTILE[name]
    file = tmp_path / f"p.{suffix}"
    with open(file, "w") as stream:
        stream.writelines(pieces(int(os.environ.get("TPUSD_TEST_BYTES", 16_000_000))))
    mebibytes, seconds, said = read(file)
    assert expected in said and said.count("\n") == 1 and len(said) < 1500
    assert mebibytes < MEBIBYTES and seconds < SECONDS, (mebibytes, seconds)


BOMB = """
import sys
import pyarrow
from pyarrow import parquet
table = pyarrow.table({"prompt": ["a" * int(sys.argv[2])]})
parquet.write_table(table, sys.argv[1], compression="zstd", use_dictionary=False, write_statistics=False)
"""


def varint(number, width=0):
    """A number in the footer of a parquet file: Thrift's compact protocol, in at least `width` bytes."""
    number, out = number << 1, []
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    while len(out) < width:
        out[-1] |= 128
        out.append(0)
    return bytes(out)


@pytest.mark.slow
@pytest.mark.libraries
def test_a_page_that_holds_more_than_its_file_says_is_a_line(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    file, size = tmp_path / "p.parquet", 1_200_000_000
    subprocess.run([sys.executable, "-c", BOMB, str(file), str(size)], check=True)
    group = parquet.ParquetFile(file).metadata.row_group(0)
    data = file.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    end = data[footer:]
    for told in {group.column(0).total_uncompressed_size, group.total_byte_size}:
        old = varint(told)
        assert old in end
        end = end.replace(old, varint(1000, len(old)))
    file.write_bytes(data[:footer] + end)
    assert parquet.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size == 1000
    mebibytes, seconds, said = read(file)
    assert "takes over 768 MiB to read" in said and said.count("\n") == 1
    assert mebibytes < 1000 and seconds < SECONDS, (mebibytes, seconds)
