"""Words of a command as a POSIX shell takes them: printed on a terminal, copied from there, and run.

Text is put in single quotes. A control character would steer the terminal, and is lost when it is copied, so a word
that holds one is written as $'...', which bash, zsh and ksh know, with its bytes as octal numbers.
"""

import codecs
import shlex
import unicodedata
from collections.abc import Sequence

UTF8_ARGUMENTS = "PYTHONUTF8=1"  # the arguments are UTF-8, whatever the locale says
MAX_WORD_BYTES = 120_000  # Linux takes at most 128 KiB in one word of a command
_ESCAPES = {"\n": r"\n", "\t": r"\t", "\\": r"\\", "'": r"\'"}


def quoted(words: Sequence[str], *, ascii_only: bool = False) -> str:
    """The words with spaces between them. ascii_only: as ASCII alone, whose escapes stand for UTF-8."""
    return " ".join(_quoted(word, ascii_only) for word in words)


def is_utf_8(encoding: str | None) -> bool:
    """Whether a stream of this encoding can show any text. None: it does not encode."""
    try:
        return encoding is None or codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False


def _quoted(word: str, ascii_only: bool) -> str:
    if not any(_is_escaped(char, ascii_only) for char in word):
        return shlex.quote(word)
    return f"$'{''.join(_escape(char) if _is_special(char, ascii_only) else char for char in word)}'"


def _is_escaped(char: str, ascii_only: bool) -> bool:
    """Whether single quotes are not enough: control characters, line separators, and what turns text round."""
    if char.isascii():
        return char != "\n" and not " " <= char <= "~"
    turns = unicodedata.bidirectional(char) in ("LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return ascii_only or turns or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def _is_special(char: str, ascii_only: bool) -> bool:
    return char in _ESCAPES or char == "!" or _is_escaped(char, ascii_only)


def _escape(char: str) -> str:
    """`!` is a number too: an interactive shell looks for it in its history."""
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"  # Python's byte, or half a pair
    return _ESCAPES.get(char) or "".join(f"\\{byte:03o}" for byte in char.encode(errors=errors))
