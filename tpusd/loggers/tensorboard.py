"""Reports a run to TensorBoard: an event file in the run directory."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd import storage
from tpusd.loggers.base import LoggedRun
from tpusd.records.manifest import ImageRecord
from tpusd.storage.pictures import open_picture

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

DIRECTORY = "tensorboard"  # inside the run directory


def log_to_tensorboard(run: LoggedRun) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    values = list(_values(run))
    writer = EventFileWriter(str(run.path / DIRECTORY))
    try:
        for value in values:
            writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))
    finally:
        writer.close()


def _values(run: LoggedRun) -> Iterator["Summary.Value"]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    for name, value in run.metrics.items():
        yield Summary.Value(tag=name, simple_value=value)
    yield _text("config", json.dumps(run.parameters, indent=1))
    for record in run.images:
        yield _image(run.path, record)
        yield _text(f"{Path(record.file_name).stem}/prompt", record.prompt)


def _text(tag: str, words: str) -> "Summary.Value":
    """TensorBoard shows Markdown, so the text is indented: as code it stays as it is."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    code = "    " + words.replace("\n", "\n    ")
    tensor = TensorProto(dtype=DT_STRING, string_val=[code.encode()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _image(path: Path, record: ImageRecord) -> "Summary.Value":
    from tensorboard.compat.proto.summary_pb2 import Summary

    file = path / record.file_name
    with open_picture(file) as opened:
        width, height = opened.size
    data = storage.read_file(file)
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary.Value(tag=file.stem, image=picture)
