"""The choices of each config group: which files conf/ has. Reads names alone, no file."""

import os
from collections.abc import Iterator
from pathlib import Path

from tpusd.errors import UserError, show_path

SUFFIXES = (".yaml", ".yml")  # of the files that Hydra reads
MAX_ENTRIES = 10_000  # files and folders


def conf_directory() -> Path:
    """conf/ inside the installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def group_choices(config_dir: str | None = None) -> dict[str, list[str]]:
    """The choices of every group, by its name, from conf/ and the directory of --config-dir."""
    found: dict[str, set[str]] = {}
    for root in [conf_directory()] + ([] if config_dir is None else [Path(config_dir)]):
        for file in config_files(root):
            if file.parent != root and file.suffix == ".yaml":
                found.setdefault(file.parent.relative_to(root).as_posix(), set()).add(file.stem)
    return {group: sorted(names) for group, names in found.items()}


def config_files(root: Path) -> list[Path]:
    """Every YAML file below a directory, by name. Links are followed. Raises UserError."""
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[Path]:
    entries, folders = 0, [root]
    while folders:  # a link that leads back ends too: the system follows forty of them
        folder = folders.pop()
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise UserError(f"--config-dir: {show_path(folder)}: cannot be read: {error.strerror}") from None
        entries += len(names)
        if entries > MAX_ENTRIES:
            raise UserError(
                f"--config-dir={show_path(root)}: holds over {MAX_ENTRIES} files and folders; name a directory that "
                "holds configs alone"
            )
        folders += [folder / name for name in names if (folder / name).is_dir()]
        yield from (folder / name for name in names if name.endswith(SUFFIXES) and not (folder / name).is_dir())
