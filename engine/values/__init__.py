"""Values of records as typed Arrow columns: formats, column types, the schema, and what is wrong with a record."""

from engine.values.decoder import BATCH_BYTES_MAX, Decoded, Decoder, OnNullValue
from engine.values.documents import DEPTH_MAX
from engine.values.json_decoder import JsonDecoder, ReferenceJsonDecoder
from engine.values.json_infer import infer
from engine.values.raw_decoder import RawDecoder
from engine.values.record import RECORD, RecordColumns
from engine.values.schema import REST, is_reserved
from engine.values.text_decoder import TextDecoder
from engine.values.trace import TRACE
from engine.values.types import column_field, column_type, type_name_of

__all__ = [
    "BATCH_BYTES_MAX",
    "DEPTH_MAX",
    "RECORD",
    "REST",
    "TRACE",
    "Decoded",
    "Decoder",
    "JsonDecoder",
    "OnNullValue",
    "RawDecoder",
    "RecordColumns",
    "ReferenceJsonDecoder",
    "TextDecoder",
    "column_field",
    "column_type",
    "infer",
    "is_reserved",
    "type_name_of",
]
