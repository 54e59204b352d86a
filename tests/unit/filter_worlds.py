"""Filters and records made up by chance: patterns of all operators, events that match them or nearly do.

Every function takes a `random.Random`, be it a seeded one or one that hypothesis draws from. Not here: tests.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from engine.batch import Batch, from_rows
from engine.filters import FilterCriteria, InvalidPattern
from engine.filters.pattern import Branch
from engine.filters.rules import Rule

NAMES = ["a", "b", "c", "type", "ä", "", "a.b", "b.c", "a.b.c"]

#: Values next to each other where a mistake would take one for the other.
STRINGS = ["", "x", "xy", "xyz", "yz", "X", "Xy", "ä", "Ä", "äx", "300", "null", "true", "10.0.0.7", "10.0.1.7"]
STRINGS += [
    "2001:db8::1",
    "a*b",
    "a\\b",
    "aXbXb",
    "\ud83d",
    "😀",
    'q"q',
    "ß",
    "SS",
    "x" * 40,
    "x" * 40 + "ä",
    "k",
    "K",
]
NUMBERS = [
    "0",
    "-0",
    "-0.0",
    "1",
    "1.0",
    "10e-1",
    "300",
    "300.0",
    "3.0e2",
    "3E+2",
    "0.1",
    "0.10",
    "1e-1",
    "-5",
    "5",
]
NUMBERS += [
    "9007199254740992",
    "9007199254740993",
    "12345678901234567891",
    "12345678901234567892",
    "1e400",
    "1e401",
]
NUMBERS += ["-1e400", "5e-324", "4.9e-324", "1e-400", "999999999999999", "0.30000000000000004", "0.3", "1e288"]
WORDS = ["true", "false", "null"]

BROKEN = [
    "",
    "nul",
    "{",
    '{"a":1,}',
    '{"a" 1}',
    '{"a":01}',
    '{"a":+1}',
    '{"a":NaN}',
    '{"a":-Infinity}',
    "[1,]",
    '"x',
]
BROKEN += [
    '{"a":"x\ty"}',
    '{"a":"\\x"}',
    '{"a":"\\ud8"}',
    '{"a":1}{}',
    '{"a":1} x',
    "{'a':1}",
    '{"a":.5}',
    '{"a":5.}',
]
BROKEN += [
    '{"a":"x"',
    '{"a":tru}',
    '{"a":1e}',
    "\x00",
    "[",
    "]",
    '{"a":[1}',
    "\ufeff{}",
    '{,"a":1}',
    '{"a"}',
    '{"a":}',
]

#: Kinds, and the key that payloads have in their patterns.
KINDS = {"kinesis": "data", "firehose": "data", "dynamodb": "", "kafka": "value", "rows": "value"}


def spelt(chance: Random, text: str, *, escaped_of: int = 8) -> str:
    """A JSON string, one in ``escaped_of`` with needless escapes."""
    if chance.randrange(escaped_of) or not text:
        lone = any("\ud800" <= each <= "\udfff" for each in text)
        return json.dumps(text, ensure_ascii=lone)
    return '"' + "".join(f"\\u{ord(each):04x}" if ord(each) < 0x10000 else each for each in text) + '"'


def space(chance: Random) -> str:
    return chance.choice(["", "", "", "", "", "", " ", "\n\t", "\r\n  "])


def scalar(chance: Random) -> str:
    kind = chance.randrange(5)
    if kind < 2:
        return spelt(chance, chance.choice(STRINGS))
    return chance.choice(NUMBERS) if kind < 4 else chance.choice(WORDS)


def joined(chance: Random, members: list[tuple[str, str]]) -> str:
    """The text of an object with these members, in this order."""
    parts = []
    for name, text in members:
        key = spelt(chance, name, escaped_of=40)
        parts.append(f"{space(chance)}{key}{space(chance)}:{space(chance)}{text}{space(chance)}")
    return "{" + (",".join(parts) or space(chance)) + "}"


def value(chance: Random, depth: int = 3) -> str:
    kind = chance.randrange(6)
    if depth == 0 or kind < 3:
        return scalar(chance)
    if kind == 3:
        return f"[{space(chance)}{','.join(value(chance, depth - 1) for _ in range(chance.randrange(4)))}]"
    return document(chance, depth - 1)


def document(chance: Random, depth: int = 3) -> str:
    return joined(chance, [(chance.choice(NAMES), value(chance, depth)) for _ in range(chance.randrange(5))])


def operator(chance: Random) -> str:
    """The text of one operator."""
    text = json.dumps(chance.choice(STRINGS))
    inner = chance.choice([text, json.dumps(chance.choices([each for each in STRINGS if each], k=2))])
    name = chance.choice(["prefix", "suffix", "equals-ignore-case", "wildcard"])
    low, high = sorted(chance.sample(NUMBERS, 2), key=float)
    one, above, below = (
        chance.choice(["=", "<", "<=", ">", ">="]),
        chance.choice([">", ">="]),
        chance.choice(["<", "<="]),
    )
    return chance.choice(
        [
            '{"exists":true}',
            '{"exists":false}',
            f'{{"{name}":{text}}}',
            f'{{"{name}":{text}}}',
            f'{{"prefix":{{"equals-ignore-case":{text}}}}}',
            f'{{"suffix":{{"equals-ignore-case":{text}}}}}',
            f'{{"anything-but":{inner}}}',
            f'{{"anything-but":{{"{name}":{inner}}}}}',
            f'{{"anything-but":[{low},{high}]}}',
            f'{{"numeric":["{one}",{low}]}}',
            f'{{"numeric":["{above}",{low},"{below}",{high}]}}',
            f'{{"cidr":"{chance.choice(["10.0.0.0/24", "10.0.0.0/8", "2001:db8::/32"])}"}}',
            '{"wildcard":"a*b"}',
            f'{{"wildcard":"*{chance.choice("xyaäX")}*"}}',
            '{"wildcard":"a\\\\*b"}',
        ]
    )


def rules(chance: Random) -> str:
    return f"[{','.join(chance.choice([scalar, operator])(chance) for _ in range(chance.choice([1, 1, 2, 3])))}]"


def asked(chance: Random, depth: int = 2) -> str:
    """The text of an object of a pattern."""
    members = []
    for _ in range(chance.choice([1, 1, 2, 3])):
        inner = asked(chance, depth - 1) if depth and chance.randrange(3) == 0 else rules(chance)
        members.append(f"{json.dumps(chance.choice(NAMES))}:{inner}")
    if depth and chance.randrange(5) == 0:
        either = ",".join(asked(chance, depth - 1) for _ in range(chance.choice([2, 2, 3])))
        members.insert(chance.randrange(len(members) + 1), f'"$or":[{either}]')
    return "{" + ",".join(members) + "}"


def named(chance: Random, rule: Rule | Any) -> str:
    """A value that a rule speaks of, or one near it."""
    if hasattr(rule, "rules"):
        return named(chance, rule.rules[0])
    if hasattr(rule, "number"):
        return str(rule.number.text)
    if hasattr(rule, "low_open"):
        return chance.choice([repr(each) for each in (rule.low, rule.high) if abs(each) < 1e300] or ["0"])
    if hasattr(rule, "version"):
        return '"10.0.0.7"' if rule.version == 4 else '"2001:db8::1"'
    if hasattr(rule, "value"):
        return json.dumps(rule.value)
    if hasattr(rule, "text") or hasattr(rule, "parts"):
        text = rule.text if hasattr(rule, "text") else chance.choice(["", "y"]).join(rule.parts)
        return spelt(chance, chance.choice([text, text, text, text + "x", "x" + text, text.swapcase()]))
    return scalar(chance)


def derived(chance: Random, branch: Branch, top: str) -> str:
    """An event that has most of the paths of a branch, with values that its rules name, or nearly."""
    tree: dict[str, Any] = {}
    for path, each in branch.items():
        if chance.randrange(10) == 0 or (top and not path.startswith(top + ".")):
            continue
        names = (path[len(top) + 1 :] if top else path).split(".")
        while len(names) > 1 and chance.randrange(4) == 0:  # a key with a dot
            at = chance.randrange(len(names) - 1)
            names[at : at + 2] = [".".join(names[at : at + 2])]
        node = tree
        for name in names[:-1]:
            inner = node.setdefault(name, {})
            node = inner if isinstance(inner, dict) else {}
        node.setdefault(
            names[-1], scalar(chance) if chance.randrange(8) == 0 else named(chance, chance.choice(each))
        )

    def text(node: Any) -> str:
        if isinstance(node, str):
            return node
        members = [(name, text(inner)) for name, inner in node.items()]
        chance.shuffle(members)
        if chance.randrange(3) == 0:
            members.insert(chance.randrange(len(members) + 1), (chance.choice(NAMES), value(chance)))
        whole = joined(chance, members)
        return f"[{value(chance)},{whole}]" if chance.randrange(20) == 0 else whole

    return text(tree)


def payload(chance: Random, criteria: FilterCriteria, top: str) -> bytes | None:
    kind = chance.randrange(20)
    if kind < 12:
        text = derived(chance, chance.choice(chance.choice(criteria.patterns).branches), top)
    elif kind < 15:
        text = document(chance)
    elif kind < 17:
        text = value(chance)
    elif kind == 17:
        text = chance.choice([*BROKEN, *STRINGS])
    else:
        return None
    octets = text.encode("utf-8", "surrogatepass")
    at = chance.randrange(len(octets) + 1)
    return chance.choice(
        [octets] * 20 + [octets[:at], octets[:at] + b"\xff" + octets[at:], octets[:at] + octets[at + 1 :]]
    )


def pattern(chance: Random, kind: str) -> str:
    top = KINDS[kind]
    body = asked(chance)
    if top == "value" and chance.randrange(5) == 0:
        body = rules(chance)
    parts = [f'"{top}":{body}'] if top else [body[1:-1]]
    if top and chance.randrange(5) == 0:
        other = {"data": '"partitionKey":["k1",{"prefix":"z"}]', "value": '"partition":[0,7]'}
        parts.insert(chance.randrange(2), other[top])
    if top == "value" and chance.randrange(5) == 0:
        parts.append(chance.choice(['"key":["k1"]', '"key":{"a":["x"]}']))
    return "{" + ",".join(parts) + "}"


def world(chance: Random) -> tuple[FilterCriteria, Batch]:
    """Filters of a kind, and a batch of records of which many match or nearly do."""
    kind = chance.choice(list(KINDS))
    while True:
        try:
            criteria = FilterCriteria.of(
                [pattern(chance, kind) for _ in range(chance.choice([1, 1, 2, 3]))], kind=kind
            )
            break
        except InvalidPattern:
            continue
    values = [payload(chance, criteria, KINDS[kind]) for _ in range(chance.randrange(1, 12))]
    keys = [chance.choice([None, b"k1", b"zebra", b'{"a":"x"}', b"\xff"]) for _ in values]
    rows = [(5 + at, 1000 + at, key, each, ()) for at, (key, each) in enumerate(zip(keys, values, strict=True))]
    batch = from_rows("t", chance.choice([0, 3]), rows, start=5, end=5 + len(rows))
    return criteria, batch.tail(chance.choice([0, 0, 1]) if len(rows) > 1 else 0)
