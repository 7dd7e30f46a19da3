"""Which attributes a prompt names, in the words of the embedded model's captions."""

import re
from collections.abc import Mapping

from tpusd.scores.portraits.world import VALUES

_SAME = {"blonde": "blond", "ginger": "red", "happy": "smiling", "grey": "gray", "violet": "purple"}
_WOMAN, _MAN = ("woman", "lady", "girl"), ("man", "guy", "boy")
_CLOTHES = "shirt|sweater|top(?! hat)"


def _one_of(name: str) -> str:
    words = [value for value in VALUES[name] if value != "none"]
    return "|".join([*words, *(word for word, value in _SAME.items() if value in words)])


_HAIR = rf"(?:(?P<style>{_one_of('hair_style')}) )?(?:(?P<color>{_one_of('hair_color')}) )?"
_PATTERNS = {
    "person": re.compile(rf"\b(?P<value>{'|'.join((*_WOMAN, *_MAN))})\b"),
    "skin": re.compile(rf"\b(?P<value>{_one_of('skin')}) skin\b"),
    "eye_color": re.compile(rf"\b(?P<value>{_one_of('eye_color')}) eyes\b"),
    "glasses": re.compile(r"\b(?P<value>sunglasses|round(?= glasses)|square(?= glasses))\b"),
    "hat": re.compile(r"\b(?P<value>beanie|cap|top hat)\b"),
    "hat_color": re.compile(rf"\b(?P<value>{_one_of('hat_color')}) (?:beanie|cap|top hat|hat)\b"),
    "expression": re.compile(rf"\b(?P<value>{_one_of('expression')})\b"),
    "clothes_color": re.compile(rf"\b(?P<value>{_one_of('clothes_color')}) (?:striped )?(?:{_CLOTHES})\b"),
    "clothes_pattern": re.compile(rf"\b(?P<value>striped|plain) (?:(?:{_one_of('clothes_color')}) )?(?:{_CLOTHES})\b"),
    "background": re.compile(rf"\b(?P<value>{_one_of('background')}) (?:background|wall)\b"),
}
_HAIRS = (
    re.compile(rf"\b{_HAIR}hair(?: in (?:a )?(?P<end>pigtails|bob))?\b"),
    re.compile(rf"\b{_HAIR}(?P<end>pigtails|bob)\b"),
)


def named_attributes(prompt: str) -> Mapping[str, str]:
    """Attribute -> the value that the prompt names; attributes of which it says nothing are left out.

    >>> named_attributes("portrait of a sad man with blue eyes, wearing a striped red shirt")
    {'person': 'man', 'eye_color': 'blue', 'expression': 'sad', 'clothes_color': 'red', 'clothes_pattern': 'striped'}
    """
    text = " ".join(prompt.lower().split())
    found = {name: match["value"] for name, pattern in _PATTERNS.items() if (match := pattern.search(text))}
    if "person" in found:
        found["person"] = "woman" if found["person"] in _WOMAN else "man"
    found |= _hair(text)
    if re.search(r"\bmoustache\b", text):
        found["beard"] = "moustache"
    elif re.search(r"\bbeard\b", text):
        found["beard"] = "full"
    return {name: _SAME.get(found[name], found[name]) for name in VALUES if name in found}


def _hair(text: str) -> dict[str, str]:
    for pattern in _HAIRS:
        for match in pattern.finditer(text):
            named = {"hair_style": match["end"] or match["style"], "hair_color": match["color"]}
            if any(named.values()):
                return {name: value for name, value in named.items() if value}
    return {}
