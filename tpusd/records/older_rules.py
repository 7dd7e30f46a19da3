"""What earlier releases made of a recipe of which the newest one makes another image.

So far that is one rule. Up to 0.1.0 a guidance scale below 1 let the negative prompt in, which weakened the prompt; now
every scale from 0 to 1 is the prompt alone. run.json shows which rule made an image: its environment names the
programs, and only the older rule ran `denoise`, the program with guidance, for such a scale.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tpusd.records.manifest import ImageRecord

WEAKENED = (
    "guidance_scale below 1: when this run was made, such a scale weakened the prompt; now 0 to 1 is the prompt alone, "
    "which gives other images"
)


def weakened(facts: Mapping[str, Any], records: Iterable[ImageRecord], *, surely: bool) -> bool:
    """Whether the older rule made one of these images.

    facts: the run's run.json.
    surely: False: an environment that ran programs with and without guidance counts too.
    """
    environments = facts.get("environments")
    for name in {record.environment for record in records if record.guidance_scale < 1}:
        environment = environments.get(name) if isinstance(environments, dict) else None
        programs = environment.get("programs") if isinstance(environment, dict) else None
        if isinstance(programs, dict) and "denoise" in programs and not (surely and "denoise_unguided" in programs):
            return True
    return False
