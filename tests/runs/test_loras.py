"""A run with LoRAs: what its config, manifest, run.json and pictures say, and which files it continues with."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from support.checkpoints import tiny
from support.loras import random, write
from support.runs import StandInPipeline, config, manifest, saved

from tpusd.checkpoints import ModelSource, open_checkpoint
from tpusd.checkpoints.adapters import find_lora
from tpusd.config.adapters import LoraConfig
from tpusd.config.compose import compose_jobs
from tpusd.config.schema import config_values, make_config
from tpusd.config.words import with_whole_paths
from tpusd.errors import ChangedFile, UserError
from tpusd.plan.batches import pack
from tpusd.plan.specs import make_specs
from tpusd.recipe import main as recipe
from tpusd.recipes.command import config_overrides
from tpusd.recipes.readers import read_recipe
from tpusd.records.saved import override, read_config, read_saved, refuse_other_run
from tpusd.records.validate import faults
from tpusd.runs.loras import describe_loras, lora_to_save, open_loras
from tpusd.runs.prepare import prepare_run
from tpusd.runs.resume import extended_config, resume_run
from tpusd.runs.start import start_run

LAYER = "unet.mid_block.attentions.0.proj_in"


class Pipeline(StandInPipeline):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.loras = []

    def generate(self, specs, tables, *, loras=(), on_step=None):
        self.loras.append([(lora.lora.file.path.name, lora.scale, lora.text_encoder_scale) for lora in loras])
        return super().generate(specs, tables, on_step=on_step)


def lora_file(path, seed=0):
    up, down = random(32, 2, 1, 1, seed=seed), random(2, 32, 1, 1, seed=seed)
    return write(path, {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down})


def words(*more):
    return ["model=local", f"model.path={tiny()}", "prompt=a fox", "sampler.num_inference_steps=2", *more]


@pytest.fixture
def made(tmp_path):
    """A run with two LoRAs: (its directory, the first file, what the pipeline was given)."""
    first, second = lora_file(tmp_path / "a.safetensors"), lora_file(tmp_path / "b.safetensors", seed=1)
    loras = f"loras=[{{path: {first}, scale: 0.5}}, {{path: {second}, text_encoder_scale: 0}}]"
    pipeline = Pipeline()
    path = start_run(config(*words(loras, f"output={tmp_path / 'run'}")), load=lambda *a, **k: pipeline)
    return path, first, pipeline.loras


@pytest.mark.slow
def test_a_run_says_which_loras_it_has_and_how_strong_they_are(made):
    path, first, given = made
    assert given == [[("a.safetensors", 0.5, 0.5), ("b.safetensors", 1.0, 0.0)]]
    saved = read_config(path)["loras"]
    assert [lora["path"] for lora in saved] == [str(first), str(first.with_name("b.safetensors"))]
    (line,) = manifest(path)
    assert [lora["sha256"] for lora in line["loras"]] == [lora["sha256"] for lora in saved]
    assert [(lora["scale"], lora["text_encoder_scale"]) for lora in line["loras"]] == [(0.5, 0.5), (1.0, 0.0)]
    facts = json.loads((path / "run.json").read_bytes())
    assert [lora["sha256"] for lora in facts["loras"]] == [lora["sha256"] for lora in saved]
    (environment,) = facts["environments"].values()
    assert environment["loras"] == [lora["sha256"] for lora in saved]
    assert not list(faults(path))


@pytest.mark.slow
def test_the_command_of_a_picture_has_its_loras(made, capsys):
    path, first, _ = made
    picture = path / manifest(path)[0]["file_name"]
    assert recipe([str(picture)]) == 0
    sha256 = hashlib.sha256(first.read_bytes()).hexdigest()
    said = capsys.readouterr().out.replace('"', "")
    assert f"loras=[{{path: {first}, scale: 0.5, sha256: {sha256}}}, {{path:" in said


@pytest.mark.slow
def test_the_command_of_a_picture_makes_no_other_picture_with_a_changed_lora(made):
    path, first, _ = made
    again = config(*read_recipe(path / manifest(path)[0]["file_name"]).overrides)
    assert again.loras == read_saved(path).loras
    lora_file(first, seed=5)
    with pytest.raises(ChangedFile, match=r"a.safetensors: has changed: sha256 "):
        prepare_run(again)


@pytest.mark.parametrize("source", ["asset: old_photograph", f"repo: a/b, file: c.safetensors, revision: {'d' * 40}"])
def test_the_command_of_a_picture_names_a_packaged_lora_or_a_commit_alone(source):
    made = config("model=tiny", f"loras=[{{{source}, scale: 0.5, sha256: {'0' * 64}}}]")
    (line,) = (line for line in config_overrides(made) if line.startswith("loras="))
    assert "scale: 0.5" in line and "sha256" not in line


@pytest.mark.slow
def test_a_run_without_loras_says_nothing_of_them(tmp_path):
    path = start_run(config(*words(f"output={tmp_path / 'run'}")), load=lambda *a, **k: Pipeline())
    assert "loras" not in read_config(path) and "loras" not in manifest(path)[0]
    assert "loras" not in (path / "run.json").read_text()
    assert "lora" not in (path / manifest(path)[0]["file_name"]).read_bytes().decode("latin-1")


@pytest.mark.slow
def test_a_changed_file_is_refused_and_another_scale_too(made):
    path, first, _ = made
    for given, said in (
        ("loras.0.scale=0.9", r"^loras.0.scale=0.9: the run was made with 0.5, and .*start a new run"),
        ("loras.1.text_encoder_scale=null", r"^loras.1.text_encoder_scale=null: the run was made with 0.0,"),
        ("loras=[]", rf"^loras=\[\]: the run was made with \[{{path: .{str(first)[:30]}"),
    ):
        with pytest.raises(UserError, match=said):
            resume_run(path, [given, "num_images_per_prompt=2"], load=lambda *a, **k: Pipeline())
    lora_file(first, seed=5)
    with pytest.raises(UserError, match=r"a.safetensors: has changed: sha256 .*on_changed_weights=warn"):
        resume_run(path, ["num_images_per_prompt=2"], load=lambda *a, **k: Pipeline())


@pytest.mark.slow
def test_a_run_without_loras_cannot_get_one(tmp_path):
    path = start_run(config(*words(f"output={tmp_path / 'run'}")), load=lambda *a, **k: Pipeline())
    file = lora_file(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"^loras=\[{path: .*the run was made with \[\],"):
        resume_run(path, [f"loras=[{{path: {file}}}]", "num_images_per_prompt=2"], load=lambda *a, **k: Pipeline())


@pytest.mark.slow
def test_a_file_that_has_moved_is_given_by_its_new_path(made, tmp_path):
    path, first, _ = made
    moved = shutil.move(first, tmp_path / "moved.safetensors")
    changed = override(read_saved(path), [f"loras.0.path={moved}"])
    assert [lora.path for lora in changed.loras] == [str(moved), str(first.with_name("b.safetensors"))]
    assert [lora.sha256 for lora in changed.loras] == [lora.sha256 for lora in read_saved(path).loras]
    assert changed.loras[0].scale == 0.5


@pytest.mark.slow
def test_saved_configs_that_differ_in_a_lora_are_told_apart_by_its_field(tmp_path):
    one, two = (saved("prompt=a", f"loras=[{{path: /a, scale: {scale}}}]") for scale in (0.7, 0.8))
    more = saved("prompt=a", "loras=[{path: /a, scale: 0.7}, {path: /b}]")
    with pytest.raises(UserError, match=r"^loras.0.scale=0.8: .* has 0.7; choose"):
        refuse_other_run(tmp_path, one, two, advice="choose another")
    with pytest.raises(UserError, match=r"^loras.1.path=/b: .* has null; choose"):
        refuse_other_run(tmp_path, one, more, advice="choose another")
    with pytest.raises(UserError, match=r'^loras.1={path: "/b", scale: 1.0}: the run was made with null,'):
        extended_config(one, more)


@pytest.mark.slow
def test_images_of_other_scales_are_in_other_batches(made):
    saved = read_saved(made[0])
    other = override(saved, ["loras.1.scale=0.25"])
    config_of = {"one": saved, "two": dataclasses.replace(saved, loras=other.loras)}
    images = [(name, spec) for _ in range(2) for name, own in config_of.items() for spec in make_specs(own)]
    batches = [[name for name, _ in batch.entries] for batch in pack(images, 2, lambda run, spec: 2)]
    assert batches == [["one", "one"], ["two", "two"]]


@pytest.mark.slow
def test_a_sweep_over_a_scale_is_a_field_of_the_command_line(tmp_path):
    jobs = compose_jobs(["-m", *words("loras=[{path: x.safetensors}]", "loras.0.scale=0,0.5", "seed=1,2")])
    assert [make_config(job.values).loras[0].scale for job in jobs] == [0.0, 0.0, 0.5, 0.5]
    (word,) = with_whole_paths(["loras=[{path: x.safetensors, scale: 0.5}]"])
    assert word.startswith("loras=[{path: ") and "/x.safetensors, scale: 0.5}]" in word.replace('"', "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("loras=[{scale: 1}]", r"loras\[0\]: exactly one of asset, path and repo must be set"),
        ("loras=[{path: a, repo: b/c}]", "exactly one of asset, path and repo must be set"),
        ("loras=[{path: a, file: b}]", r"loras\[0\].file=b: is for files of the Hub"),
        ("loras=[{path: a, scale: 1000}]", r"loras\[0\].scale=1000: must be from -100 to 100; 1 is as it was trained"),
        ("loras=[{path: a, weight: 1}]", "no such field"),
        ("loras=[a.safetensors]", "must be a group of fields"),
        ("lora=a.safetensors", "a LoRA is one of a list"),
        ("loras.0.scale=1", r"loras.0: there is no such LoRA; add loras=\[{path: FILE.safetensors}\]"),
    ],
)
def test_a_wrong_field_is_one_line(given, said):
    with pytest.raises(UserError, match=said) as caught:
        make_config(compose_jobs(words(given))[0].values)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_packaged_lora_is_known_by_its_name():
    given = LoraConfig(asset="old_photograph", scale=0.5)
    (lora,) = open_loras([given], config("model=tiny").model, open_checkpoint(ModelSource(asset="tiny")))
    assert {difference.part for difference in lora.differences} == {"unet"} and not lora.notes
    saved = lora_to_save(given, lora.file)
    assert saved == dataclasses.replace(given, sha256=lora.file.sha256)
    (described,) = describe_loras([lora])
    assert described["asset"] == "old_photograph" and described["path"] is described["repo"] is None
    with pytest.raises(
        UserError, match=r"loras\[0\].asset=ink: the package holds no such LoRA; it holds old_photograph"
    ):
        find_lora(LoraConfig(asset="ink"), "loras[0]")


def test_a_config_with_loras_is_read_back():
    made = config(*words("loras=[{path: /a, scale: -0.5}, {repo: o/n, file: f, revision: main}]"))
    assert make_config(config_values(made)) == made
