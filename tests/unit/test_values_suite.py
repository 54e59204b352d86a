"""The JSON decoder on inputs made to break parsers: the JSON parsing test suite, and nasty strings."""

import json
import os
from pathlib import Path

import pytest

from engine.batch import Batch, from_rows
from engine.values import JsonDecoder, TextDecoder, infer

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
SUITE = sorted((DATA / "json-test-suite" / "test_parsing").glob("*.json"))
TRANSFORM = sorted((DATA / "json-test-suite" / "test_transform").glob("*.json"))
BLNS = DATA / "blns" / "blns.json"

#: A sample of each kind, so that a clone without the data is tested too; y: accept, n: refuse, i: either.
SAMPLE = {
    "y_empty": b"{}",
    "y_blanks": b' \t\r\n{ "a" : [ ] } \n',
    "y_escapes": rb'{"a":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\u0000"}',
    "y_key_escaped_null": rb'{"foo\u0000bar":42}',
    "y_empty_key": b'{"":0}',
    "y_numbers": b'{"a":[0,-0,-1,1e1,1E+2,1.5e-3,-0.0,123456789012345678901234567890]}',
    "y_noncharacter": b'{"a":"\xf4\x8f\xbf\xbf\xef\xbf\xbf"}',
    "y_del": b'{"a":"\x7f"}',
    "n_empty": b"",
    "n_blank": b" ",
    "n_open": b"{",
    "n_open_string": b'{"a":"',
    "n_comma": b'{"a":1,}',
    "n_two_commas": b'{"a":1,,"b":2}',
    "n_single_quote": b"{'a':0}",
    "n_no_colon": b'{"a" 1}',
    "n_two_colons": b'{"a"::1}',
    "n_number_key": b"{1:1}",
    "n_unquoted_key": b"{a:1}",
    "n_comment": b'{"a":1}//',
    "n_block_comment": b'{"a":/**/1}',
    "n_trailing": b'{"a":1}#',
    "n_two_documents": b'{"a":1}{"b":2}',
    "n_null_after": b'{"a":1}\x00',
    "n_leading_zero": b'{"a":012}',
    "n_plus": b'{"a":+1}',
    "n_dot": b'{"a":.5}',
    "n_dot_end": b'{"a":1.}',
    "n_hex": b'{"a":0x1}',
    "n_exponent": b'{"a":1e}',
    "n_minus": b'{"a":-}',
    "n_nan": b'{"a":NaN}',
    "n_infinity": b'{"a":-Infinity}',
    "n_bad_escape": rb'{"a":"\x00"}',
    "n_short_escape": rb'{"a":"\u00A"}',
    "n_raw_newline": b'{"a":"\n"}',
    "n_raw_tab": b'{"a":"\t"}',
    "n_bom": b'\xef\xbb\xbf{"a":1}',
    "n_capital_true": b'{"a":True}',
    "n_form_feed": b'{"a":\x0c1}',
    "n_no_break_space": b'{"a":\xc2\xa01}',
    "n_open_arrays": b"[" * 100_000,
    "n_open_objects": b'{"":' * 100_000,
    "n_lone_utf8": b'{"a":"\xe5"}',
    "i_lone_surrogate": rb'{"a":"\ud800"}',
    "i_surrogate_utf8": b'{"a":"\xed\xa0\x80"}',
    "i_overlong": b'{"a":"\xc0\xaf"}',
    "i_utf16": '{"a":"é"}'.encode("utf-16"),
    "i_huge": b'{"a":1e9999}',
    "i_deep": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
}
BAD_STRINGS = [
    *("", "undefined", "NaN", "1E+02", "0x0", "\u0000\u0001\x7f\x80", "\u200b\ufeff\u2028", "Ω≈ç√∫", "👩🏽 🇺🇸"),
    *("田中さんにあげて", "בְּרֵאשִׁית", "Ṱ̺̺̕o͞ ̷i̲̬͇̪͙n̝̗͕v̟̜̘̦͟o̶̙̰̠kè͚̮̺̪̹̱̤", "<script>alert(1)</script>", "'; DROP TABLE users--"),
    *("{{ '%s' % 1 }}", '":{" : "\\":'),
]


def batch_of(*values: bytes | None) -> Batch:
    rows = [(offset, 1000, None, value, ()) for offset, value in enumerate(values)]
    return from_rows("t", 0, rows, start=0, end=len(rows))


def judge(name: str, raw: bytes) -> None:
    """One input of the suite between two good records, which flow whatever it is."""
    batch = batch_of(b'{"good":1}', raw, b'{"good":2}')
    for decoder in (JsonDecoder({"good": "BIGINT"}, rest=True), JsonDecoder({"a": "VARCHAR"}, rest=False)):
        decoded = decoder.decode(batch)
        offsets = decoded.columns.column("_offset").to_pylist()
        assert set(offsets) >= {0, 2}
        reasons = [fault.reason for fault in decoded.faults]
        if name.startswith("n_"):
            assert offsets == [0, 2]
            assert len(reasons) == 1
        if name.startswith("y_") and reasons and "rest" not in decoder.schema.names:
            strict = ("no JSON object but", "more than once", "wants VARCHAR")
            assert any(words in reasons[0] for words in strict)
    infer(batch)
    TextDecoder().decode(batch)


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    """Each sample is taken or refused as its name says, alone, and nothing raises."""
    judge(name, SAMPLE[name])
    if name.startswith("y_"):
        decoded = JsonDecoder({}, rest=True).decode(batch_of(SAMPLE[name]))
        assert decoded.faults == ()


@pytest.mark.skipif(not SUITE, reason="the JSON parsing test suite is not there")
def test_suite() -> None:
    """Each input of the suite is taken or refused as its name says; y_ inputs that are no object only for that."""
    assert len(SUITE) > 300
    for path in SUITE:
        raw = path.read_bytes()
        judge(path.name, raw)
        [*reasons] = JsonDecoder({}, rest=True).decode(batch_of(raw)).faults
        if path.name.startswith("y_"):
            value = json.loads(raw)
            if "duplicated" in path.name:
                assert "more than once" in reasons[0].reason
            elif isinstance(value, dict):
                assert reasons == []
            else:
                assert "no JSON object but" in reasons[0].reason
        wrapped = b'{"x":' + raw + b"}"
        assert len(JsonDecoder({"x": "JSON"}, rest=True).decode(batch_of(wrapped)).faults) <= 1


@pytest.mark.skipif(not TRANSFORM, reason="the JSON parsing test suite is not there")
def test_transform_suite_keeps_every_digit() -> None:
    """Numbers and strings that parsers change in silence come back as they were, or are faults."""
    for path in TRANSFORM:
        raw = path.read_bytes()
        decoded = JsonDecoder({"x": "JSON"}, rest=False).decode(batch_of(b'{"x":' + raw + b"}"))
        for text in decoded.columns.column("x").to_pylist():
            assert json.loads(text, parse_float=_number, parse_int=_number) == json.loads(
                raw, parse_float=_number, parse_int=_number
            )


def _number(text: str) -> object:
    from decimal import Decimal

    return Decimal(text)


@pytest.mark.parametrize("ascii_only", [False, True])
def test_strings_that_break_programs(ascii_only: bool) -> None:
    """Strings come back the same from VARCHAR, from JSON, from _rest and from text, escaped or not."""
    strings = [*BAD_STRINGS, *(json.loads(BLNS.read_text()) if BLNS.exists() else ())]
    raws = [json.dumps({"v": s, "j": s, s + "?": s}, ensure_ascii=ascii_only).encode() for s in strings]
    decoded = JsonDecoder({"v": "VARCHAR", "j": "JSON"}, rest=True).decode(batch_of(*raws))
    assert decoded.faults == ()
    assert decoded.columns.column("v").to_pylist() == strings
    assert [json.loads(text) for text in decoded.columns.column("j").to_pylist()] == strings
    assert [json.loads(text) for text in decoded.columns.column("_rest").to_pylist()] == [
        {s + "?": s} for s in strings
    ]
    lines = TextDecoder().decode(batch_of(*(s.encode() for s in strings))).columns.column("line")
    assert lines.to_pylist() == strings
