"""`prompts.replace`: a word of the prompts as an axis of a sweep."""

import json

import pytest
from support.runs import StandInPipeline, config, manifest, prepare
from support.sweeps import go_on, make

from tpusd.config.compose import compose_jobs
from tpusd.config.replace import axis_values
from tpusd.config.rows import Row
from tpusd.errors import UserError
from tpusd.prompts.rows import read_rows
from tpusd.records.saved import read_saved
from tpusd.records.sweep import read_sweep
from tpusd.runs.reproduce import reproduce

pytestmark = pytest.mark.usefixtures("one_device")
ROWS = 'prompts.rows=[{prompt: "a cat in the snow"}, {prompt: "an owl"}, {prompt: "cat and cat", seed: 3}]'


def replaced(*words):
    """The prompts of each run that the command line makes."""
    from tpusd.config.schema import make_config

    return [[row.prompt for row in read_rows(make_config(job.values).prompts)] for job in compose_jobs(words)]


@pytest.mark.slow
def test_the_first_word_is_looked_for_and_each_takes_its_place():
    """As Prompt S/R of A1111: the first word is a value too."""
    assert replaced("-m", ROWS, 'prompts.replace=[[cat,dog,"red fox"]]') == [
        ["a cat in the snow", "an owl", "cat and cat"],
        ["a dog in the snow", "an owl", "dog and dog"],
        ["a red fox in the snow", "an owl", "red fox and red fox"],
    ]


@pytest.mark.slow
def test_several_lists_make_every_combination():
    made = replaced("-m", ROWS, "prompts.replace=[[cat,dog],[snow,rain,sun]]")
    assert [prompts[0] for prompts in made] == [
        f"a {animal} in the {weather}" for animal in ("cat", "dog") for weather in ("snow", "rain", "sun")
    ]


def test_one_run_replaces_one_text_by_another():
    assert replaced(ROWS, "prompts.replace=[[cat,dog],[an owl,bat]]") == [["a dog in the snow", "bat", "dog and dog"]]
    assert replaced("prompt=a cat", "prompts.replace=[[cat,dog]]") == [["a dog"]]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a, b: {c} [d]", 'it\'s "so"', "日本の狐", "${x} \\", "null", "a=b"])
def test_any_text_can_be_put_in(text):
    from tpusd.config.grammar import hydra_value

    word = f"prompts.replace={hydra_value([['cat', text, 'dog']])}"
    assert [prompts[0] for prompts in replaced("-m", ROWS, word)] == [
        f"a {one} in the snow" for one in ("cat", text, "dog")
    ]


@pytest.mark.slow
def test_files_and_sets_of_the_user_take_it_too(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\nan owl\n")
    file = ("prompts=file", f"prompts.path={tmp_path / 'p.txt'}", "prompts.replace=[[cat,dog]]")
    assert replaced(*file) == [["a dog", "an owl"]]
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "mine.yaml").write_text("name: mine\nrows: [{prompt: a cat}]\n")
    assert replaced(f"--config-dir={tmp_path}", "prompts=mine", "prompts.replace=[[cat,dog]]") == [["a dog"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prompts.replace=[[cat,dog,fox]]"], r"\[\[cat, dog, fox\]\]: has several texts to put in; add -m"),
        (["prompts.replace=[[cat]]"], "must be a text and what takes its place"),
        (['prompts.replace=[["",dog]]'], "must be a text and what takes its place"),
        (["prompts.replace=[cat,dog]"], r"prompts.replace\[0\]=cat: must be a list"),
        (["prompts.replace=cat"], "prompts.replace=cat: must be a list"),
        (["prompts.replace=[[cat,2]]"], r"prompts.replace\[0\]\[1\]=2: must be text.*; quote it"),
        (["prompts.replace=[[lion,dog]]"], "prompts.replace: no prompt has lion"),
        (['prompts.replace=[["an owl",""]]'], "prompts.replace: without an owl row 1 has no prompt"),
        (["-m", "prompts.replace=[[cat]]"], "must be a text and what takes its place"),
        (["-m", "prompts.replace=[[cat,2,3]]"], "must be text"),
        (["-m", f"prompts.replace=[[cat{',x' * 999}],[snow{',y' * 999}]]"], "a sweep has at most 10000 runs"),
    ],
)
def test_what_cannot_be_replaced_is_one_line(words, expected):
    with pytest.raises(UserError, match=expected) as caught:
        replaced(*words, ROWS)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_sweep_has_the_word_as_its_axis_in_names_page_and_index(tmp_path):
    path = tmp_path / "sweep"
    assert make("seed=0,1", ROWS, "prompts.replace=[[cat,dog]]", f"output={path}").status == 0
    sweep = read_sweep(path)
    assert sweep.axes == {"seed": ("0", "1"), "prompts.replace": ("cat", "dog")}
    assert [run.name for run in sweep.runs] == [
        "000_seed=0_replace=cat", "001_seed=0_replace=dog", "002_seed=1_replace=cat", "003_seed=1_replace=dog"
    ]  # fmt: skip
    lines = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    assert {line["prompt"] for line in lines if "replace=dog" in line["run"]} == {
        "a dog in the snow", "an owl", "dog and dog"
    }  # fmt: skip
    page = (path / "index.html").read_text()
    assert '{"key":"prompts.replace","values":["cat","dog"]' in page
    assert "a {cat | dog} in the snow" in page


@pytest.mark.slow
def test_a_sweep_over_a_word_continues_grows_and_reproduces(tmp_path):
    path = tmp_path / "sweep"
    make(ROWS, "prompts.replace=[[cat,dog]]", f"output={path}")
    (path / "001_replace=dog" / "images" / "00000-000.png").unlink()
    done = go_on(path)
    assert done.status == 0 and sum(map(len, done.loads.batches)) == 1
    done = go_on(path, "prompts.replace=[[cat,dog,fox]]")
    assert done.status == 0 and sum(map(len, done.loads.batches)) == 3
    assert read_sweep(path).axes == {"prompts.replace": ("cat", "dog", "fox")}
    run = path / "001_replace=dog"
    saved = read_saved(run)
    assert saved.prompts.replace is None and saved.prompts.rows[2] == Row(prompt="dog and dog", seed=3)
    again = tmp_path / "again"
    assert reproduce(run, [f"output={again}"], prepare=prepare, load=lambda *_: StandInPipeline())
    assert [line["prompt"] for line in manifest(again)] == ["a dog in the snow", "an owl", "dog and dog"]


@pytest.mark.slow
def test_a_sweep_grows_by_an_axis_of_words(tmp_path):
    """The runs that are there are those whose word is the first one: they have other words on their command line."""
    path = tmp_path / "sweep"
    make(ROWS, "seed=0,1", f"output={path}")
    done = go_on(path, "prompts.replace=[[cat,dog]]")
    assert done.status == 0 and sum(map(len, done.loads.batches)) == 6  # of the two runs with a dog
    assert read_sweep(path).axes == {"seed": ("0", "1"), "prompts.replace": ("cat", "dog")}
    assert len(read_sweep(path).runs) == 4


def test_axes_of_several_lists_have_numbers_and_of_several_words_their_words():
    two = [(("cat", "cat"), ("snow", "rain")), (("cat", "dog"), ("snow", "rain"))]
    assert axis_values(two) == [
        {"prompts.replace_1": "cat", "prompts.replace_2": "rain"},
        {"prompts.replace_1": "dog", "prompts.replace_2": "rain"},
    ]
    assert axis_values([(("cat", "x"),), (("owl", "x"),)]) == [
        {"prompts.replace": "cat: x"},
        {"prompts.replace": "owl: x"},
    ]
    assert axis_values([(), ()]) == [{}, {}]


@pytest.mark.slow
def test_a_run_says_what_it_replaced_in_its_hydra_files(tmp_path):
    path = tmp_path / "sweep"
    make(ROWS, "prompts.replace=[[cat,dog]]", f"output={path}")
    assert "prompts.replace=[[cat, dog]]" in (path / "001_replace=dog" / ".hydra" / "overrides.yaml").read_text()
    assert config(ROWS, "prompts.replace=[[cat,dog]]").prompts.replace == (("cat", "dog"),)
