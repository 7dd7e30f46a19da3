"""Foreign text in what a command says: it cannot steer a terminal."""

import io
import json
import os
import sys

import pytest
from PIL import Image, PngImagePlugin
from support.runs import INLINE, StandInPipeline, config, prepare

from tpusd import cli
from tpusd.process.report import report, say
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.slow

NASTY = "a\x1b[2J\x1b]0;owned\x07\u202eb\u0085c\x7f"


def assert_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A run and a sweep in a directory of such a name."""
    path = tmp_path / NASTY
    path.mkdir()
    start_run(config(f"output={tmp_path / 'run'}", INLINE), prepare=prepare, load=lambda *_: StandInPipeline())
    os.rename(tmp_path / "run", path / "run")
    return path


@pytest.mark.parametrize(
    "argv",
    [
        ["validate", "DIR/run"],
        ["validate", "DIR"],
        ["results", "DIR/run"],
        ["results", "DIR/none"],
        ["export", "DIR/run", "DIR/out", "--format=geneval"],
        ["export", "DIR/run", "DIR/run", "--format=geneval"],
        ["recipe", "DIR/run/images/00000-000.png"],
        ["recipe", "DIR/none.png"],
        ["reproduce", "DIR/none"],
        ["run", "resume=DIR/run"],
        ["run", "resume=DIR/none"],
        ["run", "prompts=file", "prompts.path=DIR/none.txt"],
        ["run", "model=local", "model.path=DIR/none"],
        ["run", "DIR"],
        ["run", "--config-dir=DIR/none"],
    ],
    ids=" ".join,
)
def test_a_directorys_name_is_shown_harmless(directory, argv, capsys):
    capsys.readouterr()
    cli.main([word.replace("DIR", str(directory)) for word in argv])
    out, err = capsys.readouterr()
    assert out + err
    assert_harmless(out)
    assert_harmless(err)


def test_the_log_of_a_run_is_harmless(directory, capsys):
    (directory / "run" / "images" / "00001-000.png").unlink()
    resume_run(directory / "run", prepare=prepare, load=lambda *_: StandInPipeline())
    assert_harmless((directory / "run" / "run.log").read_text())
    out, err = capsys.readouterr()
    assert_harmless(out)
    assert_harmless(err)


def test_say_and_report_show_every_control_character_as_an_escape(capsys):
    every = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x202E, 0x2066, 0x2028, 0xFEFF, 0xDC80]))
    say(every)
    report(every)
    out, err = capsys.readouterr()
    assert_harmless(out)
    assert_harmless(err)
    assert "\\x1b" in out and "\\x1b" in err


def test_a_result_is_shown_on_a_terminal_of_any_encoding(monkeypatch):
    for encoding, shown in (("ascii", "F\\xfc\\xdfe \\u72d0\n"), ("latin-1", "Füße \\u72d0\n"), ("utf-8", "Füße 狐\n")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
        say("Füße 狐")
        assert raw.getvalue().decode(encoding) == shown


def argv_of(directory, text):
    """Command lines with `text` in every kind of place."""
    run, out = str(directory / "run"), f"output={directory / 'never'}"
    return [
        ["run", f"seed={text}", out],
        ["run", f"sampler={text}", out],
        ["run", f"{text}=1", out],
        ["run", text],
        ["run", f"--{text}"],
        ["run", f"prompt={text} and a", "on_truncate=error", "sampler=none", out],
        ["run", "prompt=x", f"prompts.path={text}", out],
        ["run", "prompt=x", f"model.path={text}", "model=local", out],
        ["run", "prompt=x", f"loggers=[{text}]", out],
        ["run", "prompt=x", f"output={directory / 'run'}/images/00000-000.png/{text}"],
        ["run", f"prompt={text} " + "word " * 90, "on_truncate=error", out],
        ["run", f"prompt={text} " + "word " * 90, "dry_run=true", out],
        ["run", "-m", f"prompts.path={text},b", "prompts=file", "dry_run=true", out],
        ["run", f"resume={text}"],
        ["run", f"resume={run}", f"seed={text}"],
        ["run", f"resume={run}", f"prompts.rows=[{{prompt: '{text}'}}]"],
        ["run", f"--config-dir={text}", "prompt=x"],
        ["run", f"experiment={text}"],
        ["reproduce", run, f"--images={text}"],
        ["reproduce", run, f"seed={text}"],
        ["reproduce", run, "--sample", text],
        ["validate", text],
        ["results", run, "--grid-columns", text],
        ["results", run, f"--grid-at={text}"],
        ["results", run, f"--grid-prompts={text}"],
        ["results", text],
        ["export", run, text, f"--format={text}"],
        ["export", text, "out", "--format=geneval"],
        ["export", run, str(directory / "out"), "--format=geneval", f"--shard-size={text}"],
        ["recipe", text],
        ["preflight", f"topology={text}", "prompt=x"],
        [text],
        [f"{text}=1"],
    ]


TEXTS = {
    "escapes": NASTY,
    "lines": "a\nb\r\vc\x85d\u2028e",
    "not UTF-8": "a\udc80b",
    "bidi": "a\u202e\u2066b",
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_value_on_the_command_line_is_shown_harmless(directory, text, capsys):
    capsys.readouterr()
    for argv in argv_of(directory, text):
        assert cli.main(argv) in (0, 1, 2)
        out, err = capsys.readouterr()
        assert out + err, argv
        assert_harmless(out)
        assert_harmless(err)


def change(file, old, new):
    file.write_text(file.read_text().replace(old, new, 1))


# What a stranger's run directory may hold. The escape is JSON's and YAML's.
HOSTILE_PARTS = {
    "a prompt of the manifest": lambda run: change(run / "manifest.jsonl", "a red fox", r"\u001b[2J\u202e"),
    "a file name of the manifest": lambda run: change(run / "manifest.jsonl", "00000-000", r"\u001b[2J\u202e"),
    "an environment": lambda run: change(
        run / "manifest.jsonl", '"environment": "', r'"environment": "\u001b[2J\u202e'
    ),
    "a state": lambda run: change(run / "run.json", "finished", r"\u001b[2J\u202e"),
    "a prompt of the config": lambda run: change(run / "config.yaml", "a red fox", r'"\e[2J\u202e"'),
    "a model of the config": lambda run: change(run / "config.yaml", "name: ddim", r'name: "\e[2J\u202e"'),
    "a field of the config": lambda run: change(run / "config.yaml", "seed:", '"\\e[2J\\u202e": 1\nseed:'),
    "the name of a file": lambda run: (run / "images" / NASTY).touch(),
    "the name of a temporary file": lambda run: (run / f"{NASTY}.tmp").touch(),
    "a file that is no picture": lambda run: (run / "images" / "00000-000.png").write_bytes(NASTY.encode()),
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", HOSTILE_PARTS)
def test_a_hostile_run_directory_is_shown_harmless(directory, part, capsys):
    run = directory / "run"
    HOSTILE_PARTS[part](run)
    capsys.readouterr()
    for argv in (
        ["validate", str(run)],
        ["run", f"resume={run}", "dry_run=true"],
        ["run", f"resume={run}", "num_images_per_prompt=2", "model.path=none"],
        ["reproduce", str(run), "dry_run=true"],
        ["reproduce", str(run), "--images=00000-000", "model.path=none"],
        ["export", str(run), str(directory / "out"), "--format=geneval"],
        ["recipe", str(run / "images" / "00000-000.png")],
        ["results", str(run)],
    ):
        cli.main(argv)
        out, err = capsys.readouterr()
        assert out + err, argv
        assert_harmless(out)
        assert_harmless(err)
    assert_harmless((run / "run.log").read_text())


@pytest.mark.parametrize("form", ["text", "command", "json", "yaml"])
@pytest.mark.parametrize("key", ["parameters", "tpusd", "prompt", "workflow"])
def test_the_texts_of_a_picture_are_shown_harmless(tmp_path, form, key, capsys):
    texts = PngImagePlugin.PngInfo()
    recipes = {
        "parameters": f"{NASTY}\nNegative prompt: {NASTY}\nSteps: 20, Sampler: {NASTY}, CFG scale: 7, X: {NASTY}",
        "tpusd": json.dumps({"prompt": NASTY, "seed": 1, NASTY: NASTY}),
        "prompt": json.dumps({"1": {"class_type": NASTY, "inputs": {NASTY: NASTY}}}),
        "workflow": NASTY,
    }
    texts.add_itxt(key, recipes[key])
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=texts)
    cli.main(["recipe", str(tmp_path / "a.png"), f"--format={form}"])
    out, err = capsys.readouterr()
    assert out + err
    assert_harmless(out)
    assert_harmless(err)


@pytest.mark.parametrize("content", ["{0},seed\na,{0}\n", "prompt,{0}\nb,c\n", "prompt\n{0}{0}" + "word " * 90])
def test_a_prompt_file_is_shown_harmless(tmp_path, content, capsys):
    file = tmp_path / "rows.csv"
    file.write_text(content.format("\x1b[2J\u202e"))
    cli.main(
        [
            "run",
            "prompts=file",
            f"prompts.path={file}",
            "on_truncate=error",
            f"output={tmp_path / 'run'}",
            "dry_run=true",
        ]
    )
    out, err = capsys.readouterr()
    assert out + err
    assert_harmless(out)
    assert_harmless(err)
