"""Parquet files of prompts, read into records by pyarrow, which an extra brings."""

import datetime
import decimal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tpusd.config.limits import MAX_ROWS
from tpusd.errors import UserError

if TYPE_CHECKING:
    import pyarrow

MAX_VALUE_BYTES = 1 << 30  # of all columns that are read, without compression
_BATCH = 4096  # rows


def read_parquet(data: bytes, where: str, max_columns: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, record) of every row; rows count from 0. Columns that hold bytes, such as images, are left out.

    data: the file.
    where: what each error line begins with.
    max_columns: that a file may have.
    Raises UserError.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{where}: a parquet file needs pyarrow; pip install 'tpusd[parquet]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        schema = file.schema_arrow
        if len(schema) > max_columns:
            raise UserError(f"{where}: has {len(schema)} columns; at most {max_columns} are read")
        if file.metadata.num_rows > MAX_ROWS:
            raise UserError(f"{where}: more than {MAX_ROWS} prompts; split them over several runs")
        columns = [field.name for field in schema if not _holds_bytes(field.type)]
        if _num_bytes(file.metadata, columns) > MAX_VALUE_BYTES:
            raise UserError(f"{where}: holds over {MAX_VALUE_BYTES >> 30} GiB; split it over several runs")
        number = 0
        for batch in file.iter_batches(_BATCH, columns=columns):
            for record in batch.to_pylist():
                yield f"{where} row {number}", {name: _plain(value) for name, value in record.items()}
                number += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{where}: is not a readable parquet file ({reason}); write it again") from None


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    """Whether values of a type hold bytes at any depth."""
    from pyarrow import types

    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _num_bytes(metadata: "pyarrow.parquet.FileMetaData", columns: list[str]) -> int:
    """As the file says it, of these columns."""
    chunks = (
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    return sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] in columns)


def _plain(value: Any) -> Any:
    """A value of a column as JSON can hold it: dates and decimal numbers are text."""
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
