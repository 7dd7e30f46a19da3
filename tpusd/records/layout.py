"""What the files of a run directory are called, and how large they may be."""

from pathlib import Path

CONFIG, RUN, MANIFEST, LOG, IMAGES, HYDRA = "config.yaml", "run.json", "manifest.jsonl", "run.log", "images", ".hydra"
CONTACT_SHEET = "contact_sheet.png"
DEFAULT_PARENT = Path("runs")
ELSEWHERE = "choose another directory with output=DIR"
MEND = "make room or mend its permissions"
MAX_LINE_BYTES = 64 << 20  # of a manifest; two prompts and what a prompt file adds to them
MAX_CONFIG_BYTES = 1 << 30  # as a prompt file may have
MAX_RUN_BYTES = 64 << 20
PAGE, METADATA, THUMBNAILS = "index.html", "metadata.jsonl", ".thumbs"
