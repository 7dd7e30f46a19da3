"""`prompts.replace`: words of the prompts, and what is put in the place of each. Across a sweep it is an axis.

In a run, [[cat, dog]] puts `dog` in the place of `cat`. With -m, [[cat, dog, fox]] makes three runs: the first word is
looked for and stays, then each of the others takes its place. Several lists make every combination.
"""

import itertools
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from tpusd.config.grammar import hydra_value, unescaped
from tpusd.errors import UserError, show

REPLACE = "prompts.replace"
Pairs = tuple[tuple[str, str], ...]  # (the text that is looked for, the text in its place)


def swept_replacements(word: str, most: int) -> list[str]:
    """`prompts.replace=[[cat, dog, fox]]` as the words of the runs that it makes; another value as it is.

    most: runs that it may make.
    Raises UserError.
    """
    lists = _lists(word)
    if lists is None or not all(len(texts) > 1 for texts in lists):
        return [word]  # the schema says what is wrong
    number = 1
    for texts in lists:
        number *= len(texts)
    if number > most:
        raise UserError(f"{show(word)}: a sweep has at most {most} runs; replace fewer words")
    every = itertools.product(*([(texts[0], text) for text in texts] for texts in lists))
    return [f"{REPLACE}={hydra_value([list(pair) for pair in pairs])}" for pairs in every]


def replacements(word: str) -> Pairs:
    """The pairs of a run's `prompts.replace=...`; an empty tuple where it holds none."""
    lists = _lists(word) or []
    return tuple((texts[0], texts[1]) for texts in lists if len(texts) == 2)


def axis_values(runs: Sequence[Pairs]) -> list[Mapping[str, str]]:
    """For each run of a sweep: axis -> what takes the place of the word.

    An axis is `prompts.replace`, or, of several, `prompts.replace_1` and so on. A value names both words where the runs
    look for different ones.
    """
    most = max(map(len, runs), default=0)
    searched = [{pairs[index][0] for pairs in runs if index < len(pairs)} for index in range(most)]

    def value(index: int, pair: tuple[str, str]) -> str:
        return pair[1] if len(searched[index]) == 1 else f"{pair[0]}: {pair[1]}"

    names = [REPLACE] if most == 1 else [f"{REPLACE}_{index + 1}" for index in range(most)]
    return [{names[index]: value(index, pair) for index, pair in enumerate(pairs)} for pairs in runs]


def _lists(word: str) -> list[list[str]] | None:
    """The lists of texts of a word; None where it holds something else."""
    value = OverridesParser.create().parse_override(word).value()
    if not isinstance(value, list) or not all(isinstance(texts, list) for texts in value):
        return None
    if not all(isinstance(text, str) for texts in value for text in texts):
        return None
    return [[unescaped(str(text)) for text in texts] for texts in value]
