"""An argument parser whose errors are tpusd's own: one line on stderr and exit status 2."""

import argparse
from typing import NoReturn

from tpusd.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse's parser, which raises UserError instead of printing its usage and exiting."""

    advice = "--help says more"

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.advice}")
