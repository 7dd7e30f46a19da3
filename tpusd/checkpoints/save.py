"""Our parameters -> an ordinary diffusers directory, which PyTorch diffusers and this package load alike."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from tpusd.checkpoints import model_index
from tpusd.checkpoints.architecture import SCHEDULER_FILE
from tpusd.checkpoints.fill import cast, parameters
from tpusd.checkpoints.opened import Checkpoint
from tpusd.checkpoints.tokenizer import Tokenizer
from tpusd.families.base import Component, Family, NetworkConfig, config_values
from tpusd.networks.abstract import abstract_model

# The reference's version whose format this is; diffusers warns of a directory that does not name one.
DIFFUSERS_VERSION = "0.42.1"
CONFIG = "config.json"  # of a network


def save_checkpoint(
    directory: str | Path,
    family: Family,
    *,
    networks: Mapping[str, tuple[NetworkConfig, nnx.State[Any, Any]]],
    tokenizers: Mapping[str, Tokenizer],
    scheduler_config: Mapping[str, Any],
    options: Mapping[str, bool] | None = None,
    dtype: str = "float32",
) -> None:
    """Writes a checkpoint of this family.

    Files of an earlier save are replaced; model_index.json is written last, so a directory whose writing was cut off is
    not taken for a checkpoint.

    directory: is made if it is not there.
    family: decides which networks and tokenizers there must be.
    networks: part -> config and parameters.
    tokenizers: folder -> tokenizer.
    scheduler_config: the JSON object of scheduler_config.json, with `_class_name`.
    options: of the pipeline, as Checkpoint.options has them; None: diffusers' defaults.
    dtype: of the stored weights, float32 or float16.
    """
    assert networks.keys() == family.components.keys(), f"{family.name}: has the parts {list(family.components)}"
    assert set(tokenizers) == set(family.tokenizers), f"{family.name}: has the tokenizers {family.tokenizers}"
    root = Path(directory)
    (root / model_index.FILE).unlink(missing_ok=True)
    for part, component in family.components.items():
        save_part(root / part, part, component, *networks[part], dtype=np.dtype(dtype))
    _save_rest(root, family, tokenizers, scheduler_config, options or {})


def save_configs(directory: str | Path, checkpoint: Checkpoint) -> None:
    """A directory of this checkpoint without its weights: model_index.json, configs, tokenizers.

    The configs of networks say float32.
    """
    root, family = Path(directory), checkpoint.family
    for part, component in family.components.items():
        _write_json(root / part / CONFIG, _saved_config(component, checkpoint.configs[part], np.dtype(np.float32)))
    tokenizers = dict(zip(family.tokenizers, checkpoint.tokenizers, strict=True))
    _save_rest(root, family, tokenizers, checkpoint.scheduler_values, checkpoint.options)


def _save_rest(
    root: Path,
    family: Family,
    tokenizers: Mapping[str, Tokenizer],
    scheduler_config: Mapping[str, Any],
    options: Mapping[str, bool],
) -> None:
    """All but the networks; arguments as in `save_checkpoint`."""
    for folder, tokenizer in tokenizers.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in tokenizer.files:
            shutil.copyfile(file, root / folder / file.name)
    _write_json(root / SCHEDULER_FILE, {"_diffusers_version": DIFFUSERS_VERSION, **scheduler_config})
    index = {
        "_class_name": family.pipeline_classes[0],
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler_config["_class_name"]],
        **{part: [component.library, component.classes[0]] for part, component in family.components.items()},
        **{folder: ["transformers", model_index.TOKENIZER_CLASSES[0]] for folder in family.tokenizers},
        **family.options(options),
        **family.saved_index(),
    }
    _write_json(root / model_index.FILE, index)


def save_part(
    folder: Path, part: str, component: Component, config: NetworkConfig, state: nnx.State[Any, Any], *, dtype: np.dtype
) -> None:
    """Writes one network and its config.json. part: its name, for errors. dtype: of the stored weights."""
    values = {path: variable.get_value() for path, variable in nnx.to_flat_state(state)}
    tensors = {}
    model = abstract_model(component.network, config, dtype=jnp.float32, param_dtype=jnp.float32)
    for name, parameter in parameters(model).items():
        ours = np.asarray(values.pop(parameter.path))
        assert ours.shape == parameter.shape, f"{part}: {name} is {ours.shape}, the config asks for {parameter.shape}"
        tensors[name] = cast(parameter.to_torch(ours), dtype, f"{part}: {name}")
    assert not values, f"{part}: the state has more than the config describes: {list(values)[:3]}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{component.weights}.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library makes files that nobody else can read
    _write_json(folder / CONFIG, _saved_config(component, config, dtype))


def _saved_config(component: Component, config: NetworkConfig, dtype: np.dtype) -> dict[str, Any]:
    """config.json as the reference reads it: any JSON values."""
    values = component.saved_config(config_values(config))
    if component.library == "diffusers":
        return {"_class_name": component.classes[0], "_diffusers_version": DIFFUSERS_VERSION, **values}
    return {"architectures": [component.classes[0]], "torch_dtype": dtype.name, **values}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
