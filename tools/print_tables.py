"""Prints the tables of README.md and docs/ from the code, between the markers that name them.

    python tools/print_tables.py            rewrites what has changed
    python tools/print_tables.py --check    changes nothing; exit status 1 if a table is out of date

A marker stands alone on its line, or inside a line for a list: <!-- table: samplers --> ... <!-- end -->
"""

import argparse
import dataclasses
import functools
import json
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
from tpusd.config.adapters import LoraConfig  # noqa: E402
from tpusd.config.compose import compose_jobs  # noqa: E402
from tpusd.config.controls import ControlNet  # noqa: E402
from tpusd.config.embeddings import EmbeddingConfig  # noqa: E402
from tpusd.config.options import Option, describe, options  # noqa: E402
from tpusd.config.sampler import SamplerOptions, SamplerSettings  # noqa: E402
from tpusd.config.schema import RunConfig, make_config  # noqa: E402
from tpusd.config.typed import split_hint  # noqa: E402
from tpusd.runs.cards import CARDS  # noqa: E402
from tpusd.samplers.registry import OptionValue, Sampler, samplers  # noqa: E402
from tpusd.samplers.rows import NOISE  # noqa: E402
from tpusd.samplers.schedule import SchedulerConfig  # noqa: E402
from tpusd.samplers.table import make_table  # noqa: E402
from tpusd.scores.registry import metrics  # noqa: E402
from tpusd.scores.sets import SET_METRICS  # noqa: E402

_MARKED = re.compile(r"(?P<start><!-- table: (?P<name>[\w-]+) -->)(?P<text>.*?)(?P<end><!-- end -->)", re.DOTALL)
_FEW = 3  # samplers to name as exceptions


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Prints the tables of README.md and docs/ from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if a table is out of date")
    arguments = parser.parse_args(argv)
    outdated = [path for path in documents(ROOT) if printed(before := path.read_text(encoding="utf-8")) != before]
    for path in outdated:
        print(f"{path.relative_to(ROOT)}: {'out of date' if arguments.check else 'rewritten'}")
        if not arguments.check:
            path.write_text(printed(path.read_text(encoding="utf-8")), encoding="utf-8")
    if arguments.check and outdated:
        print("run: python tools/print_tables.py")
    return 1 if arguments.check and outdated else 0


def documents(root: Path) -> list[Path]:
    """The Markdown files that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def printed(text: str) -> str:
    """The text of a Markdown file, with every marked table printed again. Raises KeyError for an unknown table."""

    def replaced(found: re.Match[str]) -> str:
        alone = found["text"].startswith("\n")
        body = TABLES[found["name"]]()
        return found["start"] + (f"\n{body}\n" if alone else body) + found["end"]

    return _MARKED.sub(replaced, text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *body = ("| " + " | ".join(line) + " |" for line in (header, *rows))
    return "\n".join([head, "|---" * len(header) + "|", *body])


def sampler_names() -> str:
    """The names of all samplers, in one line."""
    return _names(samplers())


def samplers_table() -> str:
    """A row for each sampler. Steps are those of its choice in conf/, and model calls those that they cost."""
    default = _chosen()["name"]
    rows = []
    for name, sampler in samplers().items():
        steps = _chosen(f"sampler={name}")["num_inference_steps"]
        table = make_table(SamplerSettings(name=name, num_inference_steps=steps), SchedulerConfig())
        noise = "with `eta`" if "eta" in sampler.defaults else "yes" if table.rows[:, NOISE].any() else "no"
        options = [f"`{option}={value!r}`" for option, value in sampler.diffusers_options.items()]
        rows.append(
            [
                f"`{name}`" + (" (default)" if name == default else ""),
                ", ".join([f"`{sampler.diffusers}`", *options]),
                sampler.a1111,
                str(steps),
                str(len(table)),
                noise,
                sampler.paper,
            ]
        )
    return markdown_table(["`sampler=`", "diffusers class", "A1111", "Steps", "Model calls", "Noise", "Paper"], rows)


@functools.cache
def _chosen(*overrides: str) -> Mapping[str, Any]:
    """The sampler group of a command line, as plain values."""
    jobs = compose_jobs(overrides)
    assert jobs is not None
    values: Mapping[str, Any] = jobs[0].values["sampler"]
    return values


def sampler_options_table() -> str:
    """A row for each option: its meaning, the values of each sampler with the default in bold, and who has it."""
    known = {option.path: option for option in options(SamplerSettings)}
    steps = known["num_inference_steps"]
    rows = [[f"`{steps.path}`", steps.help, describe(steps.hint), "all"]]
    for option in (field.name for field in fields(SamplerOptions)):
        hint, meaning = split_hint(known[option].hint)[0], known[option].help
        having = [sampler for sampler in samplers().values() if option in sampler.defaults]
        by_values: dict[str, list[str]] = {}
        taken = split_hint(typing.get_args(hint)[0])[0]
        for sampler in having:
            by_values.setdefault(_values(sampler, option, taken), []).append(sampler.name)
        usual = max(by_values, key=lambda text: len(by_values[text]))
        values = [f"{_names(who)}: {text}" for text, who in by_values.items() if text != usual]
        values.append(f"others: {usual}" if values else usual)
        rows.append([f"`{option}`", meaning, "; ".join(values), _who([sampler.name for sampler in having])])
    return markdown_table(["Option", "Meaning", "Values (bold: the default)", "Samplers"], rows)


def _values(sampler: Sampler, option: str, hint: object) -> str:
    """The values that a sampler takes for an option, with its default in bold."""
    default = sampler.defaults[option]
    known: Sequence[OptionValue] = (False, True) if hint is bool else typing.get_args(hint)
    if option == "prediction_type":
        known = sampler.prediction_types
    elif option in sampler.choices:
        known = sampler.choices[option]
    elif typing.get_origin(hint) is tuple or not known:
        known = (default,)
    return ", ".join(f"**{_shown(value)}**" if value == default else _shown(value) for value in known)


def _shown(value: OptionValue) -> str:
    if value in (None, (), float("-inf")):
        return "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _who(names: Sequence[str]) -> str:
    others = [name for name in samplers() if name not in names]
    if not others:
        return "all"
    return f"all except {_names(others)}" if len(others) <= _FEW else _names(names)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def few_steps_table() -> str:
    """A row for each distilled model: what conf/model sets, and what else its card allows."""
    rows = []
    for name, card in CARDS.items():
        jobs = compose_jobs([f"model={name}"])
        assert jobs is not None
        made = make_config(jobs[0].values)
        parts = [part.repo for part in (made.model.unet, *made.loras) if part.repo is not None]
        schedule = f"timesteps {', '.join(map(str, card.timesteps))}" if card.timesteps else card.spacing or ""
        steps = f"**{made.sampler.num_inference_steps}**"
        others = [str(number) for number in card.steps if number != made.sampler.num_inference_steps]
        guidance = "none" if card.most_guidance <= 1 else f"none, or up to {card.most_guidance:g}"
        rows.append(
            [
                f"`{name}`",
                " + ".join(f"`{repo}`" for repo in (made.model.repo, *parts)),
                f"`{made.sampler.name}`{' ' if schedule else ''}{schedule}",
                ", ".join([steps, *others]),
                guidance,
                card.licence or "as the base model",
            ]
        )
    return markdown_table(["`model=`", "Made of", "Sampler", "Steps (bold: the default)", "Guidance", "Licence"], rows)


def run_options_table(group: str = "") -> str:
    """A row for each field of a run, or of one of its groups: its default, what it accepts, and its help.

    group: such as `model`; empty: the fields that are in no group.
    """
    rows = [
        [f"`{option.path}`", _default(option), describe(option.hint), option.help]
        for option in options(RunConfig)
        if not option.is_group and option.path.rpartition(".")[0] == group
    ]
    return markdown_table(["Field", "Default", "Values", "Meaning"], rows)


def item_options_table(item: type[LoraConfig] | type[EmbeddingConfig] | type[ControlNet]) -> str:
    """A row for each field of an item of a list, such as a LoRA."""
    rows = [[f"`{o.path}`", _default(o), describe(o.hint), o.help] for o in options(item)]
    return markdown_table(["Field", "Default", "Values", "Meaning"], rows)


def _default(option: Option) -> str:
    """A default as YAML writes it; empty for a field that the group's file sets."""
    if option.default is dataclasses.MISSING:
        return ""
    return option.default if isinstance(option.default, str) else json.dumps(option.default)


def metrics_table() -> str:
    """A row for each metric."""
    rows = [
        [f"`{name}`", metric.about, metric.range, metric.better or "neither", metric.needs or "nothing", metric.paper]
        for name, metric in {**metrics(), **SET_METRICS}.items()
    ]
    return markdown_table(["`metric=`", "What it measures", "Range", "Better", "Needs", "Paper"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "run-options": run_options_table,
    "model-options": functools.partial(run_options_table, "model"),
    "vae-options": functools.partial(run_options_table, "model.vae"),
    "precision-options": functools.partial(run_options_table, "precision.unet"),
    "prompts-options": functools.partial(run_options_table, "prompts"),
    "cache-options": functools.partial(run_options_table, "cache"),
    "executor-options": functools.partial(run_options_table, "executor"),
    "safety-options": functools.partial(run_options_table, "safety"),
    "score-options": functools.partial(run_options_table, "score_weights.clip"),
    "lora-options": functools.partial(item_options_table, LoraConfig),
    "embedding-options": functools.partial(item_options_table, EmbeddingConfig),
    "controlnet-options": functools.partial(item_options_table, ControlNet),
    "few-steps": few_steps_table,
    "samplers": samplers_table,
    "sampler-options": sampler_options_table,
    "sampler-names": sampler_names,
    "metrics": metrics_table,
}

if __name__ == "__main__":
    sys.exit(main())
