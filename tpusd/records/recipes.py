"""What a run's config says of the manifest line of each image. Rows that are set alike share most of it."""

from collections.abc import Mapping
from typing import Any

from tpusd.config.packed_rows import PackedRows
from tpusd.config.schema import SavedConfig
from tpusd.plan.specs import make_spec, row_of
from tpusd.records.manifest import DECIDED_BY_CONFIG, OPTIONAL_FIELDS, recipe_values

_DECIDED, _OPTIONAL = frozenset(DECIDED_BY_CONFIG), frozenset(OPTIONAL_FIELDS)
MAX_KINDS = 4096  # of rows, whose common values are kept


class Recipes:
    """Lines of a run, checked against its config."""

    def __init__(self, config: SavedConfig):
        self._config, rows = config, config.prompts.rows
        self._packed = rows if isinstance(rows, PackedRows) else None
        self._common: dict[int, dict[str, Any]] = {}  # kind of row -> the values that its rows share

    def of(self, row: int, copy: int) -> dict[str, Any]:
        """`recipe_values` of an image."""
        config = self._config
        if self._packed is None:
            return recipe_values(config, make_spec(config, row, copy))
        kind = self._packed.kind(row - config.first_row)
        common = self._common.get(kind)
        if common is None:
            if len(self._common) == MAX_KINDS:
                self._common.clear()
            common = self._common[kind] = recipe_values(config, make_spec(config, row, copy))
        own = row_of(config, row)
        return common | {
            "row": row,
            "copy": copy,
            "prompt": own.prompt,
            "negative_prompt": config.negative_prompt if own.negative_prompt is None else own.negative_prompt,
            "seed": config.seed if own.seed is None else own.seed,
            "row_seed": own.seed,
            "prompt_template": own.prompt_template,
            "negative_prompt_template": own.negative_prompt_template,
        }

    def difference(self, values: Mapping[str, Any], row: int, copy: int) -> tuple[str, Any, Any] | None:
        """The first field in which a line is not as the config says: (name, of the line, of the config)."""
        recipe = self.of(row, copy)
        # As a line has them: an optional field that is not set is not there.
        set_fields = {name: value for name, value in recipe.items() if value is not None or name not in _OPTIONAL}
        if set_fields.items() <= values.items() and len(set_fields) == len(_DECIDED & values.keys()):
            return None
        for name in DECIDED_BY_CONFIG:
            if values.get(name) != recipe[name]:
                return name, values.get(name), recipe[name]
        return None

    def extra(self, row: int) -> Mapping[str, Any]:
        """The further columns of a row, which its lines have too."""
        return row_of(self._config, row).extra
