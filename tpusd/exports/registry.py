"""The layouts by name: a new one is a file beside this and a line here."""

from collections.abc import Mapping

from tpusd.exports.base import Exporter
from tpusd.exports.geneval import write_geneval
from tpusd.exports.parquet import write_parquet
from tpusd.exports.webdataset import write_webdataset

EXPORTERS: Mapping[str, Exporter] = {
    "webdataset": write_webdataset,
    "geneval": write_geneval,
    "parquet": write_parquet,
}
