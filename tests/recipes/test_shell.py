"""A printed command survives the shell: bash runs it, and the words that Python gets make the config that was meant."""

import io
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from support.runs import config
from support.shell import arguments_of

from tpusd.config.grammar import hydra_value
from tpusd.config.rows import Row
from tpusd.recipe import main
from tpusd.recipes.command import fitting_row, shell_command
from tpusd.recipes.shell import MAX_WORD_BYTES, quoted

HARD = [
    "two\nlines\n",
    "ends in a backslash\\",
    "and a line end\\\n",
    "\\\\n is no newline, \\' and \\\" are no quotes\\\\",
    "it's 'quoted' \"twice\", `run` $(run) $HOME ${HOME} !! !x ~ * ? [a] {b,c} #d & ; | < > =",
    "tab\there, bell\x07, escape \x1b[2J, return\rback, delete\x7f, C1 \x85\x9b",
    "日本の狐 🦊 Füße \u202eturned round\u202c \u2066isolated\u2069 \u2028 line",
    "$'already\\'",
    "'",
    "-",
    " spaces ",
    "x\x011",
    "null",
    "0x1F",
    "1_000",
    "${x} and \\${x}",
]


def parsed(words):
    assert words[:2] == ["-m", "tpusd.run"], words
    return config(*words[2:])


def row_of(text):
    return f"prompts.rows={hydra_value([{'prompt': text, 'negative_prompt': text}])}"


@pytest.mark.slow
@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_hard_texts_survive_the_shell(text, ascii_only):
    command = shell_command([row_of(text), f"negative_prompt={hydra_value(text)}"], ascii_only=ascii_only)
    made = parsed(arguments_of(command))
    assert made.prompts.rows == (Row(prompt=text, negative_prompt=text),) and made.negative_prompt == text
    if ascii_only:
        assert command.isascii()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20), plain=st.booleans()
)
def test_any_words_survive_the_shell(text, plain):
    words = [text, "x" + text + "\\", text[::-1] + "'"]
    assert arguments_of(f"python {quoted(words, ascii_only=plain)}") == words


@pytest.mark.parametrize("text", HARD)
def test_nothing_in_a_command_steers_a_terminal(text):
    command = quoted([text])
    assert all(char == "\n" or char.isprintable() or char == "\u200d" for char in command)


@pytest.mark.parametrize(
    ("encoding", "locale"), [("ascii", "C"), ("latin-1", "C"), ("cp1252", "C"), ("utf-8", "C.UTF-8")]
)
@pytest.mark.parametrize("form", ["text", "command", "json", "yaml"])
def test_a_recipe_is_shown_on_a_terminal_of_any_encoding(tmp_path, monkeypatch, encoding, locale, form):
    prompt = "Füße, 日本の狐 🦊 \x1b[2J it's"
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", f"{prompt}\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 3, Size: 64x64")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    assert main([str(tmp_path / "a.png"), f"--format={form}"]) == 0
    shown = raw.getvalue().decode(encoding)
    assert "\x1b" not in shown
    if form == "yaml":
        assert "72D0" in shown.upper() or "狐" in shown
        return
    command = json.loads(shown)["command"] if form == "json" else shown.rstrip("\n").splitlines()[-1]
    made = parsed(arguments_of(command, encoding=encoding, locale=locale))
    assert made.prompts.rows == (Row(prompt=prompt),)


@pytest.mark.parametrize("letter", ["a", "狐", "🦊", '"', "\\"])
def test_a_text_longer_than_a_word_of_a_command_is_cut_and_said(letter):
    row, lines = fitting_row({"prompt": letter * 200_000, "negative_prompt": "dark"})
    assert len(f"prompts.rows={hydra_value([row])}".encode()) <= MAX_WORD_BYTES < 128 * 1024
    assert 20_000 < len(row["prompt"]) < 200_000 and row["negative_prompt"] == "dark"
    assert lines == [
        f"prompt: has 200000 characters, more than a command line holds; the first {len(row['prompt'])} are taken"
    ]


def test_a_text_with_nul_is_said_to_lose_it():
    row, lines = fitting_row({"prompt": "a\0b", "seed": 3})
    assert row == {"prompt": "ab", "seed": 3} and lines[0].startswith("prompt: holds NUL")
