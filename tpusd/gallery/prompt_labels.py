"""What a row of a prompt set is called where its prompt differs between the runs of a sweep."""

from collections.abc import Iterable, Sequence

MAX_ALTERNATIVES = 3


def prompt_labels(prompts: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Row -> its prompt. Of different prompts: the words that they share, and `{one | another}` where they differ.

    prompts: (row, prompt) of each image.
    """
    of_row: dict[int, dict[str, None]] = {}
    for row, prompt in prompts:
        of_row.setdefault(row, {})[prompt] = None
    return {row: _shared(list(of_row[row])) for row in sorted(of_row)}


def _shared(prompts: Sequence[str]) -> str:
    if len(prompts) == 1:
        return prompts[0]
    words = [prompt.split(" ") for prompt in prompts]
    shortest = min(map(len, words))
    start = _num_shared(words)
    end = min(_num_shared([list(reversed(own)) for own in words]), shortest - start)
    middles = [" ".join(own[start : len(own) - end]) for own in words]
    more = ["…"] if len(middles) > MAX_ALTERNATIVES else []
    listed = " | ".join(middles[:MAX_ALTERNATIVES] + more)
    return " ".join([*words[0][:start], f"{{{listed}}}", *words[0][len(words[0]) - end :]])


def _num_shared(lists: Sequence[Sequence[str]]) -> int:
    """How many words all of them begin with."""
    number = 0
    for words in zip(*lists, strict=False):
        if len(set(words)) > 1:
            break
        number += 1
    return number
