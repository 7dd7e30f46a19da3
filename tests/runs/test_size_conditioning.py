"""Size conditioning: what a run, its rows, its manifest and its commands say of it, and what is refused."""

import pytest
from support.checkpoints import tiny
from support.runs import StandInPipeline, config, manifest

from tpusd.config.grammar import hydra_value
from tpusd.config.schema import config_values, saved_config
from tpusd.config.sizes import SIZE_FIELDS, Sizes
from tpusd.errors import UserError
from tpusd.plan.batches import num_programs
from tpusd.plan.specs import make_specs
from tpusd.prompts.rows import run_rows
from tpusd.recipes.readers import read_recipe
from tpusd.records.saved import read_saved
from tpusd.records.validate import faults
from tpusd.runs.prepare import prepare_run
from tpusd.runs.start import start_run

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.slow]
SIZE = 64
ROWS = [
    {"prompt": "a fox", "original_size": [32, 48], "crop": [8, 0]},
    {"prompt": "an owl"},
    {"prompt": "a hat", "negative_original_size": [512, 512], "negative_target_size": [1024, 768]},
]


def words(rows, *more, layout="sdxl"):
    size = (f"height={SIZE}", f"width={SIZE}", "sampler.num_inference_steps=2", "batch_size_per_device=8")
    return ("model=local", f"model.path={tiny(layout)}", f"prompts.rows={hydra_value(rows)}", *size, *more)


def line_of(rows, *more, **options):
    with pytest.raises(UserError) as caught:
        prepare_run(config(*words(rows, *more, **options)))
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


def test_a_run_says_the_sizes_of_its_rows_and_their_commands_make_them_again(tmp_path):
    run = start_run(
        config(*words(ROWS, "target_size=[96,96]", f"output={tmp_path / 'run'}")),
        load=lambda *a, **k: StandInPipeline(),
    )
    lines = {line["row"]: line for line in manifest(run)}
    own = [{name: line[name] for name in SIZE_FIELDS if name in line} for _, line in sorted(lines.items())]
    assert own == [
        {"original_size": [32, 48], "crop": [8, 0], "target_size": [96, 96]},
        {"target_size": [96, 96]},
        {"target_size": [96, 96], "negative_original_size": [512, 512], "negative_target_size": [1024, 768]},
    ]
    assert list(faults(run)) == []
    for spec in make_specs(read_saved(run)):
        made = config(*read_recipe(run / lines[spec.row]["file_name"]).overrides)
        (again,) = make_specs(saved_config(made, rows=run_rows(made), height=SIZE, width=SIZE))
        assert again == spec


def test_a_run_without_them_is_saved_as_before():
    run = prepare_run(config(*words([{"prompt": "a fox"}])))
    assert not set(SIZE_FIELDS) & config_values(run.config).keys()
    assert [spec.sizes for spec in make_specs(run.config)] == [None]


def test_sizes_have_a_program_of_their_own_and_no_more():
    run = prepare_run(config(*words(ROWS)))
    kinds = [run.kind(spec) for spec in make_specs(run.config)]
    assert [kind.sized for kind in kinds] == [True, False, True]
    assert num_programs(kinds) == 4  # encode, two denoisers, decode


def test_the_numbers_are_those_of_the_reference():
    """StableDiffusionXLPipeline: the negative ones are those of the prompt, unless both of their sizes are given."""
    size = [40, 64]
    assert Sizes().numbers(*size) == ([*size, 0, 0, *size],) * 2
    own = Sizes(original_size=(1, 2), crop=(3, 4), target_size=(5, 6))
    assert own.numbers(*size) == ([1, 2, 3, 4, 5, 6],) * 2
    both = Sizes(crop=(3, 4), negative_original_size=(7, 8), negative_target_size=(9, 10))
    assert both.numbers(*size) == ([*size, 3, 4, *size], [7, 8, 0, 0, 9, 10])


def test_columns_of_a_csv_are_texts(tmp_path):
    (tmp_path / "p.csv").write_text('prompt,original_size,crop\na fox,"[32, 48]","8,0"\nan owl,,\n')
    fox, owl = run_rows(config("prompts=file", f"prompts.path={tmp_path / 'p.csv'}"))
    assert (fox.original_size, fox.crop, owl.crop) == ((32, 48), (8, 0), None)


@pytest.mark.parametrize(
    ("row", "more", "layout", "expected"),
    [
        ({}, ["original_size=[64,64]"], "sd1", "original_size=[64, 64]: is for SDXL, which reads sizes; leave it out"),
        ({"crop": [0, 0]}, [], "sd2", "row 0: crop=[0, 0]: is for SDXL"),
        ({"crop": [0]}, [], "sdxl", "crop=[0]: must have 2 to 2 entries"),
        ({"crop": "a"}, [], "sdxl", "crop=a: must be a list"),
        ({"crop": [0, -1]}, [], "sdxl", "must be from 0 to 65536"),
        ({}, ["target_size=[64]"], "sdxl", "target_size=[64]: must have 2 to 2 entries"),
        ({"negative_crop": [0, 8]}, [], "sdxl", "negative_crop=[0, 8]: needs negative_original_size beside it"),
        ({}, ["negative_target_size=[8,8]"], "sdxl", "needs negative_original_size beside it; add it"),
    ],
)
def test_what_does_not_fit_is_one_line(row, more, layout, expected):
    assert expected in line_of([{"prompt": "a", **row}], *more, layout=layout)
