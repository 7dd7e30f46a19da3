"""The compilers' options: which program gets which, by platform and by kind of device."""

from collections.abc import Mapping

from tpusd.networks.target import V6E

Options = Mapping[str, int | float | str]
# Platform ("cpu", "gpu", "tpu") -> options; kind of device, such as V6E -> further options.
OptionsByTarget = Mapping[str, Options]

# For a batch below eight the TPU compiler folds rows of the image into the batch, and in a UNet then spends more on
# cutting, padding and masking the pieces than its convolutions gain. In the decoder they do gain (docs/log.md).
KEEP_ROWS = {"xla_tpu_run_space_to_batch": False, "xla_tpu_run_space_to_batch_on_new_platforms": False}
# What is the same at every step, the compiler takes out of the loop where the result has at most so many times the
# bytes of what it is made from (docs/log.md).
HOIST = {"xla_tpu_licm_size_inflation_ratio": 2.0}
# On CPUs YNNPACK makes the products and sums, as it does by default, and Eigen the convolutions (docs/log.md).
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# Positions of a whole batch, guided or not, up to which a step is so short that compiling it for long does not pay.
SHORT_STEP = 16384


def denoise_options(positions: int) -> OptionsByTarget:
    """positions: of latents in one call of the denoiser, both halves of a guided batch counted."""
    short = positions <= SHORT_STEP
    return {
        "cpu": CPU_OPTIONS,
        "tpu": {**KEEP_ROWS, **HOIST, **(_vector_memory(8) if short else {})},
        V6E: _vector_memory(12 if short else 16 if positions <= 2 * SHORT_STEP else 24),
    }


def decode_options(positions: int) -> OptionsByTarget:
    """positions: of one image's latents, because images are decoded one by one."""
    short = positions <= SHORT_STEP // 4
    return {"cpu": CPU_OPTIONS, "tpu": _vector_memory(4) if short else {}, V6E: _vector_memory(8 if short else 16)}


def _vector_memory(mebibytes: int) -> dict[str, int]:
    """How much vector memory one operation may fill: by default 16 MiB, on a v6e 32.

    Less makes smaller blocks and so less code, which is what compiling takes its time for, and somewhat slower programs
    (docs/log.md).
    """
    return {"xla_tpu_scoped_vmem_limit_kib": mebibytes * 1024}
