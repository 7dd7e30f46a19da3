"""How large the numbers of a run may be, as types whose range the reader of typed values checks."""

from typing import Annotated

from annotated_types import Interval, MultipleOf

from tpusd.config.typed import Advice, read_value

MAX_SEED = 2**32 - 1  # JAX silently takes a larger seed for one of these
MAX_COPIES = 4096  # an image's key is folded from row * 4096 + copy
MAX_ROWS = 2**32 // MAX_COPIES
MAX_STEPS = 1000
MAX_TIMESTEP = 99_999
MAX_SIZE = 8192  # pixels
MAX_GUIDANCE = 1000.0
MAX_CLIP_SKIP = 255  # layers; the largest text encoder has 32
MAX_FEATHER = 1024  # pixels
SIZE_STEP = 8  # pixels to one latent

Seed = Annotated[int, Interval(ge=0, le=MAX_SEED), Advice("a larger seed would repeat the images of a smaller one")]
GuidanceScale = Annotated[float, Interval(ge=0, le=MAX_GUIDANCE), Advice("7.5 is usual, 1 follows the prompt alone")]
Strength = Annotated[float, Interval(ge=0, le=1), Advice("0.3 keeps much of the picture, 0.8 little")]
NumSteps = Annotated[int, Interval(ge=1, le=MAX_STEPS), Advice("20 to 50 are usual")]
Size = Annotated[int, Interval(ge=SIZE_STEP, le=MAX_SIZE), MultipleOf(SIZE_STEP)]  # pixels


def check_size(name: str, size: int) -> None:
    """Raises UserError for a height or width that no image can have."""
    read_value(Size, size, name)
