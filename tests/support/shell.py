"""What a shell makes of a printed command: it is run, with a stand-in for Python that says its arguments."""

import shutil
import subprocess

BASH = shutil.which("bash") or "/bin/bash"
STAND_IN = 'python() { printf \'%s\\0\' "$PYTHONUTF8" "$@"; }\n'


def arguments_of(command: str, *, encoding: str = "utf-8", locale: str = "C.UTF-8") -> list[str]:
    """The words that Python gets of `python ...`, which is the text of a terminal of this encoding.

    locale: the shell's. Python decodes its arguments by it, or as UTF-8 where PYTHONUTF8 is 1.
    """
    script = (STAND_IN + command).encode(encoding)
    done = subprocess.run([BASH], input=script, env={"LC_ALL": locale, "PATH": "/nowhere"}, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    mode, *words = done.stdout.split(b"\0")[:-1]
    return [word.decode("utf-8" if mode == b"1" else encoding) for word in words]
