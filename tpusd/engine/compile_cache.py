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

from tpusd.storage.cache import cache_folder

SUFFIX = "-cache"  # of JAX's entries
CHECKED = "checked.json"  # what was found whole: {"boot": ..., "entries": {entry: [bytes, sha256]}}
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
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
    try:
        directory = cache_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return None
        remove_broken(directory)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return directory


def cache_directory() -> Path:
    """One directory for a set of versions and a kind of processor, under XDG_CACHE_HOME or ~/.cache.

    libtpu counts on a TPU alone. Elsewhere nothing that it compiles is kept here.
    """
    import jax

    from tpusd.records.provenance import versions

    installed = versions()
    if jax.default_backend() != "tpu":
        installed["libtpu"] = None
    parts = [f"{name} {installed[name]}" for name in _PACKAGES] + [platform.machine(), _processor_features()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_folder("compiled") / f"jax-{installed['jax']}-{key}"


def remove_broken(directory: Path) -> Sequence[str]:
    """Removes the entries that a crash cut short; names them. JAX would warn of them and compile again at every run.

    JAX writes entries in place and does not wait for the disk. A killed process leaves a short entry, and a power cut
    one of the right size with zeros in it. So an entry that was found whole is recognised by its size as long as the
    machine runs, and by its sha256 once after each start of the machine; a new one is decompressed.
    """
    boot = _boot_id()
    before, same_boot = _read_checked(directory / CHECKED, boot)
    whole: dict[str, tuple[int, str]] = {}
    broken = []
    for entry in sorted(directory.glob(f"*{SUFFIX}")):
        known = before.get(entry.name)
        if known is not None and same_boot and known[0] == entry.stat().st_size:
            whole[entry.name] = known
            continue
        data = entry.read_bytes()
        found = (len(data), hashlib.sha256(data).hexdigest())
        if _is_whole(data) if known is None else found == known:
            whole[entry.name] = found
        else:
            entry.unlink(missing_ok=True)
            broken.append(entry.name)
    if whole != before or not same_boot:
        temporary = directory / f"{CHECKED}.{os.getpid()}"
        temporary.write_text(json.dumps({"boot": boot, "entries": whole}))
        temporary.rename(directory / CHECKED)
    return broken


def _boot_id() -> str | None:
    """What changes each time the machine starts; None where the system does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None


def _read_checked(path: Path, boot: str | None) -> tuple[dict[str, tuple[int, str]], bool]:
    """Entry -> (bytes, sha256) of what was found whole before, and whether that was since the machine started."""
    try:
        values = json.loads(path.read_bytes())
        entries = {str(name): (int(size), str(digest)) for name, (size, digest) in values["entries"].items()}
        return entries, boot is not None and values["boot"] == boot
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, False


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
