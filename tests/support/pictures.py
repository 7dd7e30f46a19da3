"""Hostile picture files."""

import subprocess

# Pillow hands such a file, whatever its name, to Ghostscript.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def forbid_programs(monkeypatch):
    """Fails a test whose code starts another program."""

    def start(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", start)
