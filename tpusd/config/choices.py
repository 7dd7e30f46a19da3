"""The choices of each config group: which files conf/ has. Reads names alone, no file."""

from pathlib import Path


def conf_directory() -> Path:
    """conf/ inside the installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def group_choices(config_dir: str | None = None) -> dict[str, list[str]]:
    """The choices of every group, by its name, from conf/ and the directory of --config-dir."""
    found: dict[str, set[str]] = {}
    for root in [conf_directory()] + ([] if config_dir is None else [Path(config_dir)]):
        for file in root.glob("*/**/*.yaml"):
            found.setdefault(file.parent.relative_to(root).as_posix(), set()).add(file.stem)
    return {group: sorted(names) for group, names in found.items()}
