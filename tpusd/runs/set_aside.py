"""What a run says of images that no worker of a cluster could make: which, and why."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from tpusd.errors import IncompleteRun, show_path

LISTED = 10  # images that the line names; run.log has all of them


class ImagesSetAside(IncompleteRun):
    """A run whose images are made except those that ended their workers. path: of the run."""

    def __init__(self, path: Path, set_aside: Mapping[str, str], num_images: int):
        """set_aside: name of an image -> why. num_images: of the run."""
        listed = ", ".join(list(set_aside)[:LISTED])
        more = f" and {len(set_aside) - LISTED} more" if len(set_aside) > LISTED else ""
        super().__init__(
            f"{show_path(path)}: {len(set_aside)} of {num_images} images are not made: {listed}{more} "
            f"({next(iter(set_aside.values()))}); see the logs of the workers, and try them again: "
            f"python -m tpusd.run resume={shlex.quote(str(path))}"
        )
        self.path = path
