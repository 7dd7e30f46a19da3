"""Small files of a checkpoint directory that a stranger may have made: of bounded size, inside the directory.

Knows nothing of what the files mean.
"""

import json
import re
import stat
from pathlib import Path
from typing import Any

from tpusd.errors import UserError

MAX_JSON_BYTES = 1 << 20  # configs are a few kB
_COMMIT = re.compile(r"[0-9a-f]{40}")


def shown(text: object, limit: int = 100) -> str:
    """Foreign text as it may stand in an error: one printable line, not long."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:limit])
    return line if len(str(text)) <= limit else line + "..."


class Directory:
    """A checkpoint directory whose files are reached by relative name only.

    A link may not lead out of the directory: a stranger's checkpoint could otherwise name any file of this machine. The
    one exception is the layout of the Hugging Face cache, `models--x/snapshots/COMMIT/file -> models--x/blobs/...`.
    """

    def __init__(self, root: str | Path):
        path = Path(root).expanduser()
        try:
            self.root = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links; ValueError: NUL in the name
            raise UserError(
                f"model.path={shown(root)}: no such directory; give the directory that holds model_index.json"
            ) from None
        if not self.root.is_dir():
            raise UserError(
                f"model.path={shown(root)}: not a directory; give the directory that holds model_index.json"
            )
        self.allowed = (self.root,)
        snapshots = self.root.parent
        if snapshots.name == "snapshots" and _COMMIT.fullmatch(self.root.name):
            self.allowed += (snapshots.parent / "blobs",)

    def path(self, name: str) -> Path | None:
        """The file `name` (such as unet/config.json), None if there is none. Raises UserError for what is no file."""
        try:
            real = (self.root / name).resolve(strict=True)
            mode = real.stat().st_mode
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.shown(name)}: cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        if not any(real.is_relative_to(root) for root in self.allowed):
            raise UserError(
                f"{self.shown(name)}: a link that leads out of the checkpoint directory; copy the file into it"
            )
        if not stat.S_ISREG(mode):
            raise UserError(f"{self.shown(name)}: not a regular file")
        return self.root / name

    def need(self, name: str, what: str) -> Path:
        """`path`, but a missing file is an error."""
        path = self.path(name)
        if path is None:
            raise UserError(f"{self.shown(name)}: missing; {what}")
        return path

    def names(self, part: str = "") -> list[str]:
        """Names of the files in one folder, without the folder; empty if there is no such folder."""
        folder = self.root / part
        try:
            if not folder.resolve(strict=True).is_relative_to(self.root):
                raise UserError(
                    f"{self.shown(part)}: a link that leads out of the checkpoint directory; copy the folder into it"
                )
            return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
        except (OSError, RuntimeError):
            return []

    def read(self, name: str, limit: int, what: str) -> bytes:
        """A whole file of at most `limit` bytes."""
        path = self.need(name, what)
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"{self.shown(name)}: cannot be read: {error.strerror}") from None
        if len(data) > limit:
            raise UserError(f"{self.shown(name)}: larger than {limit >> 20} MiB, which no such file is; get it again")
        return data

    def json(self, name: str, limit: int = MAX_JSON_BYTES, *, infinity: bool = False) -> dict[str, Any]:
        """A JSON object. infinity: Infinity and -Infinity pass, which JSON does not have and diffusers writes."""
        data = self.read(name, limit, "the directory is incomplete; get it again")
        try:
            values = json.loads(data, parse_constant=_infinity if infinity else _no_constant)
        except RecursionError:
            raise UserError(f"{self.shown(name)}: nested too deeply; get it again") from None
        except ValueError as error:
            raise UserError(f"{self.shown(name)}: not valid JSON ({shown(error)}); get it again") from None
        if not isinstance(values, dict):
            raise UserError(f"{self.shown(name)}: must hold a JSON object, not a {type(values).__name__}")
        return values

    def shown(self, name: str) -> str:
        """A file's name for an error."""
        return shown(self.root / name, 300)


def _infinity(name: str) -> float:
    return _no_constant(name) if name == "NaN" else float(name)


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")
