"""What every command wraps its work in: what the user can mend is one line on stderr and exit status 2."""

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from tpusd.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT


@contextlib.contextmanager
def exit_status() -> Iterator[list[int]]:
    """Yields [0], whose only item is the exit status after the block."""
    status = [0]
    try:
        yield status
    except UserError as error:
        print(f"tpusd: {' '.join(str(error).split())}", file=sys.stderr)
        status[0] = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("tpusd: interrupted; every image in the manifest is whole", file=sys.stderr)
        status[0] = EXIT_INTERRUPTED


def refuse_arguments(message: str) -> NoReturn:
    """argparse's `error`, as a line of ours."""
    raise UserError(f"{message}; --help says more")
