"""Whatever prompt file and config come in, what comes out is a whole run directory or one line."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.runs import StandInPipeline, manifest, prepare

from tpusd.config.schema import config_values, make_config
from tpusd.errors import UserError
from tpusd.records.saved import read_config, read_saved
from tpusd.records.validate import faults
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["prompt", "negative_prompt", "seed", "guidance_scale", "note", "trace", "row", "Prompt", ""])
ROWS = st.lists(st.dictionaries(COLUMNS, JSON | st.sampled_from(["a fox", 7, 0, 1.5]), max_size=4), max_size=3)
CELLS = st.sampled_from(
    ["prompt", "a fox", "seed", "7", '"', '""', ",", "\t", "\n", "\r", "\0", "é", "\u2028", "-1", "nan", ""]
)
FILES = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(CELLS, max_size=14).map(lambda cells: ("prompt,seed\n" + "".join(cells)).encode()),
    ROWS.map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode()),
)
VALUES = st.one_of(
    JSON,
    st.sampled_from([0, 1, 2, 8, 16, 1.0, 7.5, 2**32 - 1, 2**32, "", "tiny", [], ["00000-000"], ["00001-000", "x"]]),
)
FIELDS = st.sampled_from(
    "seed num_images_per_prompt guidance_scale guidance_rescale negative_prompt height width batch_size_per_device "
    "on_truncate on_changed_weights images first_row first_copy image_format image_quality model precision sampler "
    "prompts nothing".split()
)


def outcome(values, folder):
    """The run directory, or None where it was refused in one line."""
    try:
        made = make_config(values)
        # As any real run may be, too large for a test; what is checked here is checked before that.
        if made.num_images_per_prompt > 3 or max(made.height or 8, made.width or 8) > 64:
            return None
        return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())
    except UserError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 900
        assert not (folder / "run").exists()
        return None


@pytest.fixture(scope="module")
def base():
    from support.runs import config

    return config_values(config("height=8", "width=8"))


SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def check_whole(path):
    assert list(faults(path)) == []
    saved = read_saved(path)
    assert config_values(saved) == read_config(path)
    assert sum(1 for _ in manifest(path)) == len(os.listdir(path / "images"))


@pytest.mark.slow
@SETTINGS
@given(FILES, st.sampled_from(["txt", "csv", "tsv", "jsonl"]), st.sampled_from([None, None, "note", "prompt", ""]))
def test_any_prompt_file_gives_a_whole_run_or_one_line(base, data, suffix, column):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"p.{suffix}"
        file.write_bytes(data)
        prompts = {"name": "file", "path": str(file), "column": column, "rows": None}
        path = outcome(base | {"prompts": prompts, "output": f"{folder}/run"}, Path(folder))
        if path is not None:
            check_whole(path)


@pytest.mark.slow
@SETTINGS
@given(st.dictionaries(FIELDS, VALUES, min_size=1, max_size=2), ROWS)
def test_any_config_gives_a_whole_run_or_one_line(base, fields, rows):
    with tempfile.TemporaryDirectory() as folder:
        prompts = {"name": "inline", "path": None, "column": None, "rows": [{"prompt": "a fox"}, *rows]}
        path = outcome(base | {"prompts": prompts} | fields | {"output": f"{folder}/run"}, Path(folder))
        if path is not None:
            check_whole(path)
