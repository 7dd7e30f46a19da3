"""Captions of portraits in ordinary words: several phrasings, attributes left out at random. Only what is there."""

import numpy as np

from tpusd.scores.portraits.world import Portrait, from_labels

FULL_SHARE = 0.3  # of the captions name every attribute that shows
FEW_SHARE = 0.1  # of them name one or two, as people's own prompts and negative prompts do
LEFT_OUT = 0.15  # each attribute's chance to be left out of the others
BARE_SHARE = 0.5  # of the captions of one or two attributes have no subject: "round glasses"
# What a picture without them would be told by silence: rarely left out.
RARELY_LEFT_OUT = {"glasses": 0.06, "hat": 0.06, "beard": 0.06, "clothes_pattern": 0.08}

OPENINGS = ("portrait of {}", "a portrait of {}", "a picture of {}", "a drawing of {}", "{}")
PERSONS = {"woman": ("woman", "woman", "woman", "lady", "girl"), "man": ("man", "man", "man", "guy", "boy")}
EXPRESSIONS = {
    "smiling": ("smiling", "smiling", "happy"), "serious": ("serious",), "sad": ("sad",), "surprised": ("surprised",),
}  # fmt: skip
HAIR_COLORS = {"blond": ("blond", "blonde"), "red": ("red", "red", "ginger")}
CLOTHES = ("shirt", "shirt", "sweater", "top")
BACKGROUNDS = (
    "{} background",
    "{} background",
    "on a {} background",
    "in front of a {} background",
    "against a {} wall",
)


def draw_named(portrait: Portrait, rng: np.random.Generator) -> set[str]:
    """The attributes that a random caption names, as the denoiser is trained with."""
    draw = rng.random()
    if draw < FULL_SHARE:
        return set(portrait.visible)
    if draw < FULL_SHARE + FEW_SHARE:
        return set(rng.choice(portrait.visible, size=rng.integers(1, 3), replace=False).tolist())
    return {name for name in portrait.visible if rng.random() >= RARELY_LEFT_OUT.get(name, LEFT_OUT)}


def draw_captions(labels: np.ndarray, rng: np.random.Generator, dropout: float | np.ndarray) -> list[str]:
    """Random captions of a batch, (b,attributes) labels. dropout: the chance that one is empty, of all or of each."""
    captions = [make_caption(p, draw_named(p, rng), rng) for p in map(from_labels, labels)]
    dropped = rng.random(len(captions)) < dropout
    return ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]


def make_caption(portrait: Portrait, named: set[str], rng: np.random.Generator) -> str:
    """A caption that names these attributes (of those that show, and are more than the lack of something)."""

    def pick(choices):
        return choices[rng.integers(len(choices))]

    noun = pick(PERSONS[portrait.person]) if "person" in named else "person"
    features = [_hair(portrait, named, pick)]
    if "skin" in named:
        features.append(f"{portrait.skin} skin")
    if "eye_color" in named:
        features.append(f"{portrait.eye_color} eyes")
    if "beard" in named and portrait.beard != "none":
        features.append("a moustache" if portrait.beard == "moustache" else pick(("a full beard", "a beard")))
    if "glasses" in named and portrait.glasses != "none":
        features.append("sunglasses" if portrait.glasses == "sunglasses" else f"{portrait.glasses} glasses")
    features = [feature for feature in features if feature]
    rng.shuffle(features)
    worn = [part for part in (_clothes(portrait, named, pick), _hat(portrait, named)) if part]
    rng.shuffle(worn)

    expression = pick(EXPRESSIONS[portrait.expression]) if "expression" in named else None
    before = expression is not None and rng.random() < 0.75
    subject = _with_article(f"{expression} {noun}" if before else noun)
    text = pick(OPENINGS).format(subject)
    bare = [*features, *worn] if "person" not in named and expression is None and len(named) <= 2 else []
    if bare and rng.random() < BARE_SHARE:
        text = ", ".join(bare)
        features, worn = [], []
    if features:
        text += f" with {_list(features)}"
    if worn:
        text += f", wearing {' and '.join(worn)}"
    ends = [] if expression is None or before else [pick((f"{expression} expression", f"looking {expression}"))]
    if "background" in named:
        ends.append(pick(BACKGROUNDS).format(portrait.background))
    rng.shuffle(ends)
    return ", ".join([text, *ends]).replace(" a orange ", " an orange ")


def _hair(portrait, named, pick) -> str:
    color = pick(HAIR_COLORS.get(portrait.hair_color, (portrait.hair_color,))) if "hair_color" in named else ""
    style = portrait.hair_style if "hair_style" in named else ""
    if style == "pigtails":
        return pick((f"{color} pigtails", f"{color} hair in pigtails")).strip()
    if style == "bob":
        return pick((_with_article(f"{color} bob".strip()), f"{color} hair in a bob".strip()))
    return " ".join(word for word in (style, color, "hair") if word) if style or color else ""


def _clothes(portrait, named, pick) -> str:
    pattern = "striped" if "clothes_pattern" in named and portrait.clothes_pattern == "striped" else ""
    color = portrait.clothes_color if "clothes_color" in named else ""
    if not pattern and not color:
        return ""
    words = [pattern, color] if pick((True, False)) else [color, pattern]
    return _with_article(" ".join(word for word in [*words, pick(CLOTHES)] if word))


def _hat(portrait, named) -> str:
    if portrait.hat == "none":
        return ""
    color = portrait.hat_color if "hat_color" in named else ""
    kind = portrait.hat if "hat" in named else "hat" if color else ""
    return _with_article(f"{color} {kind}".strip()) if kind else ""


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
