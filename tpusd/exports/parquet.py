"""Parquet: files of rows, each with a picture, its manifest line and its scores."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.errors import UserError
from tpusd.exports.base import Exported, Options

ROW_GROUP = 100  # pictures that are in memory at once
IMAGE, RUN = "image", "run"


def write_parquet(images: Iterator[Exported], output: Path, options: Options) -> int:
    """OUT/00000.parquet, 00001.parquet, ...: `image`, which the library datasets decodes, and a column for each field.

    A file has as many pictures as a shard. A list or a group of a manifest line is its JSON text. Needs pyarrow.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("--format=parquet: needs pyarrow; pip install 'tpusd[parquet]'") from None
    every = list(images)  # not their pictures: each file has the columns of all images
    lines = [_line(image) for image in every]
    types = _types(lines)
    features = {name: {"dtype": dtype, "_type": "Value"} for name, dtype in types.items()}
    schema = pyarrow.schema(
        [
            pyarrow.field(IMAGE, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            *(pyarrow.field(name, pyarrow.type_for_alias(dtype)) for name, dtype in types.items()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": {IMAGE: {"_type": "Image"}} | features}})},
    )
    for number, start in enumerate(range(0, len(every), options.shard_size)):
        end = min(start + options.shard_size, len(every))
        with pyarrow.parquet.ParquetWriter(output / f"{number:05d}.parquet", schema) as writer:
            for first in range(start, end, ROW_GROUP):
                rows = [
                    {IMAGE: _picture(every[place])} | _as_typed(lines[place], types)
                    for place in range(first, min(first + ROW_GROUP, end))
                ]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    return len(every)


def _line(image: Exported) -> dict[str, Any]:
    run = {RUN: image.run} if image.run else {}
    return {name: value for name, value in (run | image.values()).items() if name != IMAGE}


def _picture(image: Exported) -> dict[str, Any]:
    return {"bytes": storage.read_file(image.file), "path": f"{image.run}{'_' if image.run else ''}{image.file.name}"}


def _types(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Column -> its type: of all its values, float64 for whole numbers among others, else the text of their JSON."""
    kinds: dict[str, set[type]] = {}
    for line in lines:
        for name, value in line.items():
            kinds.setdefault(name, set()).update(() if value is None else (_kind(value),))
    names = {frozenset((bool,)): "bool", frozenset((int,)): "int64", frozenset((float,)): "float64"}
    names |= {frozenset((int, float)): "float64"}
    return {name: names.get(frozenset(found), "string") for name, found in kinds.items()}


def _kind(value: object) -> type:
    """int: of 64 bits at most."""
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str
    return type(value)


def _as_typed(line: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    return {name: _converted(line.get(name), dtype) for name, dtype in types.items()}


def _converted(value: object, dtype: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    if dtype == "string":
        return json.dumps(value, ensure_ascii=False)
    return float(value) if dtype == "float64" and isinstance(value, int) else value
