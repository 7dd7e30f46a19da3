"""What the model of a single file predicts. The file seldom says it, and a wrong guess spoils every picture silently.

In this order: keys that are there to mark it, `model.prediction_type`, the file's header, the published model that it
is. Knows no network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpusd.checkpoints.formats.safetensors import Safetensors
from tpusd.errors import UserError, show

_V_PRED, _ZERO_SNR = "v_pred", "ztsnr"  # tensors whose being there says it
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_GLOBAL_STEP = "global_step"
_SD2_BASE_STEP = 875_000  # of the published SD 2 for 512 px, by which diffusers knows it
_HEADERS = ("modelspec.prediction_type", "prediction_type", "ss_prediction_type")
_WORDS = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction",
    "v-prediction": "v_prediction", "vpred": "v_prediction", "v_pred": "v_prediction",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """type: epsilon, v_prediction or sample. source: what decided, for the user. scheduler: changes of its file."""

    type: str
    source: str
    scheduler: Mapping[str, Any]  # any JSON values


def find_prediction(file: Safetensors, asked: str | None, published: Sequence[str], where: str) -> Prediction:
    """The prediction type of a single file. Raises UserError.

    asked: model.prediction_type.
    published: the types of the published models of this architecture.
    where: the file, as an error begins with it.
    """
    if (edm := next((name for name in _EDM if name in file.tensors), None)) is not None:
        raise UserError(
            f"{where}: the key {edm} says that it is an EDM model, which is not implemented; choose another"
        )
    marked = _marked(file, several=len(published) > 1)
    if marked is not None and asked not in (None, marked.type):
        raise UserError(
            f"model.prediction_type={asked}: {where} is marked as {marked.type} by {marked.source}; leave the field out"
        )
    found = marked or (None if asked is None else _made(asked, "model.prediction_type")) or _in_header(file)
    if found is None and len(published) != 1:
        raise UserError(
            f"model.prediction_type=null: {where} does not say what it predicts, and models of its architecture "
            f"predict {' or '.join(published)}; set model.prediction_type (of SD 2, v_prediction is for 768 px)"
        )
    found = found or _made(published[0], "the configs of its architecture")
    if _ZERO_SNR in file.tensors:
        found = replace(found, scheduler={**found.scheduler, "rescale_betas_zero_snr": True})
    return found


def _marked(file: Safetensors, *, several: bool) -> Prediction | None:
    """several: whether published models of this architecture differ in it."""
    if _V_PRED in file.tensors:
        return _made("v_prediction", "the key v_pred")
    step = file.tensors.get(_GLOBAL_STEP)
    if several and step is not None and step.shape in ((), (1,)) and step.dtype in ("int64", "int32"):
        if int(file.read(_GLOBAL_STEP).reshape(())) == _SD2_BASE_STEP:
            return _made("epsilon", "the key global_step")
    return None


def _in_header(file: Safetensors) -> Prediction | None:
    for name in _HEADERS:
        if (known := _WORDS.get(file.metadata.get(name, "").strip().lower())) is not None:
            return _made(known, f"{name}={show(file.metadata[name], 40)} in the file's header")
    return None


def _made(prediction: str, source: str) -> Prediction:
    return Prediction(type=prediction, source=source, scheduler={"prediction_type": prediction})
