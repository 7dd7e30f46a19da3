"""Prompt sets -> Rows: those of a file, or those that a config holds."""

from tpusd.config.limits import MAX_ROWS
from tpusd.config.rows import Row, parse_row
from tpusd.config.schema import PromptsConfig
from tpusd.errors import UserError, show
from tpusd.prompts.files import read_file
from tpusd.records.manifest import check_columns


def read_rows(prompts: PromptsConfig) -> tuple[Row, ...]:
    """All rows of a prompt set, checked. Raises UserError that names the place (file and line) of the first fault."""
    if prompts.rows is not None:
        check_columns(prompts.rows)
        return prompts.rows
    assert prompts.path is not None
    rows: list[Row] = []
    for place, record in read_file(prompts.path, prompts.column):
        if len(rows) == MAX_ROWS:
            raise UserError(
                f"prompts.path={show(prompts.path)}: more than {MAX_ROWS} prompts; split them over several runs"
            )
        row = parse_row(place, record, column=prompts.column or "prompt", inline=False)
        check_columns([row], place)
        rows.append(row)
    if not rows:
        raise UserError(f"prompts.path={show(prompts.path)}: holds no prompt; add at least one")
    return tuple(rows)
