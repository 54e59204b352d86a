"""CloudFormation's intrinsic functions over a template's parameters, mappings, conditions and resources.

What only a deployed stack knows (imports, attributes of resources that are not made here, secrets) raises
`Unresolved`; what no stack could make sense of raises `Malformed`. Semantics: CloudFormation's intrinsic function
reference. Not here: which properties there are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from engine.sam.resources import NAMED, Named

#: Of one resolved text. Sub and Join can be nested so that each level multiplies.
CHARACTERS_MAX = 1024 * 1024

ACCOUNT = "000000000000"

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_DYNAMIC = "{{resolve:"


class Unresolved(Exception):
    """A value that is not known outside of AWS. ``names`` are what the user may call it by."""

    def __init__(self, reason: str, *names: str) -> None:
        super().__init__(reason)
        self.names = names


class Malformed(Exception):
    """A template that CloudFormation would refuse."""


class _NoValue:
    """AWS::NoValue: the property, or the list's item, is not there."""


NO_VALUE: Final = _NoValue()


def intrinsic(value: object) -> str | None:
    """The name of the intrinsic function that a value is, if it is one."""
    if isinstance(value, dict) and len(value) == 1:
        name = next(iter(value))
        if name in ("Ref", "Condition") or str(name).startswith("Fn::"):
            return str(name)
    return None


def shown(value: object) -> str:
    """An intrinsic function in a few words, for messages. Never the text of a literal."""
    name = intrinsic(value)
    if name is None:
        return "the value"
    assert isinstance(value, dict)
    argument = value[name]
    if name == "Fn::GetAtt" and isinstance(argument, list):
        argument = ".".join(map(str, argument))
    return f"{name.removeprefix('Fn::')} {argument}" if isinstance(argument, str) else name.removeprefix("Fn::")


class Resolver:
    """Gives values for one template. ``given`` are the command line's parameters."""

    def __init__(self, template: Mapping[str, object], given: Mapping[str, str], *, region: str) -> None:
        self._sections = {
            name: mapping_of(template.get(name), name)
            for name in ("Parameters", "Mappings", "Conditions", "Resources")
        }
        self._given = given
        self._open: list[str] = []  # what is being worked out, to find circles
        region = given.get("AWS::Region", region)
        stack = given.get("AWS::StackName", "headrace")
        account = given.get("AWS::AccountId", ACCOUNT)
        self._pseudo: dict[str, object] = {
            "AWS::AccountId": account,
            "AWS::NoValue": NO_VALUE,
            "AWS::NotificationARNs": [],
            "AWS::Partition": "aws",
            "AWS::Region": region,
            "AWS::StackId": f"arn:aws:cloudformation:{region}:{account}:stack/{stack}/headrace",
            "AWS::StackName": stack,
            "AWS::URLSuffix": "amazonaws.com",
        } | {name: value for name, value in given.items() if name.startswith("AWS::")}
        self._functions: dict[str, Callable[[object], object]] = {
            "Ref": self._ref,
            "Fn::And": lambda argument: all(self._conditions(argument, 2, "And")),
            "Fn::Equals": self._equals,
            "Fn::FindInMap": self._find_in_map,
            "Fn::GetAtt": self._get_att,
            "Fn::If": lambda argument: self.resolve(self._chosen(argument)),
            "Fn::ImportValue": self._import_value,
            "Fn::Join": self._join,
            "Fn::Not": lambda argument: not self._conditions(argument, 1, "Not")[0],
            "Fn::Or": lambda argument: any(self._conditions(argument, 2, "Or")),
            "Fn::Select": self._select,
            "Fn::Split": self._split,
            "Fn::Sub": self._sub,
            "Condition": lambda argument: self.condition(str(argument)),
        }

    def parameter_faults(self) -> list[str]:
        """What is wrong with the parameters that were given."""
        declared = self._sections["Parameters"]
        faults = []
        for name, value in self._given.items():
            if name in self._pseudo and name != "AWS::NoValue":
                continue
            if name not in declared:
                near = difflib.get_close_matches(name, declared, n=1)
                guess = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(declared) or 'none'}"
                faults.append(f"--parameter {name}: the template has no such parameter{guess}")
                continue
            allowed = mapping_of(declared[name], name).get("AllowedValues")
            if isinstance(allowed, list) and value not in [text_of(item) for item in allowed]:
                valid = ", ".join(text_of(item) for item in allowed)
                faults.append(f"--parameter {name}: is none of its AllowedValues ({valid})")
        return faults

    def resolve(self, value: object) -> object:
        """The value with every intrinsic function in it carried out; `NO_VALUE` where there is to be none.

        Raises Unresolved and Malformed.
        """
        name = intrinsic(value)
        if name is not None:
            assert isinstance(value, dict)
            function = self._functions.get(name)
            if function is None:
                raise Unresolved(f"{name} is not carried out")
            return function(value[name])
        if isinstance(value, dict):
            pairs = ((str(key), self.resolve(item)) for key, item in value.items())
            return {key: item for key, item in pairs if item is not NO_VALUE}
        if isinstance(value, list):
            return [item for item in map(self.resolve, value) if item is not NO_VALUE]
        if isinstance(value, str) and _DYNAMIC in value:
            raise Unresolved("a dynamic reference is read by CloudFormation alone")
        return value

    def chosen(self, value: object) -> object:
        """The value itself, or the branch that Fn::If takes; what is inside stays as it is."""
        while intrinsic(value) == "Fn::If":
            assert isinstance(value, dict)
            value = self._chosen(value["Fn::If"])
        return NO_VALUE if value == {"Ref": "AWS::NoValue"} else value

    def condition(self, name: str) -> bool:
        """Whether a named condition holds."""
        conditions = self._sections["Conditions"]
        if name not in conditions:
            raise Malformed(f"there is no condition {name!r}")
        with _Circle(self._open, f"condition {name}"):
            return _truth(self.resolve(conditions[name]), name)

    def name(self, logical_id: str) -> str:
        """The name of a resource: its own, or for those that stand for something here, the logical id."""
        kind, properties = self._resource(logical_id)
        known = NAMED.get(kind)
        if known is None:
            raise Unresolved(f"{logical_id} ({kind}) has no name outside of AWS", logical_id)
        with _Circle(self._open, f"resource {logical_id}"):
            value = self.resolve(properties[known.name_property]) if known.name_property in properties else NO_VALUE
        if value is not NO_VALUE:
            return text_of(value)
        if known.stands_for_logical_id:
            return logical_id
        raise Unresolved(f"{logical_id} ({kind}) has no {known.name_property}; AWS would make one up", logical_id)

    def arn(self, logical_id: str) -> str:
        """The ARN of a resource that has a name."""
        name = self.name(logical_id)
        return self._format(NAMED[self._resource(logical_id)[0]], name)

    def references(self, value: object) -> list[str]:
        """What a value names: the logical id, the parameter, or the export that it is made of."""
        function = intrinsic(value)
        if function is None:
            return []
        assert isinstance(value, dict)
        argument = value[function]
        match function, argument:
            case "Ref", str():
                return [argument]
            case "Fn::GetAtt", [str(), *_]:
                return [argument[0]]
            case "Fn::GetAtt", str():
                return [argument.split(".", 1)[0]]
            case "Fn::Sub", str():
                return [name.split(".", 1)[0] for name in _VARIABLE.findall(argument) if not name.startswith("!")]
            case "Fn::ImportValue", _:
                try:
                    return [text_of(self.resolve(argument))]
                except Unresolved:
                    return []
            case _:
                return []

    def _format(self, known: Named, name: str, pattern: str | None = None) -> str:
        place = "" if known.service == "s3" else f"{self._pseudo['AWS::Region']}"
        account = "" if known.service == "s3" else f"{self._pseudo['AWS::AccountId']}"
        head = f"arn:{self._pseudo['AWS::Partition']}:{known.service}:{place}:{account}"
        return (pattern or known.arn).format(head=head, name=name)

    def _resource(self, logical_id: str) -> tuple[str, Mapping[str, object]]:
        resources = self._sections["Resources"]
        if logical_id not in resources:
            raise Malformed(f"there is no resource {logical_id!r}")
        resource = mapping_of(resources[logical_id], logical_id)
        return str(resource.get("Type")), mapping_of(self.chosen(resource.get("Properties")), logical_id)

    def _ref(self, argument: object) -> object:
        name = text_of(argument)
        if name in self._pseudo:
            return self._pseudo[name]
        if name in self._sections["Parameters"]:
            return self._parameter(name)
        if name not in self._sections["Resources"]:
            raise Malformed(f"Ref {name}: there is no such parameter or resource")
        kind, _ = self._resource(name)
        known = NAMED.get(kind)
        if known is None or known.ref is None:
            raise Unresolved(f"Ref {name} ({kind}) has no value outside of AWS", name)
        return self.name(name) if known.ref == "name" else self.arn(name)

    def _parameter(self, name: str) -> object:
        declared = mapping_of(self._sections["Parameters"][name], name)
        kind = str(declared.get("Type", "String"))
        given = self._given.get(name)
        if given is None and kind.startswith("AWS::SSM::Parameter::"):
            raise Unresolved(f"the parameter {name} is in Systems Manager; --parameter {name}=VALUE gives it", name)
        if given is None and "Default" not in declared:
            raise Malformed(f"the parameter {name} has no Default; give it with --parameter {name}=VALUE")
        text = given if given is not None else text_of(declared["Default"])
        if kind == "CommaDelimitedList" or kind.startswith("List<") or "Value<List<" in kind:
            return [item.strip() for item in text.split(",")]
        return text

    def _get_att(self, argument: object) -> str:
        if isinstance(argument, str):
            argument = argument.split(".", 1)
        if not isinstance(argument, list) or len(argument) != 2:
            raise Malformed("GetAtt takes RESOURCE.ATTRIBUTE")
        logical_id, attribute = text_of(argument[0]), text_of(self.resolve(argument[1]))
        kind, _ = self._resource(logical_id)
        known = NAMED.get(kind)
        if known is not None:
            if attribute == "StreamArn" and known.stream_arn is not None:
                return self._format(known, self.name(logical_id), known.stream_arn)
            if attribute in ("Arn", "TopicArn"):
                return self.arn(logical_id)
            if attribute == known.name_property:
                return self.name(logical_id)
        raise Unresolved(f"GetAtt {logical_id}.{attribute} ({kind}) has no value outside of AWS", logical_id)

    def _import_value(self, argument: object) -> object:
        name = text_of(self.resolve(argument))
        raise Unresolved(f"ImportValue {name} is an output of another stack", name)

    def _sub(self, argument: object) -> str:
        text, own = argument, {}
        if isinstance(argument, list):
            if len(argument) != 2 or not isinstance(argument[1], dict):
                raise Malformed("Sub takes a text, or a text and a mapping of its variables")
            text, own = argument
        if not isinstance(text, str):
            raise Malformed("Sub takes a text, or a text and a mapping of its variables")
        if _DYNAMIC in text:
            raise Unresolved("a dynamic reference is read by CloudFormation alone")
        parts: list[str] = []
        end = 0
        for found in _VARIABLE.finditer(text):
            parts.append(text[end : found.start()])
            parts.append(self._sub_variable(found[1].strip(), own))
            end = found.end()
        return _concatenated("", [*parts, text[end:]])

    def _sub_variable(self, name: str, own: Mapping[str, object]) -> str:
        if name.startswith("!"):
            return "${" + name[1:] + "}"
        if name in own:
            value = self.resolve(own[name])
        elif "." in name:
            value = self._get_att(name)
        else:
            value = self._ref(name)
        if not isinstance(value, str | int | float):
            raise Malformed(f"Sub: ${{{name}}} is no text")
        return text_of(value)

    def _join(self, argument: object) -> str:
        delimiter, values = self._arguments(argument, 2, "Join takes [DELIMITER, LIST]")
        return _concatenated(text_of(delimiter), [text_of(item) for item in _list(values, "Join")])

    def _split(self, argument: object) -> list[str]:
        delimiter, text = self._arguments(argument, 2, "Split takes [DELIMITER, TEXT]")
        if not text_of(delimiter):
            raise Malformed("Split needs a delimiter")
        return text_of(text).split(text_of(delimiter))

    def _select(self, argument: object) -> object:
        index, values = self._arguments(argument, 2, "Select takes [INDEX, LIST]")
        items = _list(values, "Select")
        text = text_of(index)
        if not text.isdecimal() or int(text[:9]) >= len(items):
            raise Malformed(f"Select: there is no item {text[:20]} in a list of {len(items)}")
        return items[int(text)]

    def _find_in_map(self, argument: object) -> object:
        names = [text_of(each) for each in self._arguments(argument, 3, "FindInMap takes [MAP, KEY, KEY]")]
        value: object = self._sections["Mappings"]
        assert isinstance(argument, list)
        # As they are written: what they give may be a parameter's value.
        written = [each if isinstance(each, str) else shown(each) for each in argument]
        for depth, name in enumerate(names):
            if not isinstance(value, dict) or name not in value:
                raise Malformed(f"FindInMap [{', '.join(written)}]: there is no {written[depth]}")
            value = value[name]
        return value

    def _equals(self, argument: object) -> bool:
        left, right = self._arguments(argument, 2, "Equals takes two values")
        if isinstance(left, dict | list) or isinstance(right, dict | list):
            return left == right
        return text_of(left) == text_of(right)

    def _chosen(self, argument: object) -> object:
        if not isinstance(argument, list) or len(argument) != 3:
            raise Malformed("If takes [CONDITION, VALUE, VALUE]")
        return argument[1] if self.condition(text_of(argument[0])) else argument[2]

    def _conditions(self, argument: object, least: int, name: str) -> list[bool]:
        most = 1 if least == 1 else 10
        if not isinstance(argument, list) or not least <= len(argument) <= most:
            raise Malformed(f"{name} takes {'one condition' if most == 1 else '2 to 10 conditions'} in a list")
        return [_truth(self.resolve(each), name) for each in argument]

    def _arguments(self, argument: object, count: int, usage: str) -> Sequence[object]:
        if not isinstance(argument, list) or len(argument) != count:
            raise Malformed(usage)
        return [self.resolve(each) for each in argument]


class _Circle:
    """While one thing is worked out, it may not ask for itself."""

    def __init__(self, open_: list[str], name: str) -> None:
        if name in open_:
            raise Malformed(f"{name} depends on itself")
        self._open, self._name = open_, name

    def __enter__(self) -> None:
        self._open.append(self._name)

    def __exit__(self, *_: object) -> None:
        self._open.remove(self._name)


def _concatenated(delimiter: str, parts: Sequence[str]) -> str:
    size = sum(map(len, parts)) + len(delimiter) * max(0, len(parts) - 1)
    if size > CHARACTERS_MAX:
        raise Malformed(f"a text would have more than {CHARACTERS_MAX:,} characters")
    return delimiter.join(parts)


def mapping_of(value: object, name: str) -> dict[str, object]:
    if value is None or value is NO_VALUE:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{name} has to be a mapping")
    return value


def _list(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise Malformed(f"{name} takes a list")
    return value


def _truth(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"{name}: what it is made of has to be conditions")
    return value


def text_of(value: object) -> str:
    """A scalar as CloudFormation passes it on: true and false in lower case, whole numbers without a point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise Malformed("a text is needed here, not a list or a mapping")
