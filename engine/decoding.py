"""The decoder of a pipeline: of the declared schema, or of one inferred from its first records and then kept.

An inferred schema is made durable by the sink before any row, and every shard and later run adopts it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import pyarrow as pa

from engine.batch import Batch, from_rows
from engine.config import REGISTERED_FORMATS, SchemaConfig
from engine.protocols import Sink
from engine.values import Decoder, JsonDecoder, RawDecoder, RecordColumns, TextDecoder, infer
from engine.values.registered import Readers, RegisteredDecoder
from engine.values.wire import PrefixedDecoder, SchemaSource, without_prefix

log = logging.getLogger("headrace.decoding")

#: A record that the compiled decoder takes.
WARMING = from_rows("", 0, [(0, 0, None, b'{"warm": 1}', ())], start=0, end=1)

#: A decoder that takes longer than this to be ready is being compiled.
SAY_SECONDS = 2.0

#: The name under which the sink keeps an inferred schema.
SCHEMA_NAME = "values"


class Decoders:
    """`engine.processing.DecoderSource` for one pipeline. Raises ValueError for columns that cannot be.

    ``registry`` is where the schemas of Avro and Protobuf values come from.
    """

    def __init__(
        self, config: SchemaConfig, sink: Sink, executor: Executor, registry: SchemaSource | None = None
    ) -> None:
        self._config = config
        self._sink = sink
        self._executor = executor
        self._inferring = asyncio.Lock()
        self._fetching = asyncio.Lock()
        self._readers = _readers(config.format, registry) if config.format in REGISTERED_FORMATS else None
        self._decoder: Decoder | None = None
        if config.format == "text":
            self._decoder = self._whole(TextDecoder(trace=config.trace, on_null_value=config.on_null_value))
        elif config.format == "raw":
            self._decoder = self._whole(RawDecoder(trace=config.trace))
        elif config.columns is not None:
            self._decoder = self._typed(config.columns, rest=config.rest)

    @property
    def schema(self) -> pa.Schema | None:
        """The decoded columns, once they are known."""
        return None if self._decoder is None else self._decoder.schema

    async def open(self) -> None:
        """Adopt what an earlier run inferred, and have the decoder compiled.

        The first process on a machine compiles it, for about ten seconds in which Python gets little done: too
        long for a member of a group. Later ones load it.
        """
        warm = self._warm()
        if warm is not None:
            warming = asyncio.get_running_loop().run_in_executor(self._executor, warm)
            await asyncio.wait({warming}, timeout=SAY_SECONDS)
            if not warming.done():
                name = self._config.format
                log.info("compiling the decoder of %s, once for this machine; that takes about ten seconds", name)
            await warming
        if self._decoder is None and (known := await self._sink.schema(SCHEMA_NAME)) is not None:
            self._decoder = self._typed(known, rest=self._rest)

    def _warm(self) -> Callable[[], object] | None:
        """What has the format's compiled code ready, where it has some."""
        if self._config.format == "json":
            return functools.partial(JsonDecoder({}, rest=True).decode, WARMING)
        if self._config.format == "avro":
            from engine.values.avro import warm

            return warm
        return None

    async def decoder(self, batch: Batch) -> Decoder:
        """Raises `engine.errors.RegistryUnavailable` when a schema that the batch needs cannot be had."""
        if self._readers is not None:
            loop = asyncio.get_running_loop()
            if not await loop.run_in_executor(self._executor, self._readers.is_ready, batch):
                # Not in the decoders' threads: a registry that hangs would keep them from all other pipelines.
                async with self._fetching:
                    await asyncio.to_thread(self._readers.fetch, batch)
        if self._decoder is not None:
            return self._decoder
        async with self._inferring:
            if self._decoder is None:
                found = await asyncio.get_running_loop().run_in_executor(self._executor, self._infer, batch)
                if not len(found):
                    # Not one record could be read; what follows may still teach the columns.
                    return self._typed(found, rest=True)
                kept = await self._sink.adopt_schema(SCHEMA_NAME, found)
                log.info("columns inferred from the first records: %s", ", ".join(kept.names))
                self._decoder = self._typed(kept, rest=self._rest)
        return self._decoder

    @property
    def _rest(self) -> bool:
        """Whether inferred columns have ``_rest`` beside them: those of JSON always, for they are a guess."""
        return self._readers is None or self._config.rest

    def _infer(self, batch: Batch) -> pa.Schema:
        if self._readers is not None:
            return self._readers.infer(batch)
        return infer(without_prefix(batch)[0] if self._config.prefix else batch)

    def _typed(self, columns: Mapping[str, str] | pa.Schema, *, rest: bool) -> Decoder:
        """The decoder of a format that has columns."""
        config = self._config
        if self._readers is not None:
            return self._whole(
                RegisteredDecoder(
                    self._readers, columns, rest=rest, trace=config.trace, on_null_value=config.on_null_value
                )
            )
        decoder = JsonDecoder(columns, rest=rest, trace=config.trace, on_null_value=config.on_null_value)
        return self._whole(PrefixedDecoder(decoder) if config.prefix else decoder)

    def _whole(self, decoder: Decoder) -> Decoder:
        return RecordColumns(decoder) if self._config.record else decoder


def _readers(form: str, registry: SchemaSource | None) -> Readers:
    """What reads the values of a format. The libraries behind it are loaded for who uses them alone."""
    assert registry is not None, "the configuration asks for registry.url"
    if form == "avro":
        from engine.values.avro import AvroFormat

        return Readers(AvroFormat(), registry)
    from engine.values.protobuf import ProtobufFormat

    return Readers(ProtobufFormat(), registry)
