"""What the cards of distilled models ask for, and a line for each setting of a run that contradicts it.

conf/model/NAME.yaml has the same values as the defaults of the model. Any setting may still be tried: nothing is
refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tpusd.config.adapters import LoraConfig
from tpusd.config.schema import SavedConfig
from tpusd.errors import show
from tpusd.families.guidance import uses_cfg
from tpusd.plan.specs import image_sizes, planned, row_of

TURBO_SIZE = 512
_LIGHTNING = "sdxl_lightning_{}step_unet.safetensors"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model was made for.

    samplers: those that suit it.
    steps: numbers of steps.
    most_guidance: the highest guidance scale; a scale up to 1 switches guidance off.
    spacing: of the timesteps; None: the samplers have none.
    timesteps: the model's own; None: those of the sampler.
    size: of the images, in pixels; None: as its checkpoint says.
    loras: repositories of LoRAs without which it is only its base model.
    file_for: the file of a number of steps, with {} for the number; None: one file serves all.
    licence: where it is not free for every use.
    """

    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    most_guidance: float = 1.0
    spacing: str | None = None
    timesteps: tuple[int, ...] | None = None
    size: int | None = None
    loras: tuple[str, ...] = ()
    file_for: str | None = None
    licence: str | None = None


CARDS: Mapping[str, Card] = {
    "sd_turbo": Card(
        samplers=("euler", "euler_ancestral"),
        steps=(1, 2, 3, 4),
        spacing="trailing",
        size=TURBO_SIZE,
        licence="Stability AI Community License",
    ),
    "sdxl_turbo": Card(
        samplers=("euler_ancestral", "euler"),
        steps=(1, 2, 3, 4),
        spacing="trailing",
        size=TURBO_SIZE,
        licence="Stability AI Non-Commercial Community License",
    ),
    "sdxl_lightning": Card(samplers=("euler",), steps=(2, 4, 8), spacing="trailing", file_for=_LIGHTNING),
    "hyper_sd15": Card(
        samplers=("ddim",),
        steps=(2, 4, 8),
        spacing="trailing",
        loras=("ByteDance/Hyper-SD",),
        file_for="Hyper-SD15-{}steps-lora.safetensors",
    ),
    "hyper_sdxl": Card(
        samplers=("ddim",),
        steps=(2, 4, 8),
        spacing="trailing",
        loras=("ByteDance/Hyper-SD",),
        file_for="Hyper-SDXL-{}steps-lora.safetensors",
    ),
    "lcm_sd15": Card(
        samplers=("lcm",), steps=tuple(range(2, 9)), most_guidance=2.0, loras=("latent-consistency/lcm-lora-sdv1-5",)
    ),
    "lcm_sdxl": Card(
        samplers=("lcm",), steps=tuple(range(2, 9)), most_guidance=2.0, loras=("latent-consistency/lcm-lora-sdxl",)
    ),
    "dmd2_sdxl": Card(samplers=("lcm",), steps=(4,), timesteps=(999, 749, 499, 249), licence="CC BY-NC 4.0"),
}


def card_notes(config: SavedConfig) -> tuple[str, ...]:
    """A line for each setting that contradicts the model's card, and one for its licence."""
    card = CARDS.get(config.model.name)
    if card is None:
        return ()
    lines = [*_sampler_notes(config, card), *_row_notes(config, card), *_file_notes(config, card)]
    if config.cache.name != "none":
        lines.append(
            f"cache={config.cache.name}: model={config.model.name} is distilled, so its few steps have little in "
            "common to reuse; leave the cache out"
        )
    if card.licence is not None:
        lines.append(f"model={config.model.name}: its licence, {card.licence}, does not allow every use")
    return tuple(lines)


def _sampler_notes(config: SavedConfig, card: Card) -> Iterator[str]:
    sampler, model = config.sampler, f"model={config.model.name}"
    if sampler.name not in card.samplers:
        yield f"sampler={sampler.name}: {model} is made for sampler={' or '.join(card.samplers)}"
    elif card.spacing is not None and sampler.timesteps is None and sampler.timestep_spacing != card.spacing:
        spacing: str = sampler.timestep_spacing or "null"
        yield f"sampler.timestep_spacing={spacing}: {model} is made for timestep_spacing={card.spacing}"
    if card.timesteps is not None and sampler.timesteps != card.timesteps:
        given = "null" if sampler.timesteps is None else show(list(sampler.timesteps))
        yield f"sampler.timesteps={given}: {model} is made for timesteps={show(list(card.timesteps))}"


def _row_notes(config: SavedConfig, card: Card) -> Iterator[str]:
    """Of what a row may set for itself: each wrong value once."""
    model = f"model={config.model.name}"
    rows = [row_of(config, number) for number in planned(config).rows]
    steps = {row.num_inference_steps or config.sampler.num_inference_steps for row in rows}
    for number in sorted(steps - set(card.steps)):
        listed = f"{card.steps[0]} to {card.steps[-1]}" if len(card.steps) > 3 else " or ".join(map(str, card.steps))
        yield f"num_inference_steps={number}: {model} is made for {listed} steps"
    scales = {config.guidance_scale if row.guidance_scale is None else row.guidance_scale for row in rows}
    for scale in sorted(scale for scale in scales if scale > card.most_guidance):
        most = "no guidance, guidance_scale=0" if card.most_guidance <= 1 else f"at most {card.most_guidance:g}"
        yield f"guidance_scale={scale:g}: {model} is made for {most}"
    if not any(map(uses_cfg, scales)) and (config.negative_prompt or any(row.negative_prompt for row in rows)):
        yield "negative_prompt: no effect without guidance"
    for height, width in image_sizes(config):
        if card.size is not None and (height, width) != (card.size, card.size):
            yield f"{width}x{height}: {model} is made for {card.size}x{card.size}"


def _file_notes(config: SavedConfig, card: Card) -> Iterator[str]:
    model, present = f"model={config.model.name}", {lora.repo for lora in config.loras}
    for repo in card.loras:
        if repo not in present:
            yield f"loras: {model} is only its base model without the LoRA of {repo}; leave model.loras as it is"
    if card.file_for is None:
        return
    expected = card.file_for.format(config.sampler.num_inference_steps)
    for field, file in _files(config, card):
        if file != expected and config.sampler.num_inference_steps in card.steps:
            yield (
                f"sampler.num_inference_steps={config.sampler.num_inference_steps}: {show(file)} is made for another "
                f"number of steps; add {field}={expected}"
            )


def _files(config: SavedConfig, card: Card) -> Iterator[tuple[str, str]]:
    """The files of which each is for one number of steps, with their fields."""
    if config.model.unet.file is not None:
        yield "model.unet.file", config.model.unet.file
    own: list[LoraConfig] = [lora for lora in config.loras if lora.repo in card.loras]
    yield from ((f"model.loras.{number}.file", lora.file) for number, lora in enumerate(own) if lora.file is not None)
