"""The command line -> plain values of one or more runs, composed by Hydra from conf/. DictConfigs stay in here.

Hydra reads, lists and composes configs here. It never instantiates, logs or makes directories, so a config from
anywhere is safe to compose. Every fault is a UserError of one line.
"""

import argparse
import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tpusd import __version__
from tpusd.config.choices import conf_directory, group_choices
from tpusd.config.config_dir import check_config_dir, read_config_file
from tpusd.config.help import help_text
from tpusd.config.meanings import choice_advice, field_advice, flag_advice, one_value, unreadable
from tpusd.config.paths import expanded_path
from tpusd.config.replace import REPLACE, swept_replacements
from tpusd.config.schema import field_names
from tpusd.config.words import expanded
from tpusd.config.yaml_files import parse_yaml
from tpusd.errors import UserError, show, suggest
from tpusd.process.arguments import Parser
from tpusd.process.waiting import waiting

VERSION_BASE = "1.3"
MAX_RUNS = 10_000  # of one sweep: composing them takes half an hour
_ALWAYS_THERE = (
    f"{REPLACE}=",
    "prompts.on_empty=",
    "prompts.wildcards=",
    "prompts.wildcards_dir=",
    "prompts.lora_dir=",
    "loras.",
    "embeddings.",
    "model.loras.",
    "model.controlnets.",
)  # fields that a group of the user need not name
_IN_A_LIST = re.compile(r"(prompts\.rows|(model\.)?loras|embeddings|model\.controlnets)\.")
_NOUNS = {"embeddings": "embedding", "controlnets": "ControlNet"}  # what a list has, where it is not LoRAs
_COMPLETION = re.compile(r"(install|uninstall|query)=(bash|zsh|fish)")
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, composed."""

    values: dict[str, Any]  # as YAML has them: any JSON values
    overrides: tuple[str, ...]  # what the command line set
    hydra_yaml: str  # Hydra's own settings, unresolved

    def hydra_files(self) -> dict[str, Any]:
        """Name in a run's .hydra/ -> text or plain values, as Hydra itself would write them."""
        return {"overrides.yaml": list(self.overrides), "config.yaml": self.values, "hydra.yaml": self.hydra_yaml}


def compose_jobs(argv: Sequence[str]) -> list[Job] | None:
    """Composes every run that the command line asks for; None if it only asked to show something, such as --help.

    argv: without the program's name. There is more than one job only with --multirun. Their order is that of Hydra's
    own sweeper: the last field varies fastest. Raises UserError.
    """
    arguments = _parse(argv)
    if arguments is None:
        return None
    shows_hydra = arguments.hydra_help or arguments.info
    if not (shows_hydra or arguments.shell_completion) or (shows_hydra and arguments.config_dir is not None):
        with waiting("composing the runs"):
            jobs = _compose_all(arguments)
        if arguments.help:
            print(help_text(jobs[0].values, group_choices(arguments.config_dir)))
            return None
        if not (arguments.cfg or shows_hydra):
            return jobs
    _let_hydra_show(arguments)
    return None


def refuse_shows(argv: Sequence[str], where: str) -> None:
    """Raises UserError for a word that only shows something.

    where: what the other words do, such as `resume=`.
    """
    if flag := next((word for word in argv if word.partition("=")[0] in _SHOWS), None):
        raise UserError(f"{show(flag)}: only shows something, and {where} makes images; leave one of the two out")


def _parse(argv: Sequence[str]) -> argparse.Namespace | None:
    _refuse_other_flags(argv)
    parser = _HydraParser(parents=[get_args_parser()], add_help=False)
    arguments = parser.parse_args([_version_asked(argument) for argument in argv])
    if arguments.overrides and arguments.overrides[0] == _VERSION:
        print(f"tpusd {__version__}")
        return None
    if arguments.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun: reads a pickle, which may run code; give the run's values as field=value"
        )
    if arguments.config_path is not None:
        raise UserError(
            f"--config-path={show(arguments.config_path)}: conf/ is part of tpusd; add your own with --config-dir=DIR"
        )
    if arguments.config_dir is not None:
        arguments.config_dir = expanded_path(arguments.config_dir, "--config-dir")
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise UserError(f"--config-dir={show(arguments.config_dir)}: no such directory")
    if arguments.multirun and (arguments.cfg or arguments.info or arguments.shell_completion):
        raise UserError("--multirun: is for making runs; leave out -m to show the config of one")
    if arguments.shell_completion:
        if len(arguments.overrides) != 1 or not _COMPLETION.fullmatch(arguments.overrides[0]):
            raise UserError("-sc: write -sc install=bash, -sc install=zsh or -sc install=fish")
    else:
        arguments.overrides = expanded(arguments.overrides, multirun=arguments.multirun)
    return arguments


_SHOWS = frozenset("-h --help --version --hydra-help -c --cfg -i --info -sc --shell-completion".split())
_WITH_VALUE = frozenset("-c --cfg -i --info -cn --config-name -cd --config-dir".split())
_REFUSED_LATER = frozenset("-cp --config-path --experimental-rerun".split())
_FLAGS = _SHOWS | _WITH_VALUE | _REFUSED_LATER | {"--resolve", "-m", "--multirun", "--"}


def _refuse_other_flags(argv: Sequence[str]) -> None:
    """Hydra has more flags, and would take -s and -p for the beginnings of longer ones. Raises UserError."""
    for i, word in enumerate(argv):
        if word.startswith("-") and word.partition("=")[0] not in _FLAGS and not (i and argv[i - 1] in _WITH_VALUE):
            following = argv[i + 1] if i + 1 < len(argv) else None
            advice = flag_advice(word, following, group_choices())
            raise UserError(f"{show(word)}: no such option; {advice}")


_VERSION = "\0version"


def _version_asked(argument: str) -> str:
    """argparse would print Hydra's version."""
    return _VERSION if argument == "--version" else argument


class _HydraParser(Parser):
    advice = "set fields as field=value; --help lists them"


def _compose_all(arguments: argparse.Namespace) -> list[Job]:
    overrides = _parse_overrides([*_swept_by_experiment(arguments), *arguments.overrides])
    if arguments.config_dir is not None:
        check_config_dir(Path(arguments.config_dir))
    _check_config_name(arguments)
    choices = group_choices(arguments.config_dir)
    for override in overrides:
        _check_override(override, choices, arguments.multirun)
    _check_number(overrides, choices, arguments.multirun)
    values = [_values(override, choices, arguments.multirun) for override in overrides]
    jobs = [tuple(job) for job in itertools.product(*values)]
    for job in jobs:
        for override in _parse_overrides(job):
            _check_choice(override, choices)
    extra = [] if arguments.config_dir is None else [_search_path(arguments.config_dir)]
    with hydra.initialize_config_dir(config_dir=str(conf_directory()), version_base=VERSION_BASE, job_name="tpusd"):
        # A config from elsewhere could have Hydra build what it names, even if it is only asked to show something.
        usual = None
        if arguments.config_dir is not None:
            usual = _built(hydra.compose(config_name="config", return_hydra_config=True))
        return [_compose(arguments.config_name or "config", job, extra, usual) for job in jobs]


def sweep_words(argv: Sequence[str]) -> list[str]:
    """The words of a sweep's command line that make its runs. They compose the same sweep from any directory."""
    arguments = _parse(argv)
    assert arguments is not None, argv
    words = list(arguments.overrides)
    if arguments.config_dir is not None:
        words.append(f"--config-dir={Path(arguments.config_dir).resolve()}")
    return words + ([] if arguments.config_name is None else [f"--config-name={arguments.config_name}"])


def _swept_by_experiment(arguments: argparse.Namespace) -> list[str]:
    """The sweep of the chosen conf/experiment file, as overrides. The command line's own values win."""
    given = dict(line.split("=", 1) for line in arguments.overrides if "=" in line)
    name = given.get("experiment", "null")
    roots = [conf_directory()] + ([] if arguments.config_dir is None else [Path(arguments.config_dir)])
    if "," in name:
        raise UserError(f"experiment={show(name)}: is a list; choose one experiment")
    file = next((path for root in roots[::-1] if (path := root / "experiment" / f"{name}.yaml").is_file()), None)
    if file is None or not name.isidentifier():
        return []  # no experiment, or an unknown one, which _check_choice refuses
    where = f"experiment={show(name)}"
    values = parse_yaml(read_config_file(file, where), where)
    for part in ("hydra", "sweeper", "params"):
        values = values.get(part) if isinstance(values, dict) else None
    if values is None:
        return []
    if not isinstance(values, dict):
        raise UserError(f"{where}: hydra.sweeper.params must hold fields and their values, as in seed: 0,1")
    if not arguments.multirun:
        raise UserError(f"{where}: is a sweep; add -m")
    return [f"{key}={value}" for key, value in values.items() if key not in given]


def _parse_overrides(lines: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for line in lines:
        try:
            parsed.append(parser.parse_override(line))
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise UserError(unreadable(line, _first_line(error), group_choices())) from None
    return parsed


def _check_override(override: Override, choices: Mapping[str, list[str]], multirun: bool) -> None:
    key = override.key_or_group
    text = override.input_line or ""
    line = show(text)
    if _INTERPOLATION.search(text):
        raise UserError(f"{line}: config is data, so ${{...}} is not looked up; write the value itself (text: \\${{)")
    if override.is_delete() or override.package is not None:
        raise UserError(f"{line}: a field or a group can only be set; write field=value")
    if key.split(".")[0].split("/")[0] == "hydra":
        raise UserError(f"{line}: Hydra's own settings are not used; the run directory is set with output=DIR")
    fields = field_names()
    known = key in choices or key in fields or _IN_A_LIST.match(key) is not None
    if not known:
        raise UserError(f"{line}: no such field or group{field_advice(key, [*fields, *choices])}")
    if key in ("model.name", "precision.name", "sampler.name"):
        group = key.removesuffix(".name")
        raise UserError(f"{line}: the choice of a {group} sets its name; write {group}={show(text.partition('=')[2])}")
    if override.is_sweep_override():
        if not multirun:
            raise UserError(f"{line}: has several values; add -m to make a run for each{one_value(key, text)}")
        if not override.is_discrete_sweep():
            raise UserError(
                f"{line}: an interval has infinitely many values; list them, as in {key}=1,2,3 or {key}=range(1,4)"
            )
        if isinstance(override.value(), Glob) and key not in choices:
            raise UserError(f"{line}: glob chooses from a group, and {key} is a field; list the values")


def _check_number(overrides: Sequence[Override], choices: Mapping[str, list[str]], multirun: bool) -> None:
    """Refuses a sweep of too many runs, before any of them is composed. Raises UserError."""
    numbers = [_num_values(one, choices, multirun) for one in overrides]
    if math.prod(numbers) > MAX_RUNS:
        swept = [one.input_line or "" for one, number in zip(overrides, numbers, strict=True) if number > 1]
        words = show(" ".join(swept))
        raise UserError(f"{words}: a sweep has at most {MAX_RUNS} runs; sweep over fewer, or make several")


def _num_values(override: Override, choices: Mapping[str, list[str]], multirun: bool) -> int:
    """How many values a field has in a sweep; of very many, at least how many."""
    value = override.value()
    # Hydra makes a list of a shuffled range, so its numbers are counted in their order.
    found = value.range() if isinstance(value, RangeSweep) else _values(override, choices, multirun)
    return sum(1 for _ in itertools.islice(found, MAX_RUNS + 1))


def _check_config_name(arguments: argparse.Namespace) -> None:
    name = arguments.config_name
    roots = [conf_directory()] + ([] if arguments.config_dir is None else [Path(arguments.config_dir)])
    known = sorted({file.stem for root in roots for file in root.glob("*.yaml")})
    if name is not None and name.removesuffix(".yaml") not in known:
        near = suggest(name, known)
        raise UserError(f"--config-name={show(name)}: no such config{near}; there are {', '.join(known)}")


def _values(override: Override, choices: Mapping[str, list[str]], multirun: bool) -> Iterator[str]:
    """The words of a run for each value of a field."""
    words = iter([override.input_line or ""])
    if override.is_sweep_override():
        words = (f"{override.get_key_element()}={value}" for value in _swept(override, choices))
    if multirun and override.key_or_group == REPLACE:
        words = itertools.chain.from_iterable(swept_replacements(word, MAX_RUNS) for word in words)
    return words


def _swept(override: Override, choices: Mapping[str, list[str]]) -> Iterator[str]:
    value = override.value()
    return (
        iter(value.filter(choices[override.key_or_group]))
        if isinstance(value, Glob)
        else override.sweep_string_iterator()
    )


def _check_choice(override: Override, choices: Mapping[str, list[str]]) -> None:
    group = override.key_or_group
    if group not in choices:
        return
    value = override.value()
    names = value if isinstance(value, list) else [value]
    for name in names:
        if str(name) not in choices[group]:
            raise UserError(
                f"{group}={show(name)}: no such {group}{choice_advice(group, str(name), choices[group])}"
                f"; the choices are {', '.join(choices[group])}"
            )


def _search_path(config_dir: str) -> str:
    path = str(Path(config_dir).resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.searchpath=['file://{path}']"


def _compose(config_name: str, overrides: tuple[str, ...], extra: list[str], usual: str | None = None) -> Job:
    """Composes one run.

    config_name: the top file, without .yaml.
    overrides: the run's own field=value words.
    extra: words for Hydra that are not part of the run.
    usual: what `_built` must give; None: anything.

    Raises UserError.
    """
    try:
        words = [f"++{word}" if word.startswith(_ALWAYS_THERE) else word for word in overrides]
        config = hydra.compose(config_name=config_name, overrides=[*words, *extra], return_hydra_config=True)
        hydra_yaml = OmegaConf.to_yaml(config.hydra, resolve=False)
        if usual is not None and _built(config) != usual:
            raise UserError(
                "--config-dir: a file in it sets Hydra's logging, launcher, sweeper or callbacks, which can run code; "
                "remove that"
            )
        values = _plain(config)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        missing = re.search(r"Could not override '([^']+)'", str(error))
        if missing:
            line = next((line for line in overrides if line.startswith(missing[1] + "=")), missing[1])
            raise UserError(
                f"{show(line)}: the chosen {missing[1].split('.')[0]} has no such field; --cfg job shows its fields"
            ) from None
        item = re.search(r"merging override \+*((?:model\.)?loras|embeddings|model\.controlnets)\.(\d+)\.", str(error))
        if item:
            noun = next((noun for name, noun in _NOUNS.items() if item[1].endswith(name)), "LoRA")
            path = "DIR" if noun == "ControlNet" else "FILE.safetensors"
            raise UserError(f"{item[1]}.{item[2]}: there is no such {noun}; add {item[1]}=[{{path: {path}}}]") from None
        group = re.search(r"merging override \+*((?:model\.)?loras|embeddings|model\.controlnets)=\{", str(error))
        if group:
            raise UserError(f"{group[1]}: must be a list of groups, as in {group[1]}=[{{path: PATH}}]") from None
        raise UserError(f"config: cannot be composed: {_first_line(error)}") from None
    return Job(values=values, overrides=overrides, hydra_yaml=hydra_yaml)


def _built(config: DictConfig) -> str:
    """Those of Hydra's settings from which it builds objects by name. A sweep's parameters are not among them."""
    settings = cast("dict[str, Any]", OmegaConf.to_container(config.hydra, resolve=False))
    settings["sweeper"].pop("params", None)
    return repr(
        [settings[name] for name in ("job_logging", "hydra_logging", "launcher", "sweeper", "callbacks", "env")]
    )


def _plain(config: DictConfig) -> dict[str, Any]:
    """The run's own values: any JSON values. Raises UserError for an interpolation."""
    raw = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    raw.pop("hydra", None)
    _refuse_interpolation(raw, "")
    values = OmegaConf.to_container(OmegaConf.create(raw), resolve=True, throw_on_missing=True)
    return cast("dict[str, Any]", values)


def _refuse_interpolation(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_interpolation(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_interpolation(item, f"{where}[{i}]")
    elif isinstance(value, str) and _INTERPOLATION.search(value):
        raise UserError(
            f"{where}={show(value)}: config is data, so ${{...}} is not looked up; write the value itself (text: \\${{)"
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("See https")]
    return show(" ".join(lines[:2]).rstrip(".")) if lines else type(error).__name__


def _let_hydra_show(arguments: argparse.Namespace) -> None:
    """Hydra itself answers --cfg, --info, --hydra-help and installs tab completion. It reads sys.argv and may exit."""
    flags = [
        *(["--cfg", arguments.cfg] if arguments.cfg else []),
        *(["--info", arguments.info] if arguments.info else []),
        *(["--resolve"] if arguments.resolve else []),
        *(["--hydra-help"] if arguments.hydra_help else []),
        *(["--shell-completion"] if arguments.shell_completion else []),
        *([f"--config-dir={arguments.config_dir}"] if arguments.config_dir is not None else []),
        *([f"--config-name={arguments.config_name}"] if arguments.config_name is not None else []),
    ]
    before = sys.argv
    sys.argv = [before[0], *flags, *arguments.overrides]
    try:
        hydra.main(version_base=VERSION_BASE, config_path=str(conf_directory()), config_name="config")(_nothing)()
    finally:
        sys.argv = before


def _nothing(config: DictConfig) -> None:
    raise AssertionError("Hydra was asked to run something")
