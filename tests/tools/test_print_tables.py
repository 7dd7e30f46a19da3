"""The tables of the documents are those that the code prints."""

import pytest
from support.checkpoints import load_tool

from tpusd.config.schema import field_names
from tpusd.samplers.registry import samplers

tables = load_tool("print_tables")
OPTION_GROUPS = (
    "",
    "model",
    "model.vae",
    "precision.unet",
    "prompts",
    "cache",
    "executor",
    "safety",
    "score_weights.clip",
)


@pytest.mark.slow
def test_documents_hold_the_tables_that_the_code_prints(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_an_outdated_table_is_found_and_rewritten(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    before = "a\n<!-- table: samplers -->\nold\n<!-- end -->\nb <!-- table: sampler-names -->old<!-- end --> c\n"
    for file in (page, tmp_path / "README.md"):
        file.write_text(before)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.main(["--check"]) == 1 and page.read_text() == before
    assert "docs/page.md: out of date" in capsys.readouterr().out
    assert tables.main([]) == 0 and tables.main(["--check"]) == 0
    lines = page.read_text().split("\n")
    assert lines[:2] == ["a", "<!-- table: samplers -->"] and len(lines) == len(samplers()) + 7
    assert lines[-2].startswith("b <!-- table: sampler-names -->`ddim`, ") and lines[-2].endswith("<!-- end --> c")


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError):
        tables.printed("<!-- table: nothing -->\n<!-- end -->")


@pytest.mark.parametrize("name", list(samplers()))
def test_a_row_of_options_names_the_samplers_that_have_it(name):
    lines = tables.sampler_options_table().split("\n")[2:]
    named = set()
    for line in lines:
        option, _, _, who = (cell.strip() for cell in line.strip("|").split("|"))
        if who == "all" or (f"`{name}`" in who) != who.startswith("all except"):
            named.add(option.strip("`"))
    assert named == {"num_inference_steps", *samplers()[name].defaults}


def test_every_field_that_a_command_line_can_set_is_in_a_table():
    printed = "".join(map(tables.run_options_table, OPTION_GROUPS))
    groups = {"model", "model.vae", "model.unet", "precision", "sampler", "prompts", "cache", "executor", "safety"}
    names = [
        name
        for name in field_names()
        if name not in groups
        and (not name.startswith("score_weights") or name.startswith("score_weights.clip."))  # the others are as clip
        and not name.startswith(("sampler.", "precision.text_encoder", "precision.vae", "model.unet."))  # as others
        and name not in ("precision.name", "precision.unet")
    ]
    assert [name for name in names if f"| `{name}` |" not in printed] == []
