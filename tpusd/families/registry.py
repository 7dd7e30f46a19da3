"""All families. A new one is an import and an entry here."""

from tpusd.families.base import Family
from tpusd.families.sdxl import SDXL
from tpusd.families.stable_diffusion import StableDiffusion

FAMILIES: tuple[Family, ...] = (StableDiffusion(), SDXL())


def find_family(pipeline_class: str) -> Family | None:
    """The family of a diffusers pipeline class, `Flax` in front or not; None if no family has it."""
    name = pipeline_class.removeprefix("Flax")
    return next((family for family in FAMILIES if name in family.pipeline_classes), None)


def pipeline_classes() -> tuple[str, ...]:
    """The pipeline classes that are implemented."""
    return tuple(name for family in FAMILIES for name in family.pipeline_classes)
