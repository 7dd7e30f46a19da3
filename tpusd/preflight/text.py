"""A preflight report as a table for people."""

from tpusd.preflight.report import GiB, ProgramReport, Report


def report_text(report: Report) -> str:
    devices = f"{report.num_chips} chips" + (
        f", {report.num_devices} devices" if report.num_devices != report.num_chips else ""
    )
    lines = [
        f"{report.model}, {report.height}x{report.width}, {report.precision}, {report.sampler} with "
        f"{report.model_calls} model calls, {'with' if report.guided else 'without'} classifier-free guidance",
        f"on {report.topology} ({devices}), {report.batch_size_per_device} images a device at a time",
        "",
        f"  images         {report.num_images} in {report.num_batches} batches of "
        f"{report.num_devices * report.batch_size_per_device}; {report.num_compilations} compilations",
        f"  memory         {_memory(report)}",
    ]
    if report.largest_batch is not None:
        lines.append(f"  largest batch  batch_size_per_device={report.largest_batch}")
    if report.seconds_per_batch is not None:
        ratio = report.seconds_per_image / report.floor_seconds_per_image
        lines += [
            f"  work           {report.flops_per_image / 1e12:.2f} TFLOP an image",
            f"  estimate       {report.seconds_per_image:.3f} s an image on one device; "
            f"{report.images_per_second:.2f} images/s on the slice",
            f"  floor          {report.floor_seconds_per_image:.3f} s an image at peak rate; "
            f"the estimate is {ratio:.2f} times that",
            f"  compiling      {report.compile_seconds:.0f} s here",
        ]
    for name, program in report.programs.items():
        lines += ["", *_program(name, program, report)]
    lines += [
        "",
        f"Times are the estimates of the TPU compiler (libtpu {report.libtpu}), not measurements. They rank programs",
        "and overstate element-wise work; the floor is what no program can beat.",
    ]
    return "\n".join(lines)


def _memory(report: Report) -> str:
    usable = f"{report.memory_bytes / GiB:.2f} GiB that a device has for programs"
    if report.peak_bytes is None:
        return f"DOES NOT FIT: {report.reason} ({usable})"
    verdict = "fits" if report.fits else "DOES NOT FIT"
    return (
        f"{verdict}: peak {report.peak_bytes / GiB:.2f} GiB of the {usable}; weights {report.weights_bytes / GiB:.2f}"
    )


def _program(name: str, program: ProgramReport, report: Report) -> list[str]:
    per_image = program.seconds / report.batch_size_per_device
    lines = [
        f"{name}: {per_image * 1e3:.1f} ms an image ({program.seconds / program.floor_seconds:.2f} times the floor), "
        f"temporaries {program.temporary_bytes / GiB:.2f} GiB, peak {program.peak_bytes / GiB:.2f} GiB, "
        f"compiled in {program.compile_seconds:.0f} s"
    ]
    if name == "denoise":
        step = program.seconds / report.model_calls / report.batch_size_per_device
        lines.append(f"  a step: {step * 1e3:.2f} ms an image")
    if program.seconds_of_kernels:
        lines.append(
            f"  of it {program.seconds_of_kernels / report.batch_size_per_device * 1e3:.1f} ms hand-written kernels, "
            "at the price that tpusd.preflight.hlo_cost states"
        )
    if program.unpriced_kernels:
        lines.append(f"  not counted, for they declare no cost: {', '.join(program.unpriced_kernels)}")
    lines += [f"  {seconds / program.seconds:6.1%}  {operation}" for operation, seconds in program.costliest.items()]
    return lines
