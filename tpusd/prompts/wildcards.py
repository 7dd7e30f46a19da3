r"""`{a|b}` and `__name__` in prompts, expanded once, before anything is made: a choice, and a line of a file.

`{3::a|b}` chooses a three times as often; `\{` is a brace. A line of a file may have marks of its own. Choices follow
from the seed and the number of the row alone, so a prompt set that grows leaves its first rows as they are.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tpusd.config.rows import MAX_PROMPT_CHARS
from tpusd.errors import UserError, show, show_path
from tpusd.syntax.rules import MAX_DEPTH, too_deep

MAX_CHOICES = 10_000  # of a prompt
MAX_FILE_BYTES = 16 << 20
MAX_FILES = 1000
_MARK = re.compile(r"\\[{}]|[{}|\[\]]|__((?!_)[\w.\-/ ]{1,200}?)(?<![_ ])__")
_NAME = re.compile(r"(?!.*__)[\w.\- ]+(/[\w.\- ]+)*")
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Wildcards:
    """The files of a directory, which are read as they are named. root: None where no directory is given."""

    root: Path | None
    _lines: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def lines(self, name: str) -> tuple[str, ...]:
        """The choices of a file. Raises UserError, also for files that name each other in a circle."""
        self._read_all(name)
        return self._lines[name]

    def _read_all(self, name: str) -> None:
        """Reads a file and all that it names, before one of its lines is chosen."""
        path: dict[str, Iterator[str]] = {}  # the files that name one another, down to the one that is read
        waiting = [name]
        while waiting or path:
            if not waiting:
                last = next(reversed(path))
                following = next(path[last], None)
                if following is None:
                    del path[last]
                    continue
                waiting.append(following)
            own = waiting.pop()
            if own in path:
                circle = " -> ".join(f"__{one}__" for one in [*list(path)[list(path).index(own) :], own])
                raise UserError(f"prompts.wildcards_dir: files name each other: {show(circle, 200)}; remove one name")
            if own in self._lines:
                continue
            if len(self._lines) == MAX_FILES:
                raise UserError(f"prompts.wildcards_dir: more than {MAX_FILES} files are named; use fewer")
            self._lines[own] = self._read(own)
            found = {mark[1]: None for line in self._lines[own] for mark in _MARK.finditer(line) if mark[1]}
            path[own] = iter(found)

    def _read(self, name: str) -> tuple[str, ...]:
        mark = f"__{show(name, 60)}__"
        if self.root is None:
            raise UserError(f"{mark} is a line of a file; add prompts.wildcards_dir=DIR")
        where = f"prompts.wildcards_dir={show_path(self.root)}"
        if not _NAME.fullmatch(name) or {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{where}: {mark} is not the name of a file in it; write __NAME__ or __FOLDER/NAME__")
        try:
            root = self.root.resolve(strict=True)
            file = (root / f"{name}.txt").resolve(strict=True)
            if not file.is_relative_to(root):
                raise UserError(f"{where}: {show(name, 60)}.txt leads out of it; copy the file into it")
            if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"{where}: {show(name, 60)}.txt is not a file of at most {MAX_FILE_BYTES >> 20} MiB")
            text = file.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
        except UnicodeDecodeError:
            raise UserError(f"{where}: {show(name, 60)}.txt is not UTF-8; save it as UTF-8") from None
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links; ValueError: NUL
            reason = getattr(error, "strerror", None) or "cannot be read"
            raise UserError(f"{where}: {show(name, 60)}.txt: {reason}; {mark} needs this file") from None
        lines = tuple(line.strip() for line in text.splitlines())
        kept = tuple(line for line in lines if line and not line.startswith("#"))
        if not kept:
            raise UserError(f"{where}: {show(name, 60)}.txt has no line to choose; write one choice a line")
        return kept


@dataclass(kw_only=True)
class _Choices:
    """Numbers that follow from a text alone: SHA-256 of the text and of how many numbers there were before."""

    of: str
    number: int = 0

    def share(self) -> float:
        """In 0..1, below 1."""
        if self.number == MAX_CHOICES:
            raise UserError(f"has more than {MAX_CHOICES} choices; use fewer wildcards")
        digest = hashlib.sha256(f"{self.of} {self.number}".encode()).digest()
        self.number += 1
        return int.from_bytes(digest[:6], "big") / (1 << 48)


def expand(text: str, wildcards: Wildcards, *, seed: int, row: int | None, field: str) -> str:
    """A text without wildcards. Raises UserError: the end of a line.

    seed: of the run, or the row's own.
    row: the number of the row; None: it has a seed of its own.
    field: such as `prompt`: the two texts of a row have choices of their own.
    """
    choices = _Choices(of=f"tpusd wildcards {seed} {'' if row is None else row} {field}")
    done: list[str] = []
    waiting = [(text, 0)]  # texts, and from where on each is left; the last one is next: what was chosen comes first
    size = 0
    while waiting:
        part, start = waiting.pop()
        found = next((mark for mark in _MARK.finditer(part, start) if mark[0] not in ("|", "[", "]")), None)
        done.append(part[start : None if found is None else found.start()])
        size += len(done[-1])
        if size > MAX_PROMPT_CHARS:
            raise UserError(f"has over {MAX_PROMPT_CHARS} characters with its wildcards; use fewer")
        if found is None:
            continue
        end, chosen = found.end(), ""
        if found[1]:
            lines = wildcards.lines(found[1])
            chosen = lines[int(choices.share() * len(lines))]
        elif found[0] == "{":
            options, end = _options(part, found.end())
            chosen = _chosen(options, choices.share())
        else:
            done.append(found[0][-1])
        waiting += [(part, end), (chosen, 0)]
    return "".join(done)


def _options(text: str, start: int) -> tuple[list[str], int]:
    """What is between `{` and its `}`, cut at each `|` that is in no further bracket, and where the `}` ends."""
    options: list[str] = []
    braces, squares, begin = 1, 0, start
    for mark in _MARK.finditer(text, start):
        if mark[0] == "{":
            braces += 1
            if braces > MAX_DEPTH:
                raise too_deep()
        elif mark[0] == "[" and braces == 1:
            squares += 1
        elif mark[0] == "]" and braces == 1:
            squares = max(0, squares - 1)
        elif mark[0] == "}":
            braces -= 1
            if not braces:
                return [*options, text[begin : mark.start()]], mark.end()
        elif mark[0] == "|" and braces == 1 and not squares:
            options.append(text[begin : mark.start()])
            begin = mark.end()
    raise UserError(rf"{show(text[start - 1 :], 60)} has no closing brace; write \{{ for a brace")


def _chosen(options: Sequence[str], share: float) -> str:
    if any("$$" in option for option in options):
        raise UserError("$$ in braces, which chooses several, is not implemented; write {a|b} several times")
    marks = [_WEIGHT.match(option) for option in options]
    weights = [1.0 if mark is None else float(mark[1]) for mark in marks]
    place = share * sum(weights)
    for option, mark, weight in zip(options, marks, weights, strict=True):
        place -= weight
        if place < 0:
            return option if mark is None else option[mark.end() :]
    raise UserError("has braces of which every choice has the weight 0; give one another weight")
