"""What a real shell makes of a command that tpusd prints."""

import subprocess


def shell_words(command: str) -> list[str]:
    """The words of a command, as bash reads them. shlex does not know $'...'."""
    script = f"printf '%s\\0' {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C"})
    return done.stdout.decode().split("\0")[:-1]
