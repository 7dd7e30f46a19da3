"""TensorBoard."""

from pathlib import Path

from tpusd.loggers.base import TENSORBOARD, LoggedRun
from tpusd.records.manifest import ImageRecord


def log_to_tensorboard(run: LoggedRun) -> None:
    import json
    import time

    from PIL import Image
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def text(tag: str, words: str) -> Summary.Value:
        tensor = TensorProto(dtype=DT_STRING, string_val=[words.encode()])
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)

    def image(record: ImageRecord) -> Summary.Value:
        file = run.path / record.file_name
        with Image.open(file) as opened:
            width, height = opened.size
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
        return Summary.Value(tag=Path(record.file_name).stem, image=picture)

    values = [Summary.Value(tag=name, simple_value=value) for name, value in run.metrics.items()]
    # The text plugin shows Markdown, so texts go in as code, indented.
    values.append(text("config", "    " + json.dumps(run.parameters, indent=1).replace("\n", "\n    ")))
    for record in run.images:
        values += [
            image(record),
            text(f"{Path(record.file_name).stem}/prompt", "    " + record.prompt.replace("\n", "\n    ")),
        ]
    writer = EventFileWriter(str(run.path / TENSORBOARD))
    try:
        for value in values:
            writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))
    finally:
        writer.close()
