"""A run's images made a second time by PyTorch diffusers, from the same checkpoint and the same noise, and compared.

command.py the command · covered.py what is compared, and what is refused · ours.py, reference.py the two programs ·
reference_files.py, reference_loras.py the files as diffusers reads them · weights.py, compare.py the differences ·
report.py the result
"""

from tpusd.verify.command import main

__all__ = ["main"]
