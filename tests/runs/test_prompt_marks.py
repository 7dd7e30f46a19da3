"""Marks in prompts that a run reads before it starts: wildcards, LoRAs, and texts that change by the step."""

import json

import pytest
from support.checkpoints import tiny
from support.loras import random, write
from support.runs import StandInPipeline, config, manifest

from tpusd.errors import UserError
from tpusd.plan.batches import pack
from tpusd.recipes.readers import read_recipe
from tpusd.records.saved import read_config, read_saved
from tpusd.records.validate import faults
from tpusd.runs.prepare import prepare_run
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

LAYER = "unet.mid_block.attentions.0.proj_in"


class Pipeline(StandInPipeline):
    """Keeps the LoRAs that it was given."""

    def __init__(self):
        super().__init__()
        self.loras = []

    def generate(self, specs, tables, *, loras=(), **options):
        given = [(lora.lora.file.path.stem, lora.scale, lora.text_encoder_scale) for lora in loras]
        self.loras.append(([spec.name for spec in specs], given))
        return super().generate(specs, tables, **options)


def lora_file(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    up, down = random(32, 2, 1, 1, seed=seed), random(2, 32, 1, 1, seed=seed)
    return write(path, {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down})


def words(*more):
    return ["model=local", f"model.path={tiny()}", "sampler=ddim", "sampler.num_inference_steps=4", *more]


def rows(*texts):
    return "prompts.rows=[" + ", ".join(f'{{prompt: "{text}"}}' for text in texts) + "]"


@pytest.fixture
def files(tmp_path):
    lora_file(tmp_path / "loras/ink.safetensors")
    lora_file(tmp_path / "loras/styles/oil.safetensors", seed=1)
    return tmp_path / "loras"


@pytest.mark.slow
def test_a_prompt_names_the_loras_of_its_own_images(files, tmp_path):
    pipeline = Pipeline()
    texts = ("a fox <lora:ink:0.5>", "an owl", "<lora:oil:0.2:0.8> a cat <lora:ink:0.5>", "a dog<lora:ink:0.5>")
    given = [f"prompts.lora_dir={files}", "prompts.syntax=a1111", f"output={tmp_path / 'run'}"]
    path = start_run(config(*words(rows(*texts), *given)), load=lambda *a, **k: pipeline)
    ink, oil = ("ink", 0.5, 0.5), ("oil", 0.8, 0.2)
    made = {name: loras for names, loras in pipeline.loras for name in names}
    assert [made[f"0000{row}-000"] for row in range(4)] == [[ink], [], [oil, ink], [ink]]
    lines = {line["row"]: line for line in manifest(path)}
    assert lines[0]["prompt"] == "a fox " and lines[0]["prompt_template"] == texts[0]
    assert "prompt_template" not in lines[1] and "loras" not in lines[1]
    saved = read_config(path)["prompts"]
    assert "lora_dir" not in saved and saved["rows"][0]["loras"][0]["path"] == str(files / "ink.safetensors")
    assert [one["sha256"] for one in lines[2]["loras"]] == [one["sha256"] for one in saved["rows"][2]["loras"]]
    facts = json.loads((path / "run.json").read_bytes())
    assert [one["path"].rpartition("/")[2] for one in facts["loras"]] == ["ink.safetensors", "oil.safetensors"]
    assert not list(faults(path))
    again = config(*read_recipe(path / lines[2]["file_name"]).overrides)
    assert [(one.path, one.scale) for one in again.loras] == [
        (str(files / "styles/oil.safetensors"), 0.8),
        (str(files / "ink.safetensors"), 0.5),
    ]
    assert again.prompts.rows[0].prompt == " a cat " and again.prompts.rows[0].prompt_template == texts[2]


@pytest.mark.slow
def test_loras_of_the_run_come_before_those_of_a_prompt(files, tmp_path):
    other = lora_file(tmp_path / "all.safetensors", seed=2)
    given = [f"loras=[{{path: {other}}}]", f"prompts.lora_dir={files}", "prompts.syntax=a1111"]
    prepared = prepare_run(config(*words(rows("a <lora:styles/oil:1>"), *given)))
    assert [lora.file.path.stem for lora in prepared.loras] == ["all", "oil"]


@pytest.mark.slow
def test_a_run_with_loras_in_its_prompts_continues(files, tmp_path):
    given = [f"prompts.lora_dir={files}", "prompts.syntax=a1111"]
    text = "a fox <lora:ink:0.5>"
    path = start_run(config(*words(rows(text), *given, f"output={tmp_path / 'run'}")), load=lambda *a, **k: Pipeline())
    resume_run(path, ["num_images_per_prompt=2"], load=lambda *a, **k: Pipeline())
    more = [rows(text, "an owl <lora:oil:1>"), *given, "num_images_per_prompt=2"]
    resume_run(path, more, load=lambda *a, **k: Pipeline())
    assert len(manifest(path)) == 4 and not list(faults(path))
    lora_file(files / "ink.safetensors", seed=7)
    with pytest.raises(UserError, match=r"ink.safetensors: has changed: sha256"):
        resume_run(path, ["num_images_per_prompt=3"], load=lambda *a, **k: Pipeline())


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("a <lora:in:1>", (), r"^prompt of row 0: <lora:in:1>: .*has no in.safetensors; did you mean ink\?"),
        ("a <lora:ink:x>", (), "<lora:ink:x>: must have numbers after the name"),
        ("a <lora:ink:1:2:3>", (), "must be <lora:NAME:0.8>, or <lora:NAME:TEXT:UNET>"),
        ("a <lora:ink:1000>", (), "<lora:ink:1000>: .*must be from -100 to 100|<lora:ink:1000>=1000"),
        ("<lora:ink:1> ", (), "has no words beside its LoRAs"),
        ("a", ('negative_prompt="<lora:ink:1> b"',), "negative_prompt: <lora:ink:1> is not read in a prompt"),
        ("a", ("prompts.lora_dir=/nowhere",), "prompts.lora_dir=/nowhere: no such directory"),
        ("a", ("prompts.syntax=plain",), "prompts.lora_dir=.*: is for prompts.syntax=a1111; add it or remove lora_dir"),
    ],
)
def test_what_is_wrong_in_a_mark_is_one_line(files, text, more, said):
    given = words(rows(text), "prompts.syntax=a1111", f"prompts.lora_dir={files}")
    given = [word for word in given if word.split("=")[0] not in {one.split("=")[0] for one in more}]
    with pytest.raises(UserError, match=said) as caught:
        prepare_run(config(*given, *more))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_files_of_one_name_need_their_folder(files):
    lora_file(files / "old/ink.safetensors", seed=3)
    given = words("prompts.syntax=a1111", f"prompts.lora_dir={files}")
    with pytest.raises(UserError, match="has 2 files of this name; write the folder too"):
        prepare_run(config(*given, rows("a <lora:ink:1>")))
    (lora,) = prepare_run(config(*given, rows("a <lora:old/ink:1>"))).loras
    assert lora.file.path == files / "old/ink.safetensors"


def test_a_directory_of_wildcards_that_is_not_there_is_one_line(tmp_path):
    given = words(rows("a {red|blue} fox"), f"prompts.wildcards_dir={tmp_path / 'none'}")
    with pytest.raises(UserError, match=r"^prompts.wildcards_dir=.*none: is not a directory; correct the path$"):
        prepare_run(config(*given))


@pytest.mark.slow
def test_the_expansion_of_a_run_is_saved_and_stays(tmp_path):
    (tmp_path / "animal.txt").write_text("fox\nowl\ncat\n")
    given = words(rows("a {red|blue} __animal__", "a moose"), f"prompts.wildcards_dir={tmp_path}")
    path = start_run(config(*given, f"output={tmp_path / 'run'}"), load=lambda *a, **k: Pipeline())
    (tmp_path / "animal.txt").write_text("elk\n")
    saved = read_config(path)["prompts"]
    assert "wildcards_dir" not in saved
    resume_run(path, ["num_images_per_prompt=2"], load=lambda *a, **k: Pipeline())
    lines = manifest(path)
    prompts = {line["prompt"] for line in lines if line["row"] == 0}
    assert len(prompts) == 1 and prompts < {f"a {c} {a}" for c in ("red", "blue") for a in ("fox", "owl", "cat")}
    assert {line.get("prompt_template") for line in lines} == {"a {red|blue} __animal__", None}
    assert not list(faults(path))
    again = config(*read_recipe(path / lines[0]["file_name"]).overrides)
    assert again.prompts.rows[0].prompt_template == "a {red|blue} __animal__"
    assert again.prompts.rows[0].prompt in prompts


def test_texts_that_change_by_the_step_are_counted_by_their_longest(tmp_path):
    given = words("prompts.syntax=a1111", rows("a [bb:cccc:2]", "[a|bb]"))
    prepared = prepare_run(config(*given))
    assert prepared.tokens["a [bb:cccc:2]"] == (2 + 1 + 4, False)
    assert prepared.tokens["[a|bb]"] == (2 + 2, False)
    long = prepare_run(
        config(*words("prompts.syntax=a1111", rows("a [" + "b " * 80 + ":3]", "a [" + "b " * 80 + ":9]")))
    )
    one, two = (long.text_shape(spec) for spec in _specs(long))
    assert one.chunks == 2 and two.chunks == 1  # at step 9 of 4 the long text never comes


def _specs(prepared):
    from tpusd.plan.specs import make_specs

    return list(make_specs(prepared.config))


def test_a_prompt_that_changes_too_often_is_refused():
    text = "[" + "|".join(map(str, range(70))) + "]"
    with pytest.raises(UserError, match=r"^prompt of row 0: becomes more than 64 texts over the steps"):
        prepare_run(config(*words("prompts.syntax=a1111", rows(text), "sampler.num_inference_steps=70")))


@pytest.mark.slow
def test_rows_of_other_loras_are_in_other_batches(files, tmp_path):
    given = [f"prompts.lora_dir={files}", "prompts.syntax=a1111", f"output={tmp_path / 'run'}"]
    texts = ("a <lora:ink:1>", "b", "c <lora:ink:1>", "d")
    path = start_run(config(*words(rows(*texts), *given)), load=lambda *a, **k: Pipeline())
    images = [(None, spec) for spec in _specs(prepare_run(read_saved(path)))]
    batches = [[spec.row for _, spec in batch.entries] for batch in pack(images, 2, lambda run, spec: 4)]
    assert sorted(batches) == [[0, 2], [1, 3]]
