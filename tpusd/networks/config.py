"""Published config.json files -> config dataclasses, and the ranges of their fields.

A field is refused if it would change the network and is not implemented. A wrong config must fail quickly, wherever it
comes from: a network of 10**9 channels or a million layers must not be built, not even as shapes. So every number has a
range, with a limit about ten times the value of the largest Stable Diffusion.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from annotated_types import Interval, Len

from tpusd.config.typed import DataclassInstance, read
from tpusd.errors import UserError

MAX_LEVELS = 8  # entries of a per-level list; Stable Diffusion has 3 or 4
# Ten times those of SDXL's UNet, the largest published network of these families, or of its largest tensor.
MAX_BLOCKS = 870  # resnets and transformer layers of one network
MAX_PARAMETERS = 25_674_636_840  # of one network
MAX_TENSOR = 632_422_400  # numbers in one tensor; the largest is the token embedding of SDXL's second text encoder

# What training leaves in a config: the state of diffusers' EMAModel, whose averages the weights already are.
EMA_FIELDS = frozenset({
    "collected_params", "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step",
    "use_ema_warmup",
})  # fmt: skip

# transformers writes these fields into every config. Inference uses no field of them.
TRANSFORMERS_FIELDS = frozenset({
    "architectures", "attention_dropout", "dropout", "bos_token_id", "pad_token_id", "initializer_factor",
    "initializer_range", "model_type", "torch_dtype", "dtype", "transformers_version", "num_beams", "return_dict",
    "output_attentions", "output_hidden_states", "gradient_checkpointing", "is_encoder_decoder", "add_cross_attention",
    "problem_type", "id2label", "label2id", "tie_word_embeddings", "chunk_size_feed_forward", "use_cache",
    # Of text generation; transformers 4 wrote them where a config was inside of another one.
    "bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "is_decoder",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_return_sequences",
    "output_scores", "prefix", "pruned_heads", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p",
    "use_bfloat16",
})  # fmt: skip

Number = Annotated[int, Interval(ge=1, le=65536)]  # channels, heads, pixels
Real = Annotated[float, Interval(ge=-1e9, le=1e9)]
TokenId = Annotated[int, Interval(ge=0, le=1 << 20)]
NumberPerLevel = Annotated[tuple[Number, ...], Len(1, MAX_LEVELS)]
NamePerLevel = Annotated[tuple[str, ...], Len(1, MAX_LEVELS)]
HeightAndWidth = Annotated[tuple[Number, ...], Len(2, 2)]

_T = TypeVar("_T", bound=DataclassInstance)


def read_config(
    cls: type[_T],
    values: Mapping[str, Any],
    *,
    only: Mapping[str, tuple[object, ...]],
    harmless: frozenset[str],
    name: str,
    uniform: frozenset[str] = frozenset(),
) -> _T:
    """Builds a config dataclass from the values of a config.json.

    cls: the dataclass. A field that the file does not have takes its default.
    values: a JSON object, so any JSON values. An unknown field is accepted if its value is None or False, because newer
        versions of diffusers write every option that they have.
    only: for some fields, the only values that are implemented. A list that repeats one of them, an entry for each
        level, means the same.
    harmless: fields that inference does not use.
    name: the file's name, with which an error begins.
    uniform: fields of one number, which a file may have as a list that repeats the number.

    Raises UserError. It lists every field whose value is not implemented. If all are implemented, it names the first
    value with a wrong type or out of range.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    wrong, taken = [], {}
    for key, value in values.items():
        if key in fields:
            taken[key] = _without_repetition(value) if key in uniform else value
        elif key.startswith("_") or key in harmless:
            continue
        elif key in only:
            if _as_tuple(value) not in only[key] and _without_repetition(value) not in only[key]:
                wrong.append(f"{key}={value!r} (implemented: {' or '.join(map(repr, only[key]))})")
        elif value is not None and value is not False:
            wrong.append(f"{key}={value!r} (unknown field)")
    if wrong:
        raise UserError(f"{name}: not implemented: {', '.join(wrong)}")
    try:
        return read(cls, taken, where=f"{name}: ")
    except ValueError as error:  # a rule between fields
        raise UserError(f"{name}: {error}") from None


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _without_repetition(value: object) -> object:
    """The entry of a list of equal numbers, texts or truth values, of a length that a network can have levels."""
    if isinstance(value, list) and 1 <= len(value) <= MAX_LEVELS:
        first = value[0]
        if isinstance(first, bool | int | float | str) and all(type(v) is type(first) and v == first for v in value):
            return first
    return _as_tuple(value)
