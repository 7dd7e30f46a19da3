"""A run with embeddings: what its config, manifest, run.json and pictures say, and which files it continues with."""

import hashlib
import json
import shutil

import pytest
from support.checkpoints import tiny
from support.embeddings import vectors, write
from support.runs import StandInPipeline, config, manifest

from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config
from tpusd.config.words import with_whole_paths
from tpusd.errors import ChangedFile, UserError
from tpusd.plan.batches import pack
from tpusd.plan.specs import make_specs
from tpusd.recipe import main as recipe
from tpusd.recipes.readers import read_recipe
from tpusd.records.saved import override, read_config, read_saved
from tpusd.records.validate import faults
from tpusd.runs.prepare import prepare_run
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run


class Pipeline(StandInPipeline):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.words = []

    def generate(self, specs, tables, *, tokenizers=None, **options):
        self.words.append([(one.token, len(one.vectors)) for one in tokenizers[0].embedded] if tokenizers else [])
        return super().generate(specs, tables, **options)


def embedding_file(path, number=2, seed=0):
    return write(path, {"emb_params": vectors(number, 32, seed)})


def words(*more):
    return ["model=local", f"model.path={tiny()}", "prompt=a ugly fox", "sampler.num_inference_steps=2", *more]


@pytest.fixture
def made(tmp_path):
    """A run with two embeddings: (its directory, the first file, what the pipeline was given)."""
    first = embedding_file(tmp_path / "ugly.safetensors")
    second = write(tmp_path / "b.safetensors", {"<toy>": vectors(1, 32, 1)})
    given = f"embeddings=[{{path: {first}}}, {{path: {second}}}]"
    pipeline = Pipeline()
    path = start_run(config(*words(given, f"output={tmp_path / 'run'}")), load=lambda *a, **k: pipeline)
    return path, first, pipeline.words


def test_a_run_says_which_embeddings_it_has(made):
    path, first, given = made
    assert given == [[("ugly", 2), ("<toy>", 1)]]
    saved = read_config(path)["embeddings"]
    assert [one["token"] for one in saved] == ["ugly", "<toy>"] and saved[0]["path"] == str(first)
    sha256 = [hashlib.sha256(first.with_name(name).read_bytes()).hexdigest() for name in (first.name, "b.safetensors")]
    assert [one["sha256"] for one in saved] == sha256
    (line,) = manifest(path)
    assert line["embeddings"] == [{"sha256": sha256[0], "token": "ugly"}, {"sha256": sha256[1], "token": "<toy>"}]
    assert (line["num_tokens"], line["truncated"]) == (2 + len("a") + 2 + len("fox"), False)  # a letter is a token
    facts = json.loads((path / "run.json").read_bytes())
    assert [(one["token"], one["num_vectors"], one["sha256"]) for one in facts["embeddings"]] == [
        ("ugly", 2, sha256[0]),
        ("<toy>", 1, sha256[1]),
    ]
    (environment,) = facts["environments"].values()
    assert environment["embeddings"] == sha256
    assert "embeddings[1]: <toy> is in no prompt of this run, so it has no effect" in (path / "run.log").read_text()
    assert not list(faults(path))


def test_a_run_without_embeddings_says_nothing_of_them(tmp_path):
    path = start_run(config(*words(f"output={tmp_path / 'run'}")), load=lambda *a, **k: Pipeline())
    assert "embeddings" not in read_config(path) and "embeddings" not in manifest(path)[0]
    assert '"embeddings"' not in (path / "run.json").read_text()
    assert "embedding_settings" not in (path / manifest(path)[0]["file_name"]).read_bytes().decode("latin-1")


def test_the_command_of_a_picture_has_its_embeddings_and_refuses_other_files(made, capsys):
    path, first, _ = made
    picture = path / manifest(path)[0]["file_name"]
    assert recipe([str(picture)]) == 0
    assert f"embeddings=[{{path: {first}, token: ugly, sha256:" in capsys.readouterr().out.replace('"', "")
    again = config(*read_recipe(picture).overrides)
    assert again.embeddings == read_saved(path).embeddings
    embedding_file(first, seed=5)
    with pytest.raises(ChangedFile, match=r"ugly.safetensors: has changed: sha256 .*leave out embeddings.0.sha256"):
        prepare_run(again)


@pytest.mark.slow
def test_a_run_does_not_continue_with_other_embeddings(made):
    path, first, _ = made
    for given, said in (
        ("embeddings.0.token=x", r"^embeddings.0.token=x: the run was made with ugly, and .*start a new run"),
        ("embeddings=[]", r"^embeddings=\[\]: the run was made with"),
    ):
        with pytest.raises(UserError, match=said):
            resume_run(path, [given, "num_images_per_prompt=2"], load=lambda *a, **k: Pipeline())
    embedding_file(first, seed=5)
    with pytest.raises(UserError, match=r"ugly.safetensors: has changed: sha256 .*on_changed_weights=warn"):
        resume_run(path, ["num_images_per_prompt=2"], load=lambda *a, **k: Pipeline())


def test_a_file_that_has_moved_is_given_by_its_new_path(made, tmp_path):
    path, first, _ = made
    moved = shutil.move(first, tmp_path / "moved.safetensors")
    changed = override(read_saved(path), [f"embeddings.0.path={moved}"])
    assert changed.embeddings[0].path == str(moved) and changed.embeddings[0].token == "ugly"
    assert changed.embeddings[1] == read_saved(path).embeddings[1]


def test_images_with_other_embeddings_are_in_other_batches(made):
    saved = read_saved(made[0])
    config_of = {"one": saved, "two": override(saved, ["embeddings.1.token=other"])}
    images = [(name, spec) for _ in range(2) for name, own in config_of.items() for spec in make_specs(own)]
    batches = [[name for name, _ in batch.entries] for batch in pack(images, 2, lambda run, spec: 2)]
    assert batches == [["one", "one"], ["two", "two"]]


@pytest.mark.slow
def test_a_sweep_over_files_is_a_field_of_the_command_line():
    given = ["embeddings=[{path: x.safetensors, token: ugly}]", "embeddings.0.path=a.safetensors,b.safetensors"]
    jobs = compose_jobs(["-m", *words(*given)])
    assert [make_config(job.values).embeddings[0].path for job in jobs] == ["a.safetensors", "b.safetensors"]
    word, swept = with_whole_paths(given)
    assert word.startswith("embeddings=[{path: ") and "/x.safetensors, token: ugly}]" in word.replace('"', "")
    assert swept.count("/") > 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("embeddings=[{token: a}]", r"embeddings\[0\]: exactly one of path and repo must be set; write embeddings="),
        ("embeddings=[{path: a, repo: b/c}]", "exactly one of path and repo must be set"),
        ("embeddings=[{path: a, file: b}]", r"embeddings\[0\].file=b: is for files of the Hub"),
        ("embeddings=[{path: a, token: ' b'}]", "must be a word or several, without spaces around it"),
        ("embeddings=[{path: a, token: ''}]", "must be a word or several"),
        (f"embeddings=[{{path: a, token: {'b' * 101}}}]", "has 101 characters; at most 100 are read"),
        ("embeddings=[{path: a, weight: 1}]", "no such field"),
        ("embeddings=[a.safetensors]", "must be a group of fields"),
        ("embedding=a.safetensors", "an embedding is one of a list"),
        (
            "embeddings.0.token=a",
            r"embeddings.0: there is no such embedding; add embeddings=\[{path: FILE.safetensors}\]",
        ),
    ],
)
def test_a_wrong_field_is_one_line(given, said):
    with pytest.raises(UserError, match=said) as caught:
        make_config(compose_jobs(words(given))[0].values)
    assert "\n" not in str(caught.value)


def test_two_embeddings_of_one_word_are_refused(tmp_path):
    first, second = (embedding_file(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    given = f"embeddings=[{{path: {first}, token: Toy}}, {{path: {second}, token: toy}}]"
    with pytest.raises(UserError, match=r"^embeddings\[1\].token=toy: embeddings\[0\] has this token too"):
        prepare_run(config(*words(given)))


def test_a_prompt_with_more_vectors_than_the_window_is_counted_whole(tmp_path):
    file = embedding_file(tmp_path / "ugly.safetensors", number=75)
    run = words(f"embeddings=[{{path: {file}}}]")
    prepared = prepare_run(config(*run))
    assert prepared.tokens["a ugly fox"] == (2 + 1 + 75 + 3, True)
    with pytest.raises(UserError, match="on_truncate=error: 1 of 1 rows have a text of more than the 77 tokens"):
        prepare_run(config(*run, "on_truncate=error"))
    whole = prepare_run(config(*run, "on_truncate=chunk"))
    assert whole.tokens["a ugly fox"] == (81, False) and whole.extents["a ugly fox"].chunks == 3
