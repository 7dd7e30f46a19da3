r"""A1111's syntax: `(x)` weighs 1.1, `[x]` 1/1.1, `(x:1.3)` 1.3; nested weights multiply; `\(` is a bracket; BREAK.

A bracket that is not closed weighs what follows, to the end. One that was not opened is text.
"""

import math
import re
from collections.abc import Iterator

from tpusd.errors import UserError, show
from tpusd.syntax.rules import BREAK, MAX_DEPTH, Fragment, too_deep

STEP = 1.1  # of one pair of brackets
_NUMBER = r"[+-]?[.\d]+"
_TOKEN = re.compile(rf"\\[()\[\]\\]?|[()\[\]]|:\s*({_NUMBER})\s*\)|[^\\()\[\]:]+|:", re.ASCII)
_BREAK = re.compile(r"\bBREAK\b")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{0,200}>")
_AND = re.compile(r"\bAND\b")


def parse(text: str) -> list[Fragment]:
    """A prompt's words with their weights, equal neighbours joined. Raises UserError for what is not implemented."""
    _refuse(text)
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, weight: float) -> None:
        for i in range(opened[bracket].pop(), len(weights)):
            weights[i] *= weight

    for found in _TOKEN.finditer(text):
        token, weight = found[0], found[1]
        if token.startswith("\\"):
            texts.append(token[1:])
            weights.append(1.0)
        elif token in opened:
            opened[token].append(len(weights))
            if len(opened["("]) + len(opened["["]) > MAX_DEPTH:
                raise too_deep()
        elif weight is not None and opened["("]:
            close("(", _number(weight))
        elif token == ")" and opened["("]:
            close("(", STEP)
        elif token == "]" and opened["["]:
            close("[", 1 / STEP)
        else:
            first, *others = _BREAK.split(token)
            texts.append(first.rstrip() if others else first)
            weights.append(1.0)
            for i, part in enumerate(others, 1):
                texts += [BREAK.text, part.lstrip() if i == len(others) else part.strip()]
                weights += [BREAK.weight, 1.0]
    for bracket, step in (("(", STEP), ("[", 1 / STEP)):
        while opened[bracket]:
            close(bracket, step)
    return list(_joined(texts, weights))


def _joined(texts: list[str], weights: list[float]) -> Iterator[Fragment]:
    if not texts:
        yield Fragment("")
    start = 0
    for stop in range(1, len(texts) + 1):
        if stop == len(texts) or weights[stop] != weights[start]:
            yield Fragment("".join(texts[start:stop]), weights[start])
            start = stop


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= 1000:
        raise UserError(f"{show(text)} is not a weight; write a number from -1000 to 1000")
    return weight


def _refuse(text: str) -> None:
    """Raises UserError for marks of another kind than weights."""
    network = _NETWORK.search(text)
    if network is not None:
        raise UserError(
            f"{show(network[0])} is not read in a prompt; use loras=[{{path: FILE, scale: 0.8}}], or "
            "prompts.lora_dir=DIR, which finds what <lora:NAME:0.8> in a prompt names"
        )
    if _AND.search(text) is not None:
        raise UserError("AND joins prompts in A1111, which is not implemented; write `and`")
