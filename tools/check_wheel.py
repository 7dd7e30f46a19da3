"""Checks that a wheel holds the package and nothing else.

    python -m build --wheel && python tools/check_wheel.py dist/*.whl

It must have all files of tpusd/ that git does not ignore (modules, the embedded model, published configs, py.typed),
and conf/ as tpusd/conf/. Prints each file that is missing or not expected, and then exits with status 1.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def expected_files() -> set[str]:
    """The names that the wheel must have, without those of its own metadata."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "tpusd", "conf"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {f"tpusd/{name}" if name.startswith("conf/") else name for name in names if (ROOT / name).exists()}


def main() -> int:
    (path,) = sys.argv[1:]
    with zipfile.ZipFile(path) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = expected_files()
    for name in sorted(expected - found):
        print(f"{path}: lacks {name}")
    for name in sorted(found - expected):
        print(f"{path}: must not hold {name}")
    if found == expected:
        print(f"{path}: {len(found)} files, as expected")
    return int(found != expected)


if __name__ == "__main__":
    sys.exit(main())
