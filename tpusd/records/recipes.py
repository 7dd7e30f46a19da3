"""What a run's config says of the manifest line of each image. Rows that are set alike share most of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpusd.config.packed_rows import PackedRows
from tpusd.config.schema import SavedConfig
from tpusd.plan.specs import make_spec, row_of
from tpusd.records.manifest import DECIDED_BY_CONFIG, OPTIONAL_FIELDS, recipe_values

_DECIDED, _OPTIONAL = frozenset(DECIDED_BY_CONFIG), frozenset(OPTIONAL_FIELDS)
# Fields of a line in which images of one kind of row differ.
OWN_FIELDS = (
    "row",
    "copy",
    "prompt",
    "negative_prompt",
    "seed",
    "row_seed",
    "prompt_template",
    "negative_prompt_template",
)
MAX_KINDS = 4096  # of rows, whose common values are kept


class Recipes:
    """Lines of a run, checked against its config."""

    def __init__(self, config: SavedConfig):
        self._config, rows = config, config.prompts.rows
        self._packed = rows if isinstance(rows, PackedRows) else None
        self._common: dict[int, _Common] = {}  # by kind of row

    def of(self, row: int, copy: int) -> dict[str, Any]:
        """`recipe_values` of an image."""
        if self._packed is None:
            return recipe_values(self._config, make_spec(self._config, row, copy))
        return {**self._common_of(row).values, **self._own_of(row, copy)}

    def difference(self, values: Mapping[str, Any], row: int, copy: int) -> tuple[str, Any, Any] | None:
        """The first field in which a line is not as the config says: (name, of the line, of the config)."""
        if self._packed is not None:
            own = self._own_of(row, copy)
            common = self._common_of(row).in_line
            num_own = sum(own[name] is not None or name not in _OPTIONAL for name in own)
            same = common.items() <= values.items() and all(values.get(name) == own[name] for name in own)
            if same and len(common) + num_own == len(_DECIDED & values.keys()):
                return None
        recipe = self.of(row, copy)
        for name in DECIDED_BY_CONFIG:
            if values.get(name) != recipe[name]:
                return name, values.get(name), recipe[name]
        return None

    def extra(self, row: int) -> Mapping[str, Any]:
        """The further columns of a row, which its lines have too."""
        if self._packed is not None and not self._common_of(row).has_extra:
            return {}
        return row_of(self._config, row).extra

    def _common_of(self, row: int) -> "_Common":
        assert self._packed is not None
        kind = self._packed.kind(row - self._config.first_row)
        found = self._common.get(kind)
        if found is None:
            if len(self._common) == MAX_KINDS:
                self._common.clear()
            spec = make_spec(self._config, row, 0)
            values = recipe_values(self._config, spec)
            in_line = {
                name: value
                for name, value in values.items()
                if name not in OWN_FIELDS and (value is not None or name not in _OPTIONAL)
            }
            found = self._common[kind] = _Common(values=values, in_line=in_line, has_extra=bool(spec.extra))
        return found

    def _own_of(self, row: int, copy: int) -> dict[str, Any]:
        config, own = self._config, row_of(self._config, row)
        negative_prompt = config.negative_prompt if own.negative_prompt is None else own.negative_prompt
        seed = config.seed if own.seed is None else own.seed
        texts = own.prompt, negative_prompt, seed, own.seed, own.prompt_template, own.negative_prompt_template
        return dict(zip(OWN_FIELDS, (row, copy, *texts), strict=True))


@dataclass(frozen=True, kw_only=True)
class _Common:
    """Of rows of one kind. in_line: those of `values` that a line has, and that are the same for all rows."""

    values: Mapping[str, Any]
    in_line: Mapping[str, Any]
    has_extra: bool
