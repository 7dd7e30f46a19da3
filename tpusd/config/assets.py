"""What ships inside the package: its folder, and the files in it that users name."""

from importlib import resources
from pathlib import Path

from tpusd.errors import UserError

ASSETS = Path(str(resources.files("tpusd"))) / "assets"


def packaged(folder: str, name: str, where: str, kind: str) -> Path:
    """A file or a directory of a folder of ASSETS, by its name without the suffix. Raises UserError.

    where: what names it, as the error begins.
    kind: what it is, for the error.
    """
    found = {one.stem: one for one in sorted((ASSETS / folder).iterdir()) if not one.name.startswith(".")}
    if name not in found:
        raise UserError(f"{where}: the package holds no such {kind}; it holds {', '.join(found)}")
    return found[name]
