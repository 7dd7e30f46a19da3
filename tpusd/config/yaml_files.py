"""YAML from anywhere -> plain values, with bounds on what a small file can expand to. Tags can only give data.

Knows nothing of what the values mean.
"""

from typing import Any

import yaml

from tpusd.errors import UserError, show

MAX_DEPTH = 50
MAX_ALIASED = 10_000  # nodes that aliases may add: nine lines of aliases can expand to a billion
MAX_DIGITS = 4300  # of a number: reading more takes quadratic time, and Python refuses decimal ones
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def parse_yaml(data: bytes, where: str) -> Any:
    """The plain values of a YAML document, whatever they are. Raises UserError; its line begins with `where`."""
    check_yaml(data, where)
    try:
        return yaml.load(data, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise _not_yaml(where, error) from None


def check_yaml(data: bytes, where: str) -> None:
    """Raises UserError for a document that would grow out of bounds when it is loaded. Reads its events only.

    Text that is not YAML passes: loading it gives the error.
    """
    sizes: dict[str, int] = {}  # anchor -> nodes under it
    open_nodes: list[tuple[str | None, int]] = []  # (anchor, nodes before it)
    nodes = aliased = 0
    try:
        for event in yaml.parse(data, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise UserError(f"{where}: a value contains itself; write the values without aliases")
                size = sizes.get(event.anchor or "", 1)
                nodes, aliased = nodes + size, aliased + size
                if aliased > MAX_ALIASED:
                    raise UserError(
                        f"{where}: its aliases expand to over {MAX_ALIASED} values; write the values without aliases"
                    )
            elif isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, nodes))
                nodes += 1
                if len(open_nodes) > MAX_DEPTH:
                    raise UserError(f"{where}: is nested over {MAX_DEPTH} deep; a config is nested less")
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = nodes - before
            elif isinstance(event, yaml.ScalarEvent):
                nodes += 1
                if event.implicit[0] and len(event.value) > MAX_DIGITS and _is_number(event.value):
                    raise UserError(f"{where}: {show(event.value)}: has too many digits")
    except (yaml.YAMLError, ValueError):
        return


def to_yaml(values: object, *, ascii_only: bool = False) -> str:
    """Plain values as a YAML document, the keys in their order. ascii_only: other letters are escapes."""
    text: str = yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=not ascii_only, width=2**16)
    return text


def _is_number(text: str) -> bool:
    return _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)) in (  # type: ignore[no-untyped-call]
        "tag:yaml.org,2002:int",
        "tag:yaml.org,2002:float",
    )


def _not_yaml(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: is not YAML: {show(' '.join(str(error).split()))}")
