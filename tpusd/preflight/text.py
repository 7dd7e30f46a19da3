"""A preflight report as a table for people."""

from tpusd.preflight.compilation import ProgramReport
from tpusd.preflight.report import GiB, Memory, Report, Setting


def report_text(report: Report) -> str:
    """The report as lines of text."""
    setting, costs = report.setting, report.costs
    devices = f"{setting.num_chips} chips" + (
        f", {setting.num_devices} devices" if setting.num_devices != setting.num_chips else ""
    )
    lines = [
        f"{setting.model}, {setting.height}x{setting.width}, {setting.precision}, {setting.sampler} with "
        f"{setting.model_calls} model calls, {_guided(setting)} classifier-free guidance{_reused(setting)}",
        f"on {setting.topology} ({devices}), {setting.batch_size_per_device} images a device at a time",
        "",
        f"  images         {setting.num_images} in {setting.num_batches} batches of "
        f"{setting.num_devices * setting.batch_size_per_device}; {setting.num_compilations} compilations",
        f"  memory         {_memory(report.memory)}",
    ]
    if report.memory.largest_batch is not None:
        lines.append(f"  largest batch  batch_size_per_device={report.memory.largest_batch}")
    if costs is not None:
        ratio = costs.seconds_per_image / costs.floor_seconds_per_image
        lines += [
            f"  work           {costs.flops_per_image / 1e12:.2f} TFLOP an image",
            f"  estimate       {costs.seconds_per_image:.3f} s an image on one device; "
            f"{costs.images_per_second:.2f} images/s on the slice",
            f"  floor          {costs.floor_seconds_per_image:.3f} s an image at peak rate; "
            f"the estimate is {ratio:.2f} times that",
            f"  compiling      {costs.compile_seconds:.0f} s here",
        ]
    for name, program in report.programs.items():
        lines += ["", *_program(name, program, setting)]
    lines += [
        "",
        f"Times are the estimates of the TPU compiler (libtpu {setting.libtpu}), not measurements. They rank programs",
        "and overstate element-wise work; the floor is what no program can beat.",
    ]
    return "\n".join(lines)


def _guided(setting: Setting) -> str:
    if setting.guided_calls in (0, setting.model_calls):
        return "with" if setting.guided else "without"
    return f"{setting.guided_calls} of them with"


def _reused(setting: Setting) -> str:
    return f", {setting.reused_calls} of them reuse the deep half of the denoiser" if setting.reused_calls else ""


def _memory(memory: Memory) -> str:
    usable = f"{memory.memory_bytes / GiB:.2f} GiB that a device has for programs"
    if memory.peak_bytes is None:
        return f"DOES NOT FIT: {memory.reason} ({usable})"
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    return (
        f"{verdict}: peak {memory.peak_bytes / GiB:.2f} GiB of the {usable}; weights {memory.weights_bytes / GiB:.2f}"
    )


def _program(name: str, program: ProgramReport, setting: Setting) -> list[str]:
    per_image = program.seconds / setting.batch_size_per_device
    lines = [
        f"{name}: {per_image * 1e3:.1f} ms an image ({program.seconds / program.floor_seconds:.2f} times the floor), "
        f"temporaries {program.temporary_bytes / GiB:.2f} GiB, peak {program.peak_bytes / GiB:.2f} GiB, "
        f"compiled in {program.compile_seconds:.0f} s"
    ]
    if name.startswith("denoise"):
        guided = setting.guided_calls or setting.model_calls
        calls = guided if name == "denoise" else setting.model_calls - guided
        step = program.seconds / calls / setting.batch_size_per_device
        of_all = " on average" if setting.reused_calls else ""
        lines.append(f"  a step{of_all}: {step * 1e3:.2f} ms an image")
    if program.seconds_of_kernels:
        lines.append(
            f"  of it {program.seconds_of_kernels / setting.batch_size_per_device * 1e3:.1f} ms hand-written kernels, "
            "at the price that tpusd.preflight.hlo_cost states"
        )
    if program.unpriced_kernels:
        lines.append(f"  not counted, for they declare no cost: {', '.join(program.unpriced_kernels)}")
    lines += [f"  {seconds / program.seconds:6.1%}  {operation}" for operation, seconds in program.costliest.items()]
    return lines
