"""What is meant by a word of the command line that is not ours, and how to write it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tpusd.config.grammar import in_quotes
from tpusd.config.schema import field_names, text_fields, true_or_false_fields
from tpusd.config.synonyms import ABSENT, CHOICES, COMMAND_FIELDS, FIELDS
from tpusd.errors import show, suggest

COMMANDS = (
    "run", "preflight", "verify", "reproduce", "validate", "results", "score", "export", "merge", "status", "inspect",
    "recipe",
)  # fmt: skip
_PROMPT_FILES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_WITH_A_POINT = ("guidance_scale", "guidance_rescale", "sampler.eta")  # fields that people write with a decimal comma
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_PAIR = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:\s*[=:]+\s*|\s+)(?P<value>\S.*)", re.DOTALL)


def meant_field(name: str) -> str | None:
    """The field that another program's config or data set calls `name`; None where that is not known."""
    return FIELDS.get(_plain(name))


def meant_word(name: str, names: Sequence[str]) -> str | None:
    """How a command says here what another program's command calls `name`; None where that is not known.

    names: of all fields and groups.
    """
    plain = _plain(name)
    if plain in names or plain in ("resume", "prompt"):
        return plain
    leaf = plain.rsplit(".", 1)[-1]
    return next((table[key] for key in (plain, leaf) for table in (FIELDS, COMMAND_FIELDS) if key in table), None)


def absent(name: str) -> str | None:
    """Why there is no field for what another program calls `name`; None where that is not known."""
    return ABSENT.get(_plain(name))


def meant_choice(group: str, name: str, choices: Sequence[str]) -> str | None:
    """The choice of a group that another program calls `name`; None where that is not known."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp")).removesuffix("scheduler")
    same = {re.sub("[^a-z0-9]", "", choice): choice for choice in choices}
    return same.get(plain) or CHOICES.get(group, {}).get(plain)


def choice_advice(group: str, name: str, choices: Sequence[str]) -> str:
    """What to write in place of an unknown choice: `; did you mean sampler=euler`, or an empty string."""
    if meant := meant_choice(group, name, choices):
        return f"; did you mean {group}={meant}"
    path = Path(name)
    if group == "prompts" and (path.suffix.lower() in _PROMPT_FILES or path.is_file()):
        return f"; for a prompt file write {_shell('prompts=file', f'prompts.path={name}')}"
    if group == "prompts" and " " in name:
        return f"; for a prompt write {_shell(f'prompt={name}')}"
    if group == "model" and _REPO.fullmatch(name) and not name.startswith(".") and not path.expanduser().is_dir():
        known = CHOICES["model"].get(re.sub(r"[^a-z0-9]", "", path.name.lower()))
        base = known or ("sdxl" if "xl" in name.lower() else "sd15")
        return f"; for a repository write model={base}" + ("" if known else f" model.repo={name} model.revision=main")
    if group == "model" and ("/" in name or name.startswith(("~", ".")) or path.suffix):
        return f"; for a directory write {_shell('model=local', f'model.path={name}')}"
    near = suggest(name, choices).removeprefix("; did you mean ")
    return f"; did you mean {group}={near}" if near else ""


def field_advice(key: str, names: Sequence[str]) -> str:
    """What to write in place of an unknown field: `; did you mean seed`.

    names: of all fields and groups.
    """
    if meant := meant_word(key, names):
        return f"; did you mean {meant}"
    if reason := absent(key):
        return f"; {reason}"
    return suggest(key, names) or "; python -m tpusd.run --help lists them"


def flag_advice(flag: str, following: str | None, groups: Mapping[str, Sequence[str]]) -> str:
    """What to write in place of an unknown flag, such as --seed or --seed=3.

    following: the next word, which may be the value.
    groups: choices by group.
    """
    name, equals, value = flag.lstrip("-").partition("=")
    if not equals and following is not None and not following.startswith("-"):
        value = following
    meant = _field_word(name, value, groups, [*field_names(), *groups])
    return f"write {meant}" if meant else absent(name) or "write fields as field=value; --help lists them"


def unreadable(line: str, reason: str, groups: Mapping[str, Sequence[str]]) -> str:
    """The error line for a word that Hydra's grammar does not have.

    reason: Hydra's.
    groups: choices by group.
    """
    key, equals, value = line.partition("=")
    if not equals:
        meant = explained(line, groups)
        advice = f"; write {meant}" if meant else suggest(line, [*field_names(), *groups]) if line else ""
        return f"'{show(line)}': is not field=value{advice or '; --help lists the fields'}"
    if key in groups and (advice := choice_advice(key, value, groups[key])):
        return f"{show(line)}: no such {key}{advice}"
    if key != key.strip():
        return f"{show(line)}: leave out the spaces before the equals sign"
    if key.startswith(('"', "'")) and line.endswith(key[0]):
        return f"{show(line)}: leave out the quotes around it"
    return f"{show(line)}: cannot be read ({reason}); {_as_text(line)}"


def one_value(key: str, line: str) -> str:
    """What to write if a list of values was meant to be one value; an empty string where that is not known."""
    value = line.partition("=")[2]
    if key.startswith("prompts.rows."):
        return f", or, {_as_text(line)}"
    if re.fullmatch(r"\d+,\d+", value) and key in _WITH_A_POINT:
        return f", or, if it is one number, write {key}={value.replace(',', '.')}"
    if key in ("scores", "loggers"):
        return f", or, if it is one list, write {_shell(f'{key}=[{value}]')}"
    return ""


def _as_text(line: str) -> str:
    """The form of a word whose value is one text, for a POSIX shell."""
    key, _, value = line.partition("=")
    if key in field_names() and key not in text_fields() and not key.startswith("prompts.rows"):
        return "--help says which values it takes"
    if value.startswith(("[", "{")):
        example = "'prompts.rows=[{prompt: \"a, b\"}]'"
        return f"put text that holds commas, colons, quotes or brackets in quotes, as in {example}"
    return f"if it is one text, write {_shell(f'{key}={in_quotes(value)}')}"


def explained(word: str, groups: Mapping[str, Sequence[str]]) -> str | None:
    """What to write in place of a word that has no equals sign, such as a file's name; None where that is not known.

    groups: choices by group.
    """
    names = [*field_names(), *groups]
    if word in COMMANDS:
        return f"python -m tpusd.{word} for that command"
    if word in ("help", "version"):
        return f"--{word}"
    try:
        meant = _for_path(Path(word).expanduser(), word)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a home that is not known
        meant = None
    if meant is not None:
        return meant
    pair = _PAIR.fullmatch(word)
    if pair is None:
        known = _field_word(word, "", groups, names)
    elif " " not in pair["value"] or meant_word(pair["name"], names) == "prompt":
        known = _field_word(pair["name"], pair["value"], groups, names)
    else:  # a sentence
        known = None
    if known is not None:
        return known
    if suggest(word, [*names, "resume", "prompt"]) or " " not in word.strip():
        return None
    return f"{_shell(f'prompt={word}')} for a prompt"


def _field_word(name: str, value: str, groups: Mapping[str, Sequence[str]], names: Sequence[str]) -> str | None:
    """`field=value` for a field that is called `name` here or elsewhere."""
    field = meant_word(name, names)
    if field is None:
        return None
    if "=" in field and not field.endswith("path"):  # a whole word, such as precision=fp16
        return field
    if field.startswith("-") or " and " in field:
        return field
    if not value:
        value = "true" if field in true_or_false_fields() else "DIR" if field in ("resume", "output") else "VALUE"
    if field in groups:
        meant = meant_choice(field, value, groups[field])
        return f"{field}={meant}" if meant else _shell(f"{field}={value}")
    *before, last = (
        f"{field}={value}".split(" ", 1) if field.startswith(("model=", "prompts=")) else [f"{field}={value}"]
    )
    return _shell(*before, last)


def _for_path(path: Path, word: str) -> str | None:
    shown = shlex.quote(word)
    if path.is_file():
        if path.suffix.lower() in _PROMPT_FILES:
            return _shell("prompts=file", f"prompts.path={word}")
        if path.suffix.lower() in _PICTURES:
            return f"python -m tpusd.recipe {show(shown)} (for the command that makes such a picture)"
        if path.suffix.lower() == ".safetensors":
            return _shell("model=local", f"model.path={word}")
        if path.suffix.lower() == ".ckpt":
            return f"model=local model.path=FILE for a .safetensors file; {show(shown)} is a pickle, which can run code"
        return _shell("prompts=file", f"prompts.path={word}") + ", if it holds prompts (txt, csv, tsv or jsonl)"
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return _shell("model=local", f"model.path={word}")
        resume = _shell(f"resume={word}")
        if (path / "config.yaml").is_file() or (path / "sweep.json").is_file():
            return f"{resume} (to continue it), or python -m tpusd.reproduce {show(shown)} (to make it again)"
        return f"{resume} to continue a run, or {_shell(f'output={word}')} to make one there"
    if "/" in word and " " not in word:
        return f"resume=DIR to continue a run; there is no file or directory {show(shown)}"
    return None


def _shell(*words: str) -> str:
    """Words as a POSIX shell takes them."""
    return show(shlex.join(words), 200)


def _plain(name: str) -> str:
    return name.strip().lower().lstrip("-+").replace("-", "_")
