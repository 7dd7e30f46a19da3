"""How large the numbers of a run may be."""

from typing import Any

from tpusd.errors import UserError, show

MAX_SEED = 2**32 - 1  # JAX silently takes other seeds for one of these
MAX_COPIES = 4096  # an image's key is folded from row * 4096 + copy
MAX_ROWS = 2**32 // MAX_COPIES
MAX_STEPS = 1000
MAX_SIZE = 8192  # pixels
MAX_GUIDANCE = 1000.0
SIZE_STEP = 8  # pixels to one latent


def check_seed(where: str, seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"{where}={show(seed)}: must be a whole number from 0 to {MAX_SEED}")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"{where}={seed}: must be from 0 to {MAX_SEED}; seeds beyond repeat the images of others")
    return seed


def check_guidance_scale(where: str, scale: float) -> float:
    if not 0 <= scale <= MAX_GUIDANCE:  # false for nan too
        raise UserError(
            f"{where}={scale:g}: must be from 0 to {MAX_GUIDANCE:g}; 7.5 is usual, 1 follows the prompt alone"
        )
    return scale


def check_size(name: str, size: int | None) -> None:
    if size is None:
        return
    if size % SIZE_STEP or not SIZE_STEP <= size <= MAX_SIZE:
        nearest = min(max(SIZE_STEP, round(size / SIZE_STEP) * SIZE_STEP), MAX_SIZE)
        raise UserError(
            f"{name}={size}: must be a multiple of {SIZE_STEP} from {SIZE_STEP} to {MAX_SIZE}; try {name}={nearest}"
        )
