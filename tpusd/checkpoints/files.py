"""Small files of a checkpoint directory, which may come from anyone: their size is bounded, and none is outside it.

Knows nothing of what the files mean.
"""

import json
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from tpusd.errors import UserError, show, show_path

MAX_JSON_BYTES = 1 << 20  # configs are a few kB
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


class Directory:
    """A checkpoint directory. Its files have relative names. field: of the config, as an error names it.

    A link may not lead out of the directory, because a checkpoint could then name any file of this machine. The one
    exception is the layout of the Hugging Face cache: `models--x/snapshots/COMMIT/file -> models--x/blobs/ETAG`, and
    since huggingface_hub 2.4 from there to a store that all repositories share, `blobs/HH/HASH` beside `models--x`.
    """

    def __init__(self, root: str | Path, field: str = "model.path") -> None:
        path = Path(root).expanduser()
        advice = "give the directory that has model_index.json" if field == "model.path" else "correct the path"
        try:
            self.root = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links; ValueError: NUL in the name
            raise UserError(f"{field}={show_path(root)}: no such directory; {advice}") from None
        if not self.root.is_dir():
            raise UserError(f"{field}={show_path(root)}: is not a directory; {advice}")
        self._blobs: Path | None = None  # of the repository, in the Hugging Face cache
        snapshots = self.root.parent
        if snapshots.name == "snapshots" and _COMMIT.fullmatch(self.root.name):
            self._blobs = snapshots.parent / "blobs"

    def path(self, name: str) -> Path | None:
        """The file `name` (such as unet/config.json), None if it is missing. Raises UserError for a folder."""
        try:
            real = (self.root / name).resolve(strict=True)
            mode = real.stat().st_mode
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.shown(name)}: cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        if not self._holds(real):
            raise UserError(
                f"{self.shown(name)}: is a link that leads out of the checkpoint directory; copy the file into it"
            )
        if not stat.S_ISREG(mode):
            raise UserError(f"{self.shown(name)}: is not a plain file")
        return self.root / name

    def _holds(self, real: Path) -> bool:
        """Whether a file, by its path without links, belongs to this directory."""
        if real.is_relative_to(self.root):
            return True
        if self._blobs is None:
            return False
        shared = self._blobs.parent.with_name("blobs")
        in_store = real.is_relative_to(shared) and _SHARED_BLOB.fullmatch(real.relative_to(shared).as_posix())
        return real.is_relative_to(self._blobs) or bool(in_store)

    def need(self, name: str, what: str) -> Path:
        """As `path`, but raises UserError for a missing file. what: the end of that error line."""
        path = self.path(name)
        if path is None:
            raise UserError(f"{self.shown(name)}: is missing; {what}")
        return path

    def names(self, part: str = "") -> list[str]:
        """The names of the files in one folder, without the folder's; empty if there is no such folder."""
        folder = self.root / part
        try:
            if not folder.resolve(strict=True).is_relative_to(self.root):
                raise UserError(
                    f"{self.shown(part)}: is a link that leads out of the checkpoint directory; copy the folder into it"
                )
            return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
        except (OSError, RuntimeError):
            return []

    def read(self, name: str, limit: int, what: str) -> bytes:
        """A whole file of at most `limit` bytes. what: the end of the error line if it is missing. Raises UserError."""
        path = self.need(name, what)
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"{self.shown(name)}: cannot be read: {error.strerror}") from None
        if len(data) > limit:
            raise UserError(f"{self.shown(name)}: is larger than {limit >> 20} MiB, the largest allowed; get it again")
        return data

    def json(self, name: str, limit: int = MAX_JSON_BYTES, *, infinity: bool = False) -> dict[str, Any]:
        """A file's JSON object (its values are any JSON). Raises UserError.

        infinity: accept Infinity and -Infinity. JSON does not have them, and diffusers writes them.
        """
        data = self.read(name, limit, "the directory is incomplete; get it again")
        try:
            values = json.loads(data, parse_constant=_infinity if infinity else _no_constant)
        except RecursionError:
            raise UserError(f"{self.shown(name)}: is nested too deeply; get it again") from None
        except ValueError as error:
            raise UserError(f"{self.shown(name)}: is not valid JSON ({show(str(error), 160)}); get it again") from None
        if not isinstance(values, dict):
            raise UserError(f"{self.shown(name)}: must hold a JSON object, not a {type(values).__name__}; get it again")
        return values

    def shown(self, name: str) -> str:
        """A file's path for an error."""
        return show_path(self.root / name)


def _infinity(name: str) -> float:
    return _no_constant(name) if name == "NaN" else float(name)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
