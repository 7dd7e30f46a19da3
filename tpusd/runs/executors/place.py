"""A config's executor -> where its batches are made, found before there is a progress bar."""

import contextlib
from collections.abc import Callable, Iterator

from tpusd.config.executor import ExecutorConfig
from tpusd.engine.faults import local_devices
from tpusd.process.progress import Progress
from tpusd.runs.executors.base import Executor
from tpusd.runs.executors.cluster import ClusterExecutor
from tpusd.runs.executors.local import LoadPipeline, LocalExecutor


def check_place(config: ExecutorConfig) -> None:
    """Refuses what `opened` would refuse, as far as a look tells. Raises UserError."""
    if config.name == "ray":
        from tpusd.runs.executors.ray import check_cluster

        check_cluster(config.address)


@contextlib.contextmanager
def opened(config: ExecutorConfig, load: LoadPipeline) -> Iterator[Callable[[Progress], Executor]]:
    """Finds the devices, which may take seconds and says so in a line of its own; yields what makes the executor.

    load: how this process loads a pipeline. Workers of a cluster load their own.
    Raises UserError where there are no devices.
    """
    if config.name == "local":
        local_devices()
        yield lambda progress: LocalExecutor(progress, load=load)
        return
    from tpusd.runs.executors.ray import RayHosts

    with ClusterExecutor(RayHosts.connect(config), unit_seconds=config.unit_seconds) as executor:
        executor.start()

        def watched(progress: Progress) -> Executor:
            executor.watch(progress)
            return executor

        yield watched
