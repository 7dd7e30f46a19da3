"""Words of the command line as people write them: `prompt=TEXT`, texts without Hydra's quotes, and paths with a ~."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tpusd.config.grammar import hydra_value, in_quotes, unescaped
from tpusd.config.paths import expanded_path, is_address
from tpusd.config.schema import text_fields
from tpusd.errors import UserError, show

PROMPT = "prompt="
SOURCES = (
    "model.path",
    "model.unet.path",
    "model.vae.path",
    "model.config",
    "score_weights.clip.path",
    "score_weights.pickscore.path",
    "score_weights.hpsv21.path",
    "score_weights.aesthetic.path",
    "prompts.path",
    "prompts.wildcards_dir",
    "prompts.lora_dir",
    "image",
    "mask",
    "control_image",
)
PATHS = (*SOURCES, "output")
OF_ANY_SET = (  # fields that go with prompt= too
    "prompts.replace=",
    "prompts.syntax=",
    "prompts.weighting=",
    "prompts.wildcards=",
    "prompts.wildcards_dir=",
    "prompts.lora_dir=",
)
GROUPS_OF_FILES = ("loras=", "embeddings=", "model.controlnets=")  # lists of groups, each of which may have a path
LISTS_OF_FILES = ("control_images=",)
_PATH_IN_LIST = re.compile(r"(?:loras|embeddings|model\.controlnets)\.\d+\.path")


def expanded(words: Sequence[str], *, multirun: bool = False) -> list[str]:
    """The words, with `prompt=TEXT` as the prompt set that it means, ~ as the home, and texts in Hydra's quotes.

    The text of a prompt is taken as it is: commas, colons and brackets need no quotes beside those of the shell.
    `prompt=[a,b]` is a prompt set of several rows; each may be in quotes, as in Hydra's lists. Another text is taken as
    it is where Hydra's grammar reads no single text in it; in a sweep a comma separates values. Raises UserError.
    """
    words = [_text_in_quotes(_with_home(word, multirun), multirun) for word in words]
    given = [word for word in words if word.startswith(PROMPT)]
    if not given:
        return words
    if len(given) > 1:
        raise UserError(f"{show(given[1])}: prompt= is given twice; write a list, as in 'prompt=[a red fox,an owl]'")
    if other := next((word for word in words if _chooses_prompts(word)), None):
        raise UserError(f"{show(other)}: prompt= is a prompt set of its own; leave one of the two out")
    texts = _texts(given[0].removeprefix(PROMPT))
    if not all(text.strip() for text in texts):
        raise UserError(f"{show(given[0])}: is empty; write the prompt behind the equals sign")
    rows = hydra_value([{"prompt": text} for text in texts])
    return [*(word for word in words if word is not given[0]), "prompts=inline", f"prompts.rows={rows}"]


def _chooses_prompts(word: str) -> bool:
    return word.startswith(("prompts=", "prompts.")) and not word.startswith(OF_ANY_SET)


def with_whole_paths(words: Sequence[str]) -> list[str]:
    """The words of a sweep, whose sources are then found from every working directory. Raises UserError."""

    def whole(field: str, path: str) -> str:
        if not path or is_address(path):
            return path
        if field == "model.config" and not Path(expanded_path(path, field)).is_dir():
            return path  # a name of the package's own configs
        return str(Path.cwd() / expanded_path(path, field))

    def changed(word: str) -> str:
        if word.startswith((*GROUPS_OF_FILES, *LISTS_OF_FILES)):
            return _list_with_paths(word, whole)
        return _with_paths(word, whole) if word.startswith(SOURCES) or _PATH_IN_LIST.match(word) else word

    return [changed(word) for word in words]


def read_override(word: str) -> Override | None:
    """A word in Hydra's grammar; None where it is not."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError):
        return None


def _with_home(word: str, multirun: bool) -> str:
    """A path with a leading ~, which Hydra's grammar cannot read."""
    key, _, value = word.partition("=")
    if not _is_path(key) or "~" not in value:
        return word
    if multirun and "," in value:
        return _with_paths(word, lambda field, path: expanded_path(path, field))
    return f"{key}={hydra_value(expanded_path(value, key))}" if value.startswith("~") else word


def _with_paths(word: str, change: Callable[[str, str], str]) -> str:
    """A word with each of its paths changed by `change(field, path)`; any other word as it is."""
    key, _, value = word.partition("=")
    if not _is_path(key) or "${" in value:
        return word
    # Hydra's grammar has no bare ~, so such values are put in quotes before it reads them.
    override = read_override(re.sub(r"(?<=[=,])(~[^,'\"]*)", lambda found: in_quotes(found[1]), word))
    if override is None:
        return word if "," in value else f"{key}={hydra_value(change(key, value))}"
    if override.is_choice_sweep():
        items = ((item, _unquoted(item)) for item in override.sweep_string_iterator())
        return f"{key}={','.join(item if path is None else hydra_value(change(key, path)) for item, path in items)}"
    path = override.value()
    return f"{key}={hydra_value(change(key, path))}" if isinstance(path, str) else word


def _is_path(key: str) -> bool:
    return key in PATHS or _PATH_IN_LIST.fullmatch(key) is not None


def _list_with_paths(word: str, change: Callable[[str, str], str]) -> str:
    """`loras=[{path: FILE}]`, `control_images=[FILE]`: each path changed by `change(field, path)`.

    Where it is no such list, it stays as it is.
    """
    override = read_override(word)
    if override is None or override.is_choice_sweep():
        return word
    key, given = word.partition("=")[0], override.value()
    if not isinstance(given, list):
        return word
    if all(isinstance(item, str) for item in given):
        return f"{key}={hydra_value([change(key, unescaped(item)) for item in given])}"
    if not all(isinstance(item, dict) for item in given):
        return word
    made = [
        {
            name: change(f"{key}.path", value) if name == "path" and isinstance(value, str) else value
            for name, value in own
        }
        for own in ([(unescaped(str(name)), value) for name, value in group.items()] for group in given)
    ]
    return f"{key}={hydra_value(made)}"


def _unquoted(item: str) -> str | None:
    """A value of a sweep without its quotes; None for null."""
    override = read_override(f"x={item}")
    found = item if override is None else override.value()
    return found if found is None or isinstance(found, str) else item


def _text_in_quotes(word: str, multirun: bool) -> str:
    """A field of text whose value is not one text in Hydra's grammar, in quotes."""
    key, equals, value = word.partition("=")
    if not equals or key not in text_fields() or "${" in value:
        return word
    override = read_override(word)
    if override is None:
        several = multirun and "," in value
    elif override.is_sweep_override():
        several = multirun
    else:
        several = override.value() is None or isinstance(override.value(), str)  # one text: it stays
    return word if several else f"{key}={in_quotes(value)}"


def _texts(value: str) -> list[str]:
    """One text, or those of a list in Hydra's grammar."""
    if value.startswith("[") and value.endswith("]"):
        override = read_override(f"x={value}")
        parsed = None if override is None else override.value()
        if isinstance(parsed, list) and parsed and all(not isinstance(item, list | dict) for item in parsed):
            return [unescaped(str(item)) for item in parsed]
        return [value]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return [value[1:-1]]
    return [value]
