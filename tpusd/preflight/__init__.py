"""A run's programs compiled for a TPU slice that is not there, and what the compiler says of them.

command.py the command · report.py the figures · text.py the same as a table · compilation.py the programs ·
topology.py, chips.py the slice · hlo_text.py, hlo_cost.py the compiled program and its estimate · flops.py the work
"""

from tpusd.preflight.command import main

__all__ = ["main"]
