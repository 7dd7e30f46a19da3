"""The documentation names files that exist, and CONTRIBUTING.md shows the layers that import-linter checks."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
HISTORY = ("docs/log.md", "docs/changelog.md")  # they name files as they were
FILE = re.compile(r"(?<![\w/])(?:benchmarks|conf|docs|tests|tools|tpusd|training)/[\w./{},=-]*[\w/]")


def files_named(text: str) -> set[str]:
    """Paths in `code` and in links. NAME and VERSION in capitals are the reader's to fill in."""
    spans = re.findall(r"`([^`\n]+)`|\]\(([^)#\s]+)", text)
    names = {match for code, link in spans for match in FILE.findall(code or link)}
    return {name for name in names if not re.search(r"NAME|VERSION|\{", name)}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_every_file_that_a_page_names_exists(page):
    missing = {name for name in files_named((ROOT / page).read_text()) if not (ROOT / name.split("::")[0]).exists()}
    assert not missing


def test_contributing_shows_the_layers_of_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    figure = (ROOT / "CONTRIBUTING.md").read_text().split("## The layers")[1].split("\n\n")[2]
    shown = [re.split(r"\s{4,}", line.strip())[0].split() for line in figure.splitlines()]
    assert shown == [layer.replace("|", " ").strip("()").split() for layer in layers]
