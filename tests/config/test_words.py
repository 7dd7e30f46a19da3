"""Words that people try first: `prompt=TEXT`, and what is meant by words that are not fields."""

import pytest

from tpusd.api.words import command_words, swept_words
from tpusd.config.compose import compose_jobs, group_choices
from tpusd.config.schema import field_names
from tpusd.config.words import _CHOICES, _FIELDS, expanded
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
        (["batch_size=4"], "did you mean batch_size_per_device"),
        (["scheduler=ddim"], "did you mean sampler"),
        (["sampler=euler_a"], "did you mean sampler=euler_ancestral"),
        (["sampler=k_euler_a"], "did you mean sampler=euler_ancestral"),
        (["sampler=EulerAncestralDiscreteScheduler"], "did you mean sampler=euler_ancestral"),
        (["sampler=DPM++ 2M Karras"], "did you mean sampler=dpmpp_2m sampler.use_karras_sigmas=true"),
        (["precision=half"], "did you mean precision=fp16"),
        (["model=sd1.5"], "did you mean sd15"),
        (["--seed", "3"], "write seed=3"),
        (["--seed=3"], "write seed=3"),
        (["--num-inference-steps", "3"], "write sampler.num_inference_steps=3"),
        (["--prompt", "a cat"], "write prompt=a cat"),
        (["--resume", "DIR"], "write resume=DIR"),
        (["--fp16"], "write precision=fp16"),
        (["--no-such-thing"], "write fields as field=value"),
        (["negative_prompt=dark, blurry"], "write 'negative_prompt=\"dark, blurry\"'"),
    ],
)
def test_a_word_of_another_program_is_said_in_ours(words, line):
    with pytest.raises(UserError) as caught:
        compose_jobs(words)
    assert line in str(caught.value)


def test_files_and_directories_say_what_they_are_for(tmp_path):
    (tmp_path / "prompts.csv").touch()
    (tmp_path / "model.safetensors").touch()
    for name, file in (("run", "config.yaml"), ("sweep", "sweep.json"), ("checkpoint", "model_index.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    for name, line in (
        ("prompts.csv", "write prompts=file prompts.path="),
        ("model.safetensors", "write model=local model.path="),
        ("run", "write resume="),
        ("sweep", "write resume="),
        ("checkpoint", "write model=local model.path="),
    ):
        with pytest.raises(UserError) as caught:
            compose_jobs([str(tmp_path / name)])
        assert line in str(caught.value)


def test_the_quoted_form_that_a_message_gives_works():
    """The form is for a shell, which hands over what is inside the outer quotes."""
    import shlex

    for text in TEXTS:
        try:
            (job,) = compose_jobs([f"negative_prompt={text}"])
        except UserError as error:
            form = str(error).partition("if it is one text, write ")[2]
            if not form:
                continue
            (word,) = shlex.split(form)
            (job,) = compose_jobs([word])
            assert job.values["negative_prompt"] == text


def test_every_meaning_is_a_field_or_a_choice():
    known = {*field_names(), *group_choices(), "prompt", "height and width", "--config-dir"}
    for meant in _FIELDS.values():
        words = [word.partition("=") for word in meant.split() if word not in ("height", "and", "width")]
        assert meant in known or all(name in known for name, _, _ in words), meant
    for group, names in _CHOICES.items():
        for meant in names.values():
            assert compose_jobs(f"{group}={meant}".split())


def test_words_without_a_prompt_stay_as_they_are():
    words = ["seed=1", "prompts=portraits", "prompts.rows=[{prompt: a}]"]
    assert expanded(words) == words
