"""From Python and from a notebook: what `import tpusd` offers."""

from tpusd.api.calls import generate, resume, sweep, unload
from tpusd.api.results import Images, Run, Sweep, open_run, open_sweep
from tpusd.errors import UserError

__all__ = ["Images", "Run", "Sweep", "UserError", "generate", "open_run", "open_sweep", "resume", "sweep", "unload"]
