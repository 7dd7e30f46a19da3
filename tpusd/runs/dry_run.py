"""`dry_run=true`: what runs would make, load and compile. Nothing is loaded or made."""

from collections.abc import Sequence

from tpusd.config.schema import RunConfig
from tpusd.plan.batches import count_batches, grouped, num_programs, program_key, weights_key
from tpusd.plan.specs import make_specs, planned
from tpusd.runs.prepare import Prepare, PreparedRun


def show_plan(configs: Sequence[tuple[str, RunConfig]], prepare: Prepare) -> None:
    """Prints the plan of runs. Raises UserError.

    configs: (name, config) of each run; the name of a run alone is empty.
    """
    import jax

    prepared = [(name, prepare(config)) for name, config in configs]
    devices = len(jax.local_devices())
    total = compilations = 0
    for name, run in prepared:
        number = len(planned(run.config))
        if name:
            print(f"{name}: {count(number, 'image')}")
        total += number
    loads = grouped((run for _, run in prepared), lambda run: weights_key(run.config))
    for same_weights in loads:
        for group in grouped(same_weights, lambda run: program_key(run.config)):
            compilations += _show_group(group, devices)
    counts = ((len(prepared), "run"), (total, "image"), (len(loads), "load"), (compilations, "compilation"))
    print(f"{', '.join(count(number, noun) for number, noun in counts)}; nothing was made")


def _show_group(group: Sequence[PreparedRun], num_devices: int) -> int:
    """Prints what runs of one program come to; returns how many programs are compiled for them."""
    config = group[0].config
    size = num_devices * config.batch_size_per_device
    kinds = [(spec.uses_cfg, run.num_calls(spec)) for run in group for spec in make_specs(run.config)]
    batches, programs = count_batches(kinds, size), num_programs(guided for guided, _ in kinds)
    print(
        f"model={config.model.name} precision={config.precision.name} {config.width}x{config.height}: "
        f"{count(len(group), 'run')}, {count(len(kinds), 'image')} in {batches} batches of {size}, "
        f"{programs} programs"
    )
    return programs


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
