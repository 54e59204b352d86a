"""The text of a template as plain mappings, lists and scalars; intrinsic functions in their long form.

`!Ref x` becomes `{"Ref": "x"}`, `!GetAtt a.b` becomes `{"Fn::GetAtt": ["a", "b"]}`. Not here: what they give
(`engine.sam.intrinsics`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from engine.errors import ConfigError

#: AWS takes templates of at most 1 MB (CloudFormation quotas).
TEXT_BYTES_MAX = 1024 * 1024

#: How deep a template may be nested, and how many values it may have with every alias written out.
DEPTH_MAX = 64
VALUES_MAX = 200_000

#: Any of these at the beginning of a line, or as a JSON member, makes a file a template.
_MARKS = re.compile(r"""(?m)(?:^|[{,])[ \t]*["']?(AWSTemplateFormatVersion|Transform|Resources)["']?[ \t]*:""")

#: Functions that have a short tag, and their long names (CloudFormation's intrinsic function reference).
_LONG = {"Ref": "Ref", "Condition": "Condition"} | {
    name: f"Fn::{name}"
    for name in (
        *("And", "Base64", "Cidr", "Equals", "FindInMap", "GetAZs", "GetAtt", "If", "ImportValue", "Join"),
        *("Length", "Not", "Or", "Select", "Split", "Sub", "ToJsonString", "Transform"),
    )
}

_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc, valid-type]
    """Safe YAML with CloudFormation's tags; dates stay text and a key may stand once."""


def is_template_text(text: str) -> bool:
    """Whether the text has what only templates have."""
    return _MARKS.search(text) is not None


def read_text(path: Path) -> str:
    """A template's text. Raises ConfigError for a file that is missing, no text, or too large."""
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(str(path), ["there is no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    if len(data) > TEXT_BYTES_MAX:
        raise ConfigError(str(path), [f"has more than {TEXT_BYTES_MAX:,} bytes; a template has at most 1 MB"])
    return text


def parse(text: str, *, source: str) -> dict[str, object]:
    """The template in a text. Raises ConfigError for what is no YAML or JSON, or no mapping, or a bomb."""
    try:
        document = _json(text) if text.lstrip().startswith("{") else _yaml(text)
    except _Refused as refused:
        raise ConfigError(source, [str(refused)]) from None
    if not isinstance(document, dict):
        raise ConfigError(source, ["is no template: its top level has to be a mapping"])
    return document


class _Refused(Exception):
    """Why a text is no template."""


def _json(text: str) -> object:
    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
            raise _Refused(f"is not valid: {twice!r} stands twice in one object")
        return made

    try:
        document = json.loads(text, object_pairs_hook=members)
    except ValueError as error:
        # A flow mapping of YAML begins like JSON.
        try:
            return _yaml(text)
        except _Refused:
            raise _Refused(f"is not valid JSON: {error}") from None
    except RecursionError:
        raise _Refused(f"is nested more than {DEPTH_MAX} deep") from None
    _check_depth(document)
    return document


def _check_depth(document: object) -> None:
    level = [document]
    for _ in range(DEPTH_MAX):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise _Refused(f"is nested more than {DEPTH_MAX} deep")


def _yaml(text: str) -> object:
    try:
        _scan(text)
        # _Loader is a SafeLoader.
        document = yaml.load(text, Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, ValueError) as error:  # ValueError: numbers without end
        reason = " ".join(str(error).split())
        raise _Refused(f"is not valid YAML: {reason}") from None
    _check_depth(document)
    return document


def _scan(text: str) -> None:
    """Refuse what is too deep or grows too large, before anything is built of it.

    Events come one by one, without recursion. An alias counts as many values as what it stands for; one that
    stands inside of its own anchor never ends.
    """
    sizes: dict[str, int] = {}
    # Anchor and values so far of each collection that is open.
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _Refused(f"is not valid YAML: the alias *{event.anchor} stands within itself, or before it")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            open_.append((event.anchor, total))
            if event.anchor is not None:
                sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = total - before + 1
        if len(open_) > DEPTH_MAX:
            raise _Refused(f"is nested more than {DEPTH_MAX} deep")
        if total > VALUES_MAX:
            raise _Refused(f"has more than {VALUES_MAX:,} values, those of its aliases counted each time")


def _short_form(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> object:
    name = _LONG.get(suffix)
    if name is None:
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag !{suffix} is none of CloudFormation's", node.start_mark
        )
    value: object
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if name == "Fn::GetAtt":
            value = str(value).split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = _mapping(loader, node)
    return {name: value}


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key has to be text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} stands twice in one mapping", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    # YAML has whole numbers and dates as keys; CloudFormation has text alone.
    return {
        _key(loader.construct_object(key, deep=True)): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


def _key(key: object) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


_Loader.add_multi_constructor("!", _short_form)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# The date of AWSTemplateFormatVersion is text, as any other.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node))
