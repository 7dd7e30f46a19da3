"""YAML from anywhere -> plain values, with bounds on what a small file may grow to. Tags make nothing but data.

Knows nothing of what the values mean.
"""

from typing import Any

import yaml

from tpusd.errors import UserError, show

MAX_DEPTH = 50
MAX_ALIASED = 10_000  # nodes that aliases may add: nine lines of aliases can stand for a billion
MAX_DIGITS = 4300  # of a number: reading more takes quadratic time, and Python refuses it where it is decimal
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def parse_yaml(data: bytes, where: str) -> Any:
    """The plain values of a YAML document. Raises UserError, its line beginning with `where`."""
    check_yaml(data, where)
    try:
        return yaml.load(data, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise _not_yaml(where, error) from None


def check_yaml(data: bytes, where: str) -> None:
    """Refuses what would grow out of bounds when it is loaded, from its events alone. Raises UserError.

    What is no YAML at all passes: whoever loads it says so.
    """
    sizes: dict[str, int] = {}  # anchor -> nodes that it stands for
    open_nodes: list[tuple[str | None, int]] = []  # (anchor, nodes before it)
    nodes = aliased = 0
    try:
        for event in yaml.parse(data, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise UserError(f"{where}: a value holds itself; write the values out")
                size = sizes.get(event.anchor, 1)
                nodes, aliased = nodes + size, aliased + size
                if aliased > MAX_ALIASED:
                    raise UserError(f"{where}: its aliases stand for over {MAX_ALIASED} values; write the values out")
            elif isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, nodes))
                nodes += 1
                if len(open_nodes) > MAX_DEPTH:
                    raise UserError(f"{where}: is nested over {MAX_DEPTH} deep, which no config is")
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = nodes - before
            elif isinstance(event, yaml.ScalarEvent):
                nodes += 1
                if event.implicit[0] and len(event.value) > MAX_DIGITS and _is_number(event.value):
                    raise UserError(f"{where}: {show(event.value)}: is too long a number")
    except (yaml.YAMLError, ValueError):
        return


def to_yaml(values: Any) -> str:
    return yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=2**16)


def _is_number(text: str) -> bool:
    return _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)) in (
        "tag:yaml.org,2002:int",
        "tag:yaml.org,2002:float",
    )


def _not_yaml(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: is not YAML: {show(' '.join(str(error).split()))}")
