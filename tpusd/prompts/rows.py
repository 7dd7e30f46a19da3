"""Prompt sets -> Rows: those of a file, or those that a config holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpusd.config.limits import MAX_ROWS
from tpusd.config.meanings import meant_field
from tpusd.config.packed_rows import PackedRows, Packer, first_rows, pack
from tpusd.config.rows import ROW_FIELDS, Row, parse_row
from tpusd.config.schema import PromptsConfig, RunConfig, field_names
from tpusd.config.yaml_files import MAX_VALUES
from tpusd.errors import UserError, show, show_path
from tpusd.inputs.rows import located, with_inputs
from tpusd.prompts.files import read_file
from tpusd.prompts.networks import lora_files, without_loras
from tpusd.prompts.wildcards import Wildcards, expand
from tpusd.records.manifest import check_columns

SPARE_VALUES = 10_000  # of a config.yaml, for all that is not a row
MAX_FAULTS = 10_000  # faulty rows after which no more rows are read
MAX_LISTED = 10  # faulty rows that an error names
TEXTS = ("prompt", "negative_prompt")


def read_rows(prompts: PromptsConfig) -> Sequence[Row]:
    """All rows of a prompt set, checked. Raises UserError that names the places (file and line) of the faults."""
    if prompts.rows is not None:
        rows = prompts.rows
        if not isinstance(rows, PackedRows):  # those of a saved run are checked, and have whole paths
            check_columns(rows)
            rows = pack(located(row, Path()) for row in rows)
        return _replaced(rows, prompts.replace or ())
    assert prompts.path is not None
    packer, num_rows = Packer(), 0
    faults: list[str] = []  # the first of them
    num_faults = 0
    room, names = MAX_VALUES - SPARE_VALUES, set[str]()
    column, folder = prompts.column or "prompt", Path(prompts.path).parent
    for place, record in read_file(prompts.path, prompts.column):
        if prompts.on_empty == "skip" and _is_empty(record, column):
            continue
        if num_rows == MAX_ROWS:
            raise UserError(
                f"prompts.path={show(prompts.path)}: more than {MAX_ROWS} prompts; split them over several runs"
            )
        try:
            if isinstance(record, UserError):
                raise record
            row = parse_row(place, record, column=column, inline=False)
            check_columns([row], place)
        except UserError as error:
            num_faults += 1
            if len(faults) < MAX_LISTED:
                faults.append(str(error))
            if num_faults == MAX_FAULTS or _is_of_every_row(record, column):
                break
        else:
            packer.add(located(row, folder))
            num_rows += 1
            room -= row.num_values(names)
            if room < 0:
                raise UserError(
                    f"prompts.path={show(prompts.path)}: its rows hold over {MAX_VALUES} values and names of columns; "
                    "take columns out, or split it over several runs"
                )
    if faults:
        raise UserError(_listed(faults, num_faults, prompts.path))
    if not num_rows:
        raise UserError(f"prompts.path={show_path(prompts.path)}: holds no prompt; add at least one")
    return _replaced(packer.rows(), prompts.replace or ())


def run_rows(config: RunConfig) -> Sequence[Row]:
    """All rows of a run's prompt set, as its images are made from them. Raises UserError.

    They have the run's picture and mask where they have none of their own, and no wildcards and marks of LoRAs.
    """
    return with_inputs(_with_loras(_expanded(read_rows(config.prompts), config), config), config)


def _expanded(rows: Sequence[Row], config: RunConfig) -> Sequence[Row]:
    """The rows without wildcards. The run's negative prompt is then that of each row which has none."""
    directory = config.prompts.wildcards_dir
    if directory is None and not config.prompts.wildcards:
        return rows
    if directory is not None and not Path(directory).is_dir():
        raise UserError(f"prompts.wildcards_dir={show_path(directory)}: is not a directory; correct the path")
    files = Wildcards(root=None if directory is None else Path(directory))
    made, faults = Packer(), list[str]()
    for number, row in enumerate(rows, config.first_row):
        whole = row if row.negative_prompt is not None else replace(row, negative_prompt=config.negative_prompt)
        seed, place = (config.seed, number) if row.seed is None else (row.seed, None)
        changed: dict[str, Any] = {}
        for name in TEXTS:
            if (text := getattr(whole, name)) is None:
                continue
            try:
                expanded = expand(text, files, seed=seed, row=place, field=name)
                if name == "prompt" and not expanded.strip():
                    raise UserError("is empty after its choices; write a choice that has words")
            except UserError as error:
                faults.append(f"{name} of row {number}: {error}")
                continue
            if expanded != text:
                changed |= {name: expanded, f"{name}_template": getattr(whole, f"{name}_template") or text}
        made.add(replace(row, **changed) if changed else row)
        if len(faults) == MAX_LISTED:
            break
    if faults:
        raise UserError("; ".join(faults))
    return made.rows()


def _with_loras(rows: Sequence[Row], config: RunConfig) -> Sequence[Row]:
    """The rows whose prompts name LoRAs, with these as their own and without the marks. Raises UserError."""
    directory = config.prompts.lora_dir
    if directory is None:
        return rows
    files, where = lora_files(directory), f"prompts.lora_dir={show_path(directory)}"
    made, faults = Packer(), list[str]()
    for number, row in enumerate(rows, config.first_row):
        try:
            prompt, loras = without_loras(row.prompt, files, where)
            if loras and not prompt.strip():
                raise UserError("has no words beside its LoRAs; write some")
        except UserError as error:
            faults.append(f"prompt of row {number}: {error}")
            continue
        if loras:
            own: dict[str, Any] = {"prompt": prompt, "prompt_template": row.prompt_template or row.prompt}
            row = replace(row, loras=(*(row.loras or ()), *loras), **own)
        made.add(row)
    if faults:
        raise UserError("; ".join(faults[:MAX_LISTED]))
    return made.rows()


def _replaced(rows: Sequence[Row], pairs: Iterable[Sequence[str]]) -> Sequence[Row]:
    """The rows with a text of each pair in the place of the other, one pair after another. Raises UserError."""
    for old, new in pairs:
        if not any(old in row.prompt for row in rows):
            raise UserError(f"prompts.replace: no prompt has {show(old)}; write it as the prompts have it")
        rows = pack(_with_text(row, old, new) for row in rows)
        empty = next((number for number, row in enumerate(rows) if not row.prompt.strip()), None)
        if empty is not None:
            raise UserError(f"prompts.replace: without {show(old)} row {empty} has no prompt; leave a word in it")
    return rows


def _with_text(row: Row, old: str, new: str) -> Row:
    return replace(row, prompt=row.prompt.replace(old, new))


def column_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """A line for each further column whose name looks like a field, and which has no effect on the images."""
    names = dict.fromkeys(name for _, row in first_rows(rows) for name in row.extra)
    notes = []
    for name in names:
        meant = name if name in field_names() else meant_field(name)
        if meant is not None:
            own = meant.rpartition(".")[2]
            instead = f"rename it to {own}" if own in ROW_FIELDS else f"set it for the run with {meant}=..."
            notes.append(f"prompts: column {show(name)} has no effect, and goes to the manifest; {instead}")
    return tuple(notes)


def _is_empty(record: object, column: str) -> bool:
    """Whether a row has no prompt: an empty or blank text, or null."""
    if not isinstance(record, Mapping) or column not in record:
        return False
    prompt = record[column]
    return prompt is None or (isinstance(prompt, str) and not prompt.strip())


def _is_of_every_row(record: object, column: str) -> bool:
    """Whether the column of the prompts is missing: then it is in every row."""
    return isinstance(record, Mapping) and column not in record


def _listed(faults: Sequence[str], number: int, path: str) -> str:
    """One fault as it is; of several, how many there are and the first of them."""
    if number == 1:
        return faults[0]
    start = f"prompts.path={show_path(path)}"
    bare = [fault.removeprefix(start).lstrip() for fault in faults]
    first = "; ".join([bare[0], *(show(fault.partition("; ")[0], 80) for fault in bare[1:])])  # advice once
    more = f"; and {number - len(faults)} more" if number > len(faults) else ""
    at_least = "at least " if number == MAX_FAULTS else ""
    return f"{start}: {at_least}{number} rows are wrong: {first}{more}"
