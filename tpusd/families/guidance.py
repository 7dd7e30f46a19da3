"""Which images need classifier-free guidance. Imports nothing, because the plan of a run asks it too."""


def uses_cfg(guidance_scale: float) -> bool:
    """Whether the model must also predict without the prompt. At scale 1 that half cancels out (Ho & Salimans 2022)."""
    return guidance_scale != 1
