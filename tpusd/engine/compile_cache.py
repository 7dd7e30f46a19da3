"""JAX's persistent compilation cache, on by default in the user's cache directory and mended after crashes.

A user's own choice goes first: with JAX_COMPILATION_CACHE_DIR set nothing here happens, and
JAX_ENABLE_COMPILATION_CACHE=false switches the cache off. Knows nothing of what is compiled.
"""

import hashlib
import json
import os
import platform
import zlib
from collections.abc import Sequence
from pathlib import Path

SUFFIX = "-cache"  # of JAX's entries
CHECKED = "checked.json"  # entry -> bytes, of those that were found whole
MIN_COMPILE_SECONDS = 0.05  # what compiles faster is not worth a file
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PACKAGES = ("jax", "jaxlib", "libtpu", "flax")


def enable_compile_cache() -> Path | None:
    """Switches the cache on before the first compilation; returns its directory, None where it is not ours to choose.

    A directory that cannot be made, or that others may write to, is not used: what lies in it is run.
    """
    import jax

    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is not None or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    directory = cache_directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return None
        remove_broken(directory)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return directory


def cache_directory() -> Path:
    """One directory for a set of versions and a kind of processor, under XDG_CACHE_HOME or ~/.cache."""
    from tpusd.records.provenance import versions

    installed = versions()
    parts = [f"{name} {installed[name]}" for name in _PACKAGES] + [platform.machine(), _processor_features()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tpusd" / "compiled" / f"jax-{installed['jax']}-{key}"


def remove_broken(directory: Path) -> Sequence[str]:
    """Removes the entries that a crash cut short; names them. JAX would warn of them and compile again at every run.

    JAX writes entries in place, so one that was not seen whole before is read once to find out.
    """
    try:
        before = json.loads((directory / CHECKED).read_bytes())
    except (OSError, ValueError):
        before = {}
    whole, broken = {}, []
    for entry in sorted(directory.glob(f"*{SUFFIX}")):
        size = entry.stat().st_size
        if (isinstance(before, dict) and before.get(entry.name) == size) or _is_whole(entry.read_bytes()):
            whole[entry.name] = size
        else:
            entry.unlink(missing_ok=True)
            broken.append(entry.name)
    if whole != before:
        temporary = directory / f"{CHECKED}.{os.getpid()}"
        temporary.write_text(json.dumps(whole))
        temporary.rename(directory / CHECKED)
    return broken


def _is_whole(data: bytes) -> bool:
    """Whether an entry, compressed as JAX does it, comes out to its end."""
    try:
        if data.startswith(ZSTD_MAGIC):
            import zstandard  # JAX compresses with it where it is installed

            zstandard.ZstdDecompressor().decompress(data)
        else:
            zlib.decompress(data)
    except Exception:  # each library has errors of its own; what cannot be read is of no use to JAX either
        return False
    return True


def _processor_features() -> str:
    """What code for this CPU may use: entries made for another would be refused, or stop the process."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
