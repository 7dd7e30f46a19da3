"""Parquet files of prompts, read into records by pyarrow, which an extra brings."""

import contextlib
import datetime
import decimal
import resource
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpusd.config.limits import MAX_ROWS
from tpusd.config.yaml_files import MAX_VALUES
from tpusd.errors import UserError

if TYPE_CHECKING:
    import pyarrow

MAX_GROUP_BYTES = 256 << 20  # of a row group, without compression: pyarrow holds one at a time
MAX_TEXT_BYTES = 512 << 20  # of all rows: a dictionary of a few kilobytes can stand for them
MAX_ROW_BYTES = 4 << 20
MAX_MEMORY = 768 << 20  # beside what the process has: a page may hold more than the file says of it
MAX_CHUNKS = 200_000  # row groups by columns
_BATCH = 4096  # rows
_FEW = 16  # rows that become Python values together where their texts are long


def read_parquet(path: Path, where: str, max_columns: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, record) of every row; rows count from 0. Columns that hold bytes, such as images, are left out.

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
        with pyarrow.parquet.ParquetFile(path) as file:
            leaves = [file.schema.column(index) for index in range(len(file.schema))]
        # A text that many rows share stays one text.
        shared = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=shared) as file:
            columns = [field.name for field in file.schema_arrow if not _holds_bytes(field.type)]
            _check_size(file, columns, where, max_columns)
            number = 0
            for record in _records(_bounded(file.iter_batches(_BATCH, columns=columns)), where):
                yield f"{where} row {number}", {name: _plain(value) for name, value in record.items()}
                number += 1
    except MemoryError:  # ArrowMemoryError is one
        raise UserError(
            f"{where}: takes over {MAX_MEMORY >> 20} MiB to read; write smaller row groups, or jsonl"
        ) from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{where}: is not a readable parquet file ({reason}); write it again") from None


def _bounded(batches: "Iterator[pyarrow.RecordBatch]") -> "Iterator[pyarrow.RecordBatch]":
    """The batches; raises MemoryError where one takes more than MAX_MEMORY to read, on Linux."""
    while True:
        with _memory_limit(MAX_MEMORY):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextlib.contextmanager
def _memory_limit(size: int) -> Iterator[None]:
    """Within it the process can allocate about `size` bytes more; further allocations fail."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except OSError:  # not Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = pages * resource.getpagesize() + size
    limit = min([wanted, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _check_size(file: "pyarrow.parquet.ParquetFile", columns: list[str], where: str, max_columns: int) -> None:
    """Refuses a file that says that it is too large, before its values are read. Raises UserError."""
    metadata = file.metadata
    if metadata.num_columns > max_columns:
        raise UserError(f"{where}: has {metadata.num_columns} columns; at most {max_columns} are read")
    if metadata.num_rows > MAX_ROWS:
        raise UserError(f"{where}: more than {MAX_ROWS} prompts; split them over several runs")
    if metadata.num_row_groups * metadata.num_columns > MAX_CHUNKS:
        raise UserError(f"{where}: has {metadata.num_row_groups} row groups; write it with fewer")
    values = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = [chunk for chunk in map(group.column, range(group.num_columns)) if _column_of(chunk) in columns]
        values += sum(chunk.num_values for chunk in chunks)
        if sum(chunk.total_uncompressed_size for chunk in chunks) > MAX_GROUP_BYTES:
            raise UserError(
                f"{where}: has a row group of over {MAX_GROUP_BYTES >> 20} MiB; write smaller row groups, or jsonl"
            )
    if values > MAX_VALUES:
        raise UserError(f"{where}: holds over {MAX_VALUES} values; take columns out, or split it over several runs")


def _column_of(chunk: "pyarrow.parquet.ColumnChunkMetaData") -> str:
    return str(chunk.path_in_schema.partition(".")[0])


def _records(batches: "Iterable[pyarrow.RecordBatch]", where: str) -> Iterator[Mapping[str, Any]]:
    """The rows, a few at a time; refuses texts that grow too long where a dictionary is expanded."""
    room = MAX_TEXT_BYTES
    for batch in batches:
        most = _FEW * MAX_ROW_BYTES
        step = batch.num_rows if sum(map(_text_bytes, batch.columns)) <= most else _FEW
        for start in range(0, batch.num_rows, step):
            few = batch.slice(start, step)
            taken = sum(map(_text_bytes, few.columns))
            room -= taken
            if taken > most:
                raise UserError(f"{where}: has rows of over {MAX_ROW_BYTES >> 20} MiB; shorten their texts")
            if room < 0:
                raise UserError(f"{where}: holds over {MAX_TEXT_BYTES >> 20} MiB of text; split it over several runs")
            yield from few.to_pylist()


def _text_bytes(array: "pyarrow.Array") -> int:
    """Bytes of all texts of an array, each as often as it is there."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary).take(array.indices)
        return compute.sum(lengths).as_py() or 0
    if types.is_nested(kind):
        inner = array.flatten()
        return sum(map(_text_bytes, inner if types.is_struct(kind) else [inner]))
    return 0


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    """Whether values of a type hold bytes at any depth."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _plain(value: object) -> object:
    """A value of a column as JSON can hold it: dates and decimal numbers are text."""
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
