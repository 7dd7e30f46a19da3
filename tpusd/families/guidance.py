"""Which images need classifier-free guidance. Imports nothing, because the plan of a run asks it too."""


def uses_cfg(guidance_scale: float) -> bool:
    """Whether the model must also predict without the prompt.

    At scale 1 that half cancels out (Ho & Salimans 2022). Below 1 it would weaken the prompt, which nobody means: 0 is
    what the cards of distilled models ask for. So every scale up to 1 is the prompt alone, as in diffusers.
    """
    return guidance_scale > 1
