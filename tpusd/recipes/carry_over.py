"""What the readers of other programs' pictures share: fields of a config, and a line for what cannot carry over.

Every field that it sets is one that tpusd accepts. Knows nothing of any one program.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tpusd.config.grammar import hydra_value
from tpusd.config.limits import MAX_GUIDANCE, MAX_SEED, MAX_SIZE, MAX_STEPS, SIZE_STEP
from tpusd.config.sampler import SamplerSettings
from tpusd.config.typed import read
from tpusd.errors import UserError, show
from tpusd.recipes.command import fitting_row

MODEL_PLACEHOLDER = "MODEL_DIRECTORY"  # for weights that only the user can name
PROMPT_PLACEHOLDER = "PROMPT"
LORAS_PLACEHOLDER = "LORA_DIRECTORY"  # for the directory with the files that a prompt names
MAX_LINES = 20  # of one kind
DEFAULT_SAMPLER = "pndm"  # of conf/config.yaml
_STEPS = "sampler.num_inference_steps"
# Of Stable Diffusion 1 to XL: what scheduler_config.json of each says.
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # no command line can hold NUL, and half a surrogate pair is not Unicode

Value = str | int | float | bool | list[dict[str, str]]  # of a field


@dataclass(frozen=True)
class Missing:
    """A value that a picture does not have, and why: a predicate, as in `is not given`."""

    why: str


NOT_GIVEN = Missing("is not given")


class CarryOver:
    """Collects a config, field by field, and the lines about what the config cannot say."""

    def __init__(self) -> None:
        self._fields: dict[str, Value] = {}
        self._left_out: list[str] = []

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(f"{name}={hydra_value(value)}" for name, value in self._fields.items())

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(self._left_out)

    def set(self, field: str, value: Value) -> None:
        self._fields[field] = value

    def leave_out(self, *parts: object) -> None:
        """A line: what, its value if it has one, and the rule or the consequence."""
        *names, rule = parts
        self._left_out.append(": ".join([*map(show, names), str(rule)]))

    def leave_out_each(self, names: Iterable[str], rule: str) -> None:
        """A line for each name, and one line for those after the first few."""
        every = list(dict.fromkeys(names))
        for name in every[:MAX_LINES]:
            self.leave_out(name, rule)
        if len(every) > MAX_LINES:
            self.leave_out(f"{len(every) - MAX_LINES} more", rule)

    def steps(self, name: str, value: object) -> None:
        """After the sampler, which may take fewer steps than others."""
        self._number(name, value, _STEPS, 1, MAX_STEPS, whole=True)
        wanted = self._fields.get(_STEPS)
        if not isinstance(wanted, int):
            return
        taken = nearest_steps(self.sampler(), wanted)
        if taken is None:
            del self._fields[_STEPS]
            self.leave_out(name, wanted, "no number of steps suits these options of the sampler; the default is taken")
        elif taken != wanted:
            self.set(_STEPS, taken)
            self.leave_out(name, wanted, f"the sampler does not make so many; {_STEPS}={taken} is taken")

    def guidance(self, name: str, value: object) -> None:
        self._number(name, value, "guidance_scale", 0, MAX_GUIDANCE, whole=False)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
            self.leave_out(
                name,
                value,
                "below 1 other programs let the negative prompt in; here 0 to 1 is the prompt alone",
            )

    def seed(self, name: str, value: object) -> None:
        self._number(name, value, "seed", 0, MAX_SEED, whole=True, nearest=False)

    def size(self, name: str, field: str, value: object) -> None:
        """field: height or width, in pixels. Other programs round a size down to whole latents, and so does this."""
        if isinstance(value, int) and value % SIZE_STEP and SIZE_STEP <= value <= MAX_SIZE:
            rounded = value - value % SIZE_STEP
            self.leave_out(name, value, f"is not a multiple of {SIZE_STEP}; {field}={rounded} is taken")
            value = rounded
        self._number(name, value, field, SIZE_STEP, MAX_SIZE, whole=True, otherwise="the model's own size is taken")

    def model(self, name: str, value: object) -> None:
        """Weights that the user has to name."""
        self.set("model", "local")
        self.set("model.path", MODEL_PLACEHOLDER)
        self.leave_out(
            name,
            value.why if isinstance(value, Missing) else value,
            f"put the directory of these weights in the place of {MODEL_PLACEHOLDER}, or choose another model=",
        )

    def prompts(self, prompt: str, negative_prompt: str) -> None:
        row = {"prompt": self._text("prompt", prompt)}
        if not row["prompt"].strip():
            row["prompt"] = PROMPT_PLACEHOLDER
            self.leave_out("prompt", f"is empty; put one in the place of {PROMPT_PLACEHOLDER}")
        if negative_prompt:
            row["negative_prompt"] = self._text("negative prompt", negative_prompt)
        row, lines = fitting_row(row)
        self._left_out += lines
        self.set("prompts.rows", [row])

    def _text(self, name: str, text: str) -> str:
        kept = _NOT_TEXT.sub("", text)
        if kept != text:
            self.leave_out(name, "holds characters that are not text; they are left out")
        return kept

    def sampler(self) -> SamplerSettings:
        """As set so far."""
        prefix = "sampler."
        options = {name.removeprefix(prefix): value for name, value in self._fields.items() if name.startswith(prefix)}
        return read(SamplerSettings, {"name": self._fields.get("sampler", DEFAULT_SAMPLER), **options})

    def _number(
        self,
        name: str,
        value: object,
        field: str,
        low: int,
        high: float,
        *,
        whole: bool,
        nearest: bool = True,
        otherwise: str = "the default is taken",
    ) -> None:
        """Sets `field` to a number in its range, and says what is not the picture's own.

        name, value: as the picture has them.
        low, high: of the range.
        whole: whether the field takes whole numbers alone.
        nearest: whether a number out of range gives the nearest one in it.
        otherwise: what happens where the field is not set.
        """
        if whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, Missing):
            self.leave_out(name, f"{value.why}; {otherwise}")
        elif isinstance(value, bool) or not isinstance(value, kinds):
            self.leave_out(name, value, f"is not a {'whole ' if whole else ''}number; {otherwise}")
        elif low <= value <= high:
            self.set(field, value if whole else float(value))
        else:
            taken = (low if value < low else int(high) if whole else high) if nearest and value == value else None
            rule = f"must be from {low} to {high if whole else f'{high:g}'}"
            self.leave_out(name, value, f"{rule}; {otherwise if taken is None else f'{field}={taken:g} is taken'}")
            if taken is not None:
                self.set(field, taken if whole else float(taken))


def nearest_steps(settings: SamplerSettings, steps: int) -> int | None:
    """The number of steps nearest to `steps` that the sampler makes on the schedule of Stable Diffusion, fewer first.

    None: no number suits the settings.
    """
    from tpusd.samplers.schedule import SchedulerConfig
    from tpusd.samplers.table import make_table

    schedule = SchedulerConfig.from_dict(_SCHEDULE)
    numbers: list[int] = [*range(steps, 0, -1), *range(steps + 1, MAX_STEPS + 1)]
    for number in numbers:
        try:
            make_table(dataclasses.replace(settings, num_inference_steps=number), schedule)
            return number
        except UserError:
            continue
    return None
