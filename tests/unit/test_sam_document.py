"""Reading a template's text: CloudFormation's tags, and files that are none, too large, or bombs."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.sam import document, is_template


def parse(text: str) -> object:
    return document.parse(text, source="template.yaml")


SHORT = [
    ("!Ref Name", {"Ref": "Name"}),
    ("!Condition IsProd", {"Condition": "IsProd"}),
    ("!GetAtt Stream.Arn", {"Fn::GetAtt": ["Stream", "Arn"]}),
    ("!GetAtt Nested.Outputs.Arn", {"Fn::GetAtt": ["Nested", "Outputs.Arn"]}),
    ("!GetAtt [Stream, Arn]", {"Fn::GetAtt": ["Stream", "Arn"]}),
    ('!Sub "${A}-b"', {"Fn::Sub": "${A}-b"}),
    ('!Sub ["${A}", {A: !Ref B}]', {"Fn::Sub": ["${A}", {"A": {"Ref": "B"}}]}),
    ('!Join ["-", [a, !Ref B]]', {"Fn::Join": ["-", ["a", {"Ref": "B"}]]}),
    ("!Select [0, !Split [',', 'a,b']]", {"Fn::Select": [0, {"Fn::Split": [",", "a,b"]}]}),
    ("!If [IsProd, 1, 2]", {"Fn::If": ["IsProd", 1, 2]}),
    ("!Equals [!Ref A, b]", {"Fn::Equals": [{"Ref": "A"}, "b"]}),
    ("!Not [!Condition A]", {"Fn::Not": [{"Condition": "A"}]}),
    ("!And [!Condition A, !Condition B]", {"Fn::And": [{"Condition": "A"}, {"Condition": "B"}]}),
    ("!Or [!Condition A, !Condition B]", {"Fn::Or": [{"Condition": "A"}, {"Condition": "B"}]}),
    ("!FindInMap [A, B, C]", {"Fn::FindInMap": ["A", "B", "C"]}),
    ("!ImportValue name", {"Fn::ImportValue": "name"}),
    ("!Base64 text", {"Fn::Base64": "text"}),
    ("!GetAZs ''", {"Fn::GetAZs": ""}),
    ("!Transform {Name: x}", {"Fn::Transform": {"Name": "x"}}),
]


@pytest.mark.parametrize(("short", "long"), SHORT)
def test_a_short_tag_is_its_long_form(short: str, long: object) -> None:
    """As CloudFormation reads it, whatever it is put on."""
    assert parse(f"value: {short}") == {"value": long}


def test_json_and_yaml_read_the_same() -> None:
    """A template may be written either way, and a flow mapping of YAML begins like JSON."""
    expected = {"Resources": {"A": {"Type": "T", "Properties": {"N": 1, "R": {"Ref": "B"}}}}}
    assert parse('{"Resources": {"A": {"Type": "T", "Properties": {"N": 1, "R": {"Ref": "B"}}}}}') == expected
    assert parse("{Resources: {A: {Type: T, Properties: {N: 1, R: !Ref B}}}}") == expected


def test_dates_stay_text_and_keys_are_text() -> None:
    """The format version looks like a date, and map keys may look like numbers."""
    read = parse("AWSTemplateFormatVersion: 2010-09-09\nMappings: {A: {1: {true: x}}}")
    assert read == {"AWSTemplateFormatVersion": "2010-09-09", "Mappings": {"A": {"1": {"true": "x"}}}}


def test_aliases_and_merges_are_carried_out() -> None:
    """What a template's author shares with anchors; a mapping's own keys outrank merged ones."""
    read = parse("a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}")
    assert read == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


def tower() -> str:
    """Anchors that each nest the last one: shallow as text, deep when written out."""
    lines = ["- &a0 [x]", *(f"- &a{n} {'[' * 30}*a{n - 1}{']' * 30}" for n in range(1, 60))]
    return "a:\n" + "\n".join(lines)


REFUSED = [
    (bomb(), "has more than 200,000 values"),
    (tower(), "is nested more than 64 deep"),
    ("a: &a [*a]", "the alias *a stands within itself"),
    ("a: " + "[" * 100_000, "is nested more than 64 deep"),
    ('{"a": ' + "[" * 100_000, "is nested more than 64 deep"),
    ('{"a": ' + "[" * 70 + "]" * 70 + "}", "is nested more than 64 deep"),
    ("a: 1\na: 2", "'a' stands twice"),
    ('{"a": 1, "a": 2}', "'a' stands twice"),
    ("a: !Nonsense x", "the tag !Nonsense is none of CloudFormation's"),
    ("a: !!python/object/apply:os.system [true]", "is not valid YAML"),
    ("a: [1", "is not valid YAML"),
    ("? [a]\n: b", "is not valid YAML"),
    ("a: " + "1" * 5_000, "is not valid YAML"),
    ("a: 1\n---\nb: 2", "is not valid YAML"),
    ("", "its top level has to be a mapping"),
    ("- a", "its top level has to be a mapping"),
    ("\x00", "is not valid YAML"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_template_is_refused(text: str, said: str) -> None:
    """Quickly, without building what it would grow to, and without running anything."""
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert said in str(raised.value)


def test_a_file_is_bounded(tmp_path: Path) -> None:
    """A template has at most 1 MB; no more than that is read."""
    path = tmp_path / "template.yaml"
    path.write_bytes(b"#" * document.TEXT_BYTES_MAX)
    assert len(document.read_text(path)) == document.TEXT_BYTES_MAX
    path.write_bytes(b"#" * (document.TEXT_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="a template has at most 1 MB"):
        document.read_text(path)


@pytest.mark.parametrize(("content", "said"), [(None, "there is no such file"), (b"\xff\xfe", "cannot be read")])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, said: str) -> None:
    """Missing, or no UTF-8."""
    path = tmp_path / "template.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        document.read_text(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("template.yaml", "", True),
        ("template.yml", "", True),
        ("packaged.json", "", True),
        ("headrace.toml", "Resources: {}", False),
        ("stack", "AWSTemplateFormatVersion: '2010-09-09'\n", True),
        ("stack", "# SAM\nTransform: AWS::Serverless-2016-10-31\n", True),
        ("stack", '{"Resources": {}}', True),
        ("stack", '{"Description": "x", "Resources": {}}', True),
        ("stack", '[pipelines.a.source]\ntopic = "Resources"\n', False),
        ("missing", None, False),
    ],
)
def test_templates_are_known_by_name_or_content(
    tmp_path: Path, name: str, content: str | None, expected: bool
) -> None:
    """TOML never is one; other names are looked into."""
    if content is not None:
        (tmp_path / name).write_text(content)
    assert is_template(tmp_path / name) is expected
