"""The decoder of a pipeline: of the declared schema, or of one inferred from its first records and then kept.

An inferred schema is made durable by the sink before any row, and every shard and later run adopts it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from concurrent.futures import Executor

import pyarrow as pa

from engine.batch import Batch, from_rows
from engine.config import SchemaConfig
from engine.protocols import Sink
from engine.values import Decoder, JsonDecoder, RawDecoder, RecordColumns, TextDecoder, infer

log = logging.getLogger("headrace.decoding")

#: A record that the compiled decoder takes.
WARMING = from_rows("", 0, [(0, 0, None, b'{"warm": 1}', ())], start=0, end=1)

#: A decoder that takes longer than this to be ready is being compiled.
SAY_SECONDS = 2.0

#: The name under which the sink keeps an inferred schema.
SCHEMA_NAME = "values"


class Decoders:
    """`engine.processing.DecoderSource` for one pipeline. Raises ValueError for columns that cannot be."""

    def __init__(self, config: SchemaConfig, sink: Sink, executor: Executor) -> None:
        self._config = config
        self._sink = sink
        self._executor = executor
        self._inferring = asyncio.Lock()
        self._decoder: Decoder | None = None
        if config.format == "text":
            self._decoder = self._whole(TextDecoder(trace=config.trace, on_null_value=config.on_null_value))
        elif config.format == "raw":
            self._decoder = self._whole(RawDecoder(trace=config.trace))
        elif config.columns is not None:
            self._decoder = self._json(config.columns, rest=config.rest)

    @property
    def schema(self) -> pa.Schema | None:
        """The decoded columns, once they are known."""
        return None if self._decoder is None else self._decoder.schema

    async def open(self) -> None:
        """Adopt what an earlier run inferred, and have the decoder compiled.

        The first process on a machine compiles it, for about ten seconds in which Python gets little done: too
        long for a member of a group. Later ones load it.
        """
        if self._config.format == "json":
            warm = functools.partial(JsonDecoder({}, rest=True).decode, WARMING)
            warming = asyncio.get_running_loop().run_in_executor(self._executor, warm)
            await asyncio.wait({warming}, timeout=SAY_SECONDS)
            if not warming.done():
                log.info("compiling the JSON decoder, once for this machine; that takes about ten seconds")
            await warming
        if self._decoder is None and (known := await self._sink.schema(SCHEMA_NAME)) is not None:
            self._decoder = self._json(known, rest=True)

    async def decoder(self, batch: Batch) -> Decoder:
        if self._decoder is not None:
            return self._decoder
        async with self._inferring:
            if self._decoder is None:
                found = await asyncio.get_running_loop().run_in_executor(self._executor, infer, batch)
                if not len(found):
                    # Not one record could be read; what follows may still teach the columns.
                    return self._json(found, rest=True)
                kept = await self._sink.adopt_schema(SCHEMA_NAME, found)
                log.info("columns inferred from the first records: %s", ", ".join(kept.names))
                self._decoder = self._json(kept, rest=True)
        return self._decoder

    def _json(self, columns: Mapping[str, str] | pa.Schema, *, rest: bool) -> Decoder:
        config = self._config
        return self._whole(JsonDecoder(columns, rest=rest, trace=config.trace, on_null_value=config.on_null_value))

    def _whole(self, decoder: Decoder) -> Decoder:
        return RecordColumns(decoder) if self._config.record else decoder
