"""The positions of a Parquet sink, read without owning or changing anything of it, also while others write.

Not here: the sink itself (`connectors.parquet.sink`), whose ``open`` binds a new directory to its pipeline.
"""

from __future__ import annotations

from pathlib import Path

from connectors.parquet.files import Directories
from connectors.parquet.filesystem import OsFileSystem, reaching
from connectors.parquet.identity import IdentityFiles
from connectors.parquet.layout import HIDDEN, ShardLayout
from connectors.parquet.log import read_chain
from engine.batch import Stream


def read_positions(root: Path, *, pipeline: str, stream: Stream) -> dict[int, int | None]:
    """The committed position of each of the stream's partitions, None where there is none; blocks.

    Raises SinkMismatch and RecreatedTopic for a sink of something else, SinkUnavailable for one that cannot
    be read.
    """
    filesystem = OsFileSystem()
    partitions = range(stream.partitions)
    with reaching(root):
        if filesystem.size(root / HIDDEN) is None:
            return dict.fromkeys(partitions)
        files = IdentityFiles(filesystem, root, Directories(filesystem, root))
        history = files.history()
        if not history:
            return dict.fromkeys(partitions)
        bound = history[-1]
        files.check(bound, pipeline, stream)
        layouts = [
            ShardLayout(root, bound.topic, bound.topic_id, partition, bound.incarnation) for partition in partitions
        ]
        return {layout.partition: read_chain(filesystem, layout.log).position for layout in layouts}
