"""Makes docs/images/, the pictures of the README and the documentation: `python tools/make_pictures.py`.

Runs the README's own commands in a temporary directory: the one of the quick start, whose contact sheet is
portraits.webp, the first one of its sweeps, whose page in Chromium is sweep.webp, and the one over a LoRA's scale,
whose grid is lora_scale.webp. Needs the extra `results`, and chromium on the path; takes some minutes on a CPU.
"""

import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "images"
MAX_BYTES = 200_000
VIEW = "#view=grid&x=guidance_scale&y=prompt&size=230"  # of the sweep's page
WINDOW = {"width": 940, "height": 926}  # three whole columns and rows


def main() -> int:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        run = make(readme, "python -m tpusd.run prompts=", Path(directory, "run"))
        sweep = make(readme, "python -m tpusd.run -m ", Path(directory, "sweep"))
        scales = make(readme, "python -m tpusd.run -m experiment=lora_scale", Path(directory, "scales"))
        with Image.open(run / "contact_sheet.png") as sheet:
            save(sheet, PICTURES / "portraits.webp")
        with Image.open(scales / "grid.png") as grid:
            save(grid, PICTURES / "lora_scale.webp")
        with Image.open(io.BytesIO(screenshot(sweep / "index.html"))) as page:
            save(page, PICTURES / "sweep.webp")
    return 0


def make(readme: str, beginning: str, directory: Path) -> Path:
    """The run directory that the README's first command of this beginning leaves."""
    line = next(line for line in readme.splitlines() if beginning in line)
    command = beginning + line.split(beginning, 1)[1].split(" #")[0].split(" && ")[0]
    directory.mkdir()
    words = [sys.executable, *shlex.split(command)[1:]]
    environment = {"PYTHONPATH": str(ROOT)}
    print(command, flush=True)
    subprocess.run(words, cwd=directory, check=True, env=os.environ | environment)
    (made,) = (directory / "runs").iterdir()
    return made


def screenshot(page: Path) -> bytes:
    """A PNG of the page as it opens: every image loaded, and nothing focused."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport=WINDOW, color_scheme="light")
        opened.goto(page.resolve().as_uri() + VIEW)
        opened.wait_for_function("() => [...document.images].every((one) => one.loading !== 'lazy' || one.complete)")
        assert opened.evaluate("document.activeElement === document.body")
        picture = opened.screenshot()
        browser.close()
    return picture


def save(picture: Image.Image, file: Path) -> None:
    picture.convert("RGB").save(file, "WEBP", quality=88, method=6)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}: {picture.width}x{picture.height}, {size} bytes")
    assert size < MAX_BYTES, f"{file}: {size} bytes"


if __name__ == "__main__":
    sys.exit(main())
