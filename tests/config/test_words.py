"""Words that people try first: `prompt=TEXT`, and what is meant by words that are not fields."""

import shlex

import pytest

from tpusd import cli
from tpusd.api.words import command_words, swept_words
from tpusd.config.choices import group_choices
from tpusd.config.compose import compose_jobs
from tpusd.config.meanings import COMMANDS
from tpusd.config.schema import field_names, make_config
from tpusd.config.synonyms import ABSENT, CHOICES, COMMAND_FIELDS, FIELDS
from tpusd.config.typed import flatten
from tpusd.config.words import expanded, with_whole_paths
from tpusd.errors import UserError

pytestmark = pytest.mark.slow

TEXTS = [
    "a cat",
    "a cat, sitting on a mat",
    'he said: "no"',
    "it's a (very:1.3) [odd] cat",
    "{a|b} = c",
    "C:\\dir\\",
    "${HOME}",
    "null",
    "true",
    "7",
    "猫, eine Katze",
    "[a:b:0.5] and more",
    "-m",
]


def prompts(*words: str) -> list[str]:
    (job,) = compose_jobs(words)
    return [row["prompt"] for row in job.values["prompts"]["rows"]]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_taken_as_it_is(text):
    """As a shell hands it over: no quotes of Hydra's."""
    assert prompts(f"prompt={text}") == [text]
    assert prompts(*command_words([], {"prompt": text})) == [text]


def test_a_list_is_a_prompt_set():
    assert prompts('prompt=[a red fox,"an owl, at night"]') == ["a red fox", "an owl, at night"]
    assert prompts(*command_words([], {"prompt": TEXTS})) == TEXTS


def test_prompts_are_rows_of_every_run_of_a_sweep():
    jobs = compose_jobs(["-m", "prompt=a fox, an owl", "seed=0,1"])
    assert [job.values["seed"] for job in jobs] == [0, 1]
    assert all([row["prompt"] for row in job.values["prompts"]["rows"]] == ["a fox, an owl"] for job in jobs)
    jobs = compose_jobs(swept_words([], {"prompt": ["a", "b"], "seed": [0, 1]}))
    assert len(jobs) == 2 and all(len(job.values["prompts"]["rows"]) == 2 for job in jobs)


def test_quotes_around_a_whole_text_are_not_part_of_it():
    assert prompts('prompt="a cat"') == ["a cat"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["prompt="], "prompt=: is empty"),
        (["prompt=a", "prompt=b"], "prompt=b: prompt= is given twice"),
        (["prompt=a", "prompts=portraits"], "prompts=portraits: prompt= is a prompt set of its own"),
        (["prompt=a", "prompts.path=x"], "prompts.path=x: prompt= is a prompt set of its own"),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused(words, line):
    with pytest.raises(UserError, match=line):
        compose_jobs(words)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["steps=3"], "did you mean sampler.num_inference_steps"),
        (["sampler.steps=3"], "did you mean sampler.num_inference_steps"),
        (["cfg=7"], "did you mean guidance_scale"),
        (["sampler.cfg=7"], "did you mean guidance_scale"),
        (["batch_size=4"], "did you mean batch_size_per_device"),
        (["num_samples=4"], "did you mean num_images_per_prompt"),
        (["scheduler=ddim"], "did you mean sampler"),
        (["sampler.karras=true"], "did you mean sampler.use_karras_sigmas"),
        (["sampler=euler_a"], "did you mean sampler=euler_ancestral"),
        (["sampler=k_euler_a"], "did you mean sampler=euler_ancestral"),
        (["sampler=EulerAncestralDiscreteScheduler"], "did you mean sampler=euler_ancestral"),
        (["sampler=DPM++ 2M Karras"], "did you mean sampler=dpmpp_2m sampler.use_karras_sigmas=true"),
        (["sampler=UniPC"], "did you mean sampler=unipc"),
        (["sampler=DDIM"], "did you mean sampler=ddim"),
        (["sampler=eular"], "did you mean sampler=euler"),
        (["precision=half"], "did you mean precision=fp16"),
        (["model=sd1.5"], "did you mean model=sd15"),
        (["model=SDXL"], "did you mean model=sdxl"),
        (["SEED=3"], "did you mean seed"),
        (["half=true"], "did you mean precision=fp16"),
        (["--seed", "3"], "write seed=3"),
        (["--seed=3"], "write seed=3"),
        (["--SEED=3"], "write seed=3"),
        (["-s", "3"], "write seed=3"),
        (["-n", "3"], "write num_images_per_prompt=3"),
        (["--num-inference-steps", "3"], "write sampler.num_inference_steps=3"),
        (["-p", "a cat"], "write 'prompt=a cat'"),
        (["--prompt", "a cat"], "write 'prompt=a cat'"),
        (["--prompt=a cat, b"], "write 'prompt=a cat, b'"),
        (["--resume", "DIR"], "write resume=DIR"),
        (["--sampler", "euler_a"], "write sampler=euler_ancestral"),
        (["--precision", "half"], "write precision=fp16"),
        (["--dry-run"], "write dry_run=true"),
        (["--fp16"], "write precision=fp16"),
        (["--no-such-thing"], "write fields as field=value"),
        (["--lora", "x"], "a LoRA is one of a list: loras="),
        (["init_image=x.png"], "did you mean image"),
        (["controlnet=x"], "a ControlNet is one of a list: model.controlnets="),
        (["gpu=0"], "a run uses all devices"),
        (["model.name=sdxl"], "write model=sdxl"),
        (["sampler.name=euler"], "write sampler=euler"),
        (["seed"], "write seed=VALUE"),
        (["seed:3"], "write seed=3"),
        (["seed = 3"], "leave out the spaces"),
        (['"seed=3"'], "leave out the quotes"),
        (["dry_run"], "write dry_run=true"),
        (["resume"], "write resume=DIR"),
        (["prompt: a cat, b"], "write 'prompt=a cat, b'"),
        (["a red fox in the snow"], "write 'prompt=a red fox in the snow' for a prompt"),
        (["validate"], "python -m tpusd.validate"),
        (["help"], "write --help"),
        (["runs/nothing"], "there is no file or directory runs/nothing"),
        (["prompts=a red fox"], "write 'prompt=a red fox'"),
        (["prompts=my.csv"], "write prompts=file prompts.path=my.csv"),
        (["model=owner/some-xl-model"], "write model=sdxl model.repo=owner/some-xl-model model.revision=main"),
        (["model=CompVis/stable-diffusion-v1-4"], "write model=sd14"),
        (["model=~/ck"], "write model=local 'model.path=~/ck'"),
        (["model=./ck"], "write model=local model.path=./ck"),
        (["guidance_scale=7,5"], "if it is one number, write guidance_scale=7.5"),
    ],
)
def test_a_word_of_another_program_is_said_in_ours(words, line):
    with pytest.raises(UserError) as caught:
        compose_jobs(words)
    assert line in str(caught.value)


@pytest.mark.parametrize("flag", ["-s", "-p", "-r", "-q"])
def test_a_short_flag_is_not_the_beginning_of_one_of_hydras(flag):
    with pytest.raises(UserError, match=f"{flag}: no such option"):
        compose_jobs([flag, "seed=3"])


def test_completion_without_a_shell_is_one_line():
    with pytest.raises(UserError, match="-sc: write -sc install=bash"):
        compose_jobs(["-sc"])


def test_files_and_directories_say_what_they_are_for(tmp_path):
    (tmp_path / "prompts.csv").touch()
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "notes.md").touch()
    (tmp_path / "empty").mkdir()
    for name, file in (("run", "config.yaml"), ("sweep", "sweep.json"), ("checkpoint", "model_index.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    for name, line in (
        ("prompts.csv", "write prompts=file prompts.path="),
        ("model.safetensors", "write model=local model.path="),
        ("notes.md", "write prompts=file prompts.path="),
        ("run", "write resume="),
        ("sweep", "write resume="),
        ("empty", "to make one there"),
        ("checkpoint", "write model=local model.path="),
    ):
        with pytest.raises(UserError) as caught:
            compose_jobs([str(tmp_path / name)])
        assert line in str(caught.value)


NAMES = [
    "a b",
    "a,b",
    "[a]",
    "a=b",
    "it's",
    'say "x"',
    "é猫",
    "(a)",
    "{a}",
    "a#b%c",
    "!x;&",
    "2024",
    "null.x",
    "a:b",
    "~x/y",
]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("field", ["model.path", "prompts.path", "output", "negative_prompt"])
@pytest.mark.parametrize("name", NAMES)
def test_a_text_needs_no_quotes_beside_those_of_the_shell(field, name):
    text = f"/data/{name}" if field != "negative_prompt" else name
    (job,) = compose_jobs([f"{field}={text}"])
    assert dict(flatten(job.values))[field] == text


def test_a_text_in_a_sweep_has_commas_between_its_values():
    jobs = compose_jobs(["-m", "negative_prompt=dark,blurry"])
    assert [job.values["negative_prompt"] for job in jobs] == ["dark", "blurry"]
    (job,) = compose_jobs(["-m", "negative_prompt=dark (very)"])
    assert job.values["negative_prompt"] == "dark (very)"
    with pytest.raises(UserError, match="write 'negative_prompt="):
        compose_jobs(["-m", "negative_prompt=dark (very),b"])


@pytest.mark.parametrize("value", ["null", '"null"', "'a, b'", r"a\,b", "", "plain", "$HOME/x"])
def test_a_text_that_hydra_reads_means_what_it_meant(value):
    """Hydra's quotes and escapes keep their meaning."""
    (job,) = compose_jobs([f"negative_prompt={value}"])
    expected = {"null": None, '"null"': "null", "'a, b'": "a, b", r"a\,b": "a,b"}.get(value, value)
    assert job.values["negative_prompt"] == expected


def test_a_sweep_finds_its_files_from_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = ["-m", "prompts=file", "prompts.path=p.csv", "model.path=ck a,~/b", "seed=0,1", "output=o"]
    assert with_whole_paths(words) == [
        "-m",
        "prompts=file",
        f'prompts.path="{tmp_path}/p.csv"',
        f'model.path="{tmp_path}/ck a","{tmp_path}/home/b"',
        "seed=0,1",
        "output=o",
    ]
    assert with_whole_paths(["prompts.path=null"]) == ["prompts.path=null"]
    assert with_whole_paths(["mask=null,/m.png"]) == ['mask=null,"/m.png"']
    assert with_whole_paths(["image=asset:portrait"]) == ['image="asset:portrait"']
    assert with_whole_paths(["control_images=[asset:outline]"]) == ['control_images=["asset:outline"]']


def test_the_quoted_form_that_a_message_gives_works():
    """The form is for a shell, which hands over what is inside the outer quotes."""
    for text in ["a (b),c", "it's, x", 'say "x" (y), #z']:
        with pytest.raises(UserError) as caught:
            compose_jobs(["-m", f"negative_prompt={text}"])
        form = str(caught.value).partition("if it is one text, write ")[2]
        (word,) = shlex.split(form)
        (job,) = compose_jobs(["-m", word])
        assert job.values["negative_prompt"] == text


def test_the_flags_that_a_message_gives_work():
    """What is said in place of --prompt and --negative-prompt, typed into a shell."""
    for flag in ("--prompt", "--negative-prompt"):
        for text in TEXTS:
            if text in ("-m", "${HOME}"):  # a flag of its own; refused in every field but prompt=
                continue
            with pytest.raises(UserError) as caught:
                compose_jobs([f"{flag}={text}"])
            words = shlex.split(str(caught.value).partition("; write ")[2])
            (job,) = compose_jobs(words)
            field = job.values["prompts"]["rows"][0]["prompt"] if flag == "--prompt" else job.values["negative_prompt"]
            assert field in (text, None if text == "null" else text)


@pytest.mark.long
@pytest.mark.slow
def test_every_meaning_is_a_field_or_a_choice():
    known = {*field_names(), *group_choices(), "prompt", "resume", "height and width", "--config-dir"}
    for meant in [*FIELDS.values(), *COMMAND_FIELDS.values()]:
        words = [word.partition("=") for word in meant.split() if word not in ("height", "and", "width")]
        assert meant in known or all(name in known for name, _, _ in words), meant
    for group, names in CHOICES.items():
        for meant in names.values():
            assert compose_jobs(f"{group}={meant}".split())


def test_no_field_of_ours_is_said_to_be_absent_or_another():
    for name in [*field_names(), *group_choices()]:
        assert name not in ABSENT and FIELDS.get(name, name) in (name, f"sampler.{name}")


def test_commands_are_those_of_the_console_script():
    assert tuple(COMMANDS) == tuple(cli.COMMANDS)


def test_words_without_a_prompt_stay_as_they_are():
    words = ["seed=1", "prompts=portraits", "prompts.rows=[{prompt: a}]"]
    assert expanded(words) == words


@pytest.mark.parametrize("field", ["output", "model.path", "prompts.path", "prompts.wildcards_dir", "prompts.lora_dir"])
def test_an_address_is_no_path_of_this_machine(field):
    """As a path it would be a folder `s3:` in the working directory, on a disk that goes with its host."""
    more = ["model=local"] if field == "model.path" else ["prompts=file"] if field == "prompts.path" else []
    with pytest.raises(UserError, match="must be a path on this machine") as refused:
        (job,) = compose_jobs([*more, f"{field}=s3://bucket/thing"])
        make_config(job.values)
    assert str(refused.value).startswith(f"{field}=s3://bucket/thing: ")


def test_a_command_refuses_an_address_too(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["validate", "gs://b/run"], ["run", "resume=gs://b/run"], ["results", "gs://b/run"]):
        assert cli.main(words) == 2
        assert "gs://b/run: is an address" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
