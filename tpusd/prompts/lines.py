"""A text file as lines of bounded length, read one at a time: a file of a gigabyte takes no more memory than a line."""

from collections.abc import Iterator
from pathlib import Path

from tpusd.config.limits import MAX_ROWS
from tpusd.errors import UserError

MAX_LINE_CHARS = 4 << 20
MAX_LINES = 8 * MAX_ROWS  # a row of a csv file can have several


def text_lines(path: Path, where: str) -> Iterator[str]:
    """The lines of a UTF-8 file, each with its end: \\n, \\r\\n or \\r, and none of Unicode's other separators.

    where: what each error line begins with.

    Raises UserError.
    """
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            while line := file.readline(MAX_LINE_CHARS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARS:
                    raise UserError(f"{where} line {number}: has over {MAX_LINE_CHARS} characters; shorten it")
                if number > MAX_LINES:
                    raise UserError(f"{where}: has over {MAX_LINES} lines; split it over several runs")
                yield line
    except UnicodeDecodeError as error:
        number += 1 + error.object.count(b"\n", 0, error.start)  # the lines before this piece are all out
        raise UserError(f"{where} line {number}: is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None


class RecordLines:
    """Lines for a reader of records that may go over several of them; refuses a record that is too long.

    chars: of the record so far. Who has taken a record sets it to 0.
    """

    def __init__(self, lines: Iterator[str], where: str, before: int):
        """where: what an error line begins with. before: lines of the file that were taken before these."""
        self._lines, self._where, self._number, self.chars = lines, where, before, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        self.chars += len(line)
        if self.chars > MAX_LINE_CHARS:
            raise UserError(
                f"{self._where} line {self._number}: its row has over {MAX_LINE_CHARS} characters; close the quotes"
            )
        return line
