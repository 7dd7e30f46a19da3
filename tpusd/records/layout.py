"""What the files of a run directory are called, and how large they may be."""

from pathlib import Path

CONFIG, RUN, MANIFEST, LOG, IMAGES, HYDRA = "config.yaml", "run.json", "manifest.jsonl", "run.log", "images", ".hydra"
CONTACT_SHEET, PAGE, METADATA, THUMBNAILS = "contact_sheet.png", "index.html", "metadata.jsonl", ".thumbs"
SCORES = "scores"  # a file for each column of scores
DROPPED = "dropped.jsonl"  # images that a safety checker found, and that were not written
SHARDS, SHARDS_LOCK = "shards", "lock"  # what each shard writes for itself, and the lock for what they share
SWEEP, INDEX, GRID, SWEEP_LOG = "sweep.json", "index.jsonl", "grid.png", "sweep.log"  # of a sweep directory
PLOT = "plot.png"  # of a sweep whose images have scores
DEFAULT_PARENT = Path("runs")
MAX_LINE_BYTES = 64 << 20  # of a manifest: two prompts, and the further columns of a prompt file
MAX_LINE_VALUES = 200_000  # of a manifest: numbers and texts of the further columns
MAX_CONFIG_BYTES = 1 << 30  # as much as a prompt file may have
MAX_RUN_BYTES = 16 << 20  # a session takes 300 bytes, an environment 2 kB
MAX_SWEEP_BYTES = 64 << 20  # of sweep.json: 10,000 runs take 5 MB

# What a message advises where the disk refuses an operation.
CHOOSE_ANOTHER = "choose another directory with output=DIR"
MAKE_ROOM = "make room or mend its permissions"
CHECK_PERMISSIONS = "check the directory's permissions"
