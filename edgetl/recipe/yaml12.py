"""YAML 1.2 scalars over PyYAML's safe loader: `5e-4` is a number, `no` a word; no duplicates, aliases or tags."""

from __future__ import annotations

import re
from collections.abc import Hashable

import yaml

from edgetl.errors import BadInput
from edgetl.types import Json

MOST_BYTES = 1 << 16


class Required(str):
    """The value of a `!required` key: what the user must give, in words."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Core schema of YAML 1.2. Class attributes replace, never extend, those of the 1.1 loader."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's interface

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors and aliases are not allowed"
            mark = event.start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark if isinstance(mark, yaml.Mark) else None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Json]:
        seen: dict[Hashable, Json] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            key = key if isinstance(key, str) else key_node.value
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen[key] = self.construct_object(value_node, deep=True)
        return seen

    def required(self, node: yaml.Node) -> Required:
        return Required(node.value)

    def integer(self, node: yaml.Node) -> int:
        return int(node.value, 0) if node.value[:2] in ("0x", "0o") else int(node.value)

    def real(self, node: yaml.Node) -> float:
        return float(node.value.replace(".inf", "inf").replace(".nan", "nan"))

    def unknown(self, node: yaml.Node) -> Json:
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} is not allowed", node.start_mark)


_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     "-+0123456789."),
)  # fmt: skip
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.real)
_Loader.add_constructor("!required", _Loader.required)
_Loader.add_constructor(None, _Loader.unknown)


def read(text: str, name: str) -> Json:
    """Return the one document of a YAML text; `name` stands in messages.

    Raises:
        BadInput: it is no YAML, too large, or uses what is not allowed.

    """
    if len(text.encode()) > MOST_BYTES:
        raise BadInput(f"{name}: larger than {MOST_BYTES} bytes", fix="is this the right file?")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise BadInput(f"{where}: {getattr(e, 'problem', None) or e}", fix="correct the YAML at this line") from e
    finally:
        loader.dispose()


class _Dumper(yaml.SafeDumper):
    """Quotes every word that either YAML version would read as something else."""

    def word(self, data: str) -> yaml.ScalarNode:
        other = any(re.fullmatch(pattern, data) for _, pattern, _ in _SCALARS)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if other or not data.isascii() else None)


_Dumper.add_representer(str, _Dumper.word)


def write(value: Json) -> str:
    """Return the YAML of a JSON value, keys in their order; `read` gives the same value back."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=110)
    return text
