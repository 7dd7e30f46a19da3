"""ComfyUI's graph of nodes, and how its links are followed.

The graph is JSON: node id -> {"class_type": ..., "inputs": {name: value or link}}; a link is [node id, output slot].
A stranger may have written it: links may loop or lead nowhere, and values may be of any type. The time of each walk is
in proportion to the graph. Knows nothing of what the nodes do, except for those that only pass a value on.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CHARS = 32 << 20  # of a graph's JSON: 100,000 nodes take about half
_REROUTE = "Reroute"  # nodes of this name, or of one that begins so, pass on their only link
_PRIMITIVE = "Primitive"  # nodes of which the name begins so give their input `value`


@dataclass(frozen=True, kw_only=True)
class Node:
    """`inputs`: name -> a link, or any JSON value."""

    id: str
    class_type: str
    inputs: Mapping[str, Any]

    def links(self) -> Iterator["Link"]:
        return (link for link in map(as_link, self.inputs.values()) if link is not None)


@dataclass(frozen=True)
class Link:
    node_id: str
    slot: int


@dataclass(frozen=True)
class Source:
    """What a link leads to."""

    node: Node
    slot: int


class Graph:
    def __init__(self, nodes: Mapping[str, Node]):
        self.nodes = nodes
        self._behind: dict[str, Source | None] = {}  # reroute -> where its chain ends

    def source(self, value: object) -> Source | None:
        """Follows a link through reroutes. None for what is not a link, or one that leads nowhere."""
        passed: list[str] = []
        seen: set[str] = set()
        found: Source | None = None
        link = as_link(value)
        while link is not None and link.node_id not in seen:
            node = self.nodes.get(link.node_id)
            if node is None:
                break
            if not node.class_type.startswith(_REROUTE):
                found = Source(node, link.slot)
                break
            if node.id in self._behind:
                found = self._behind[node.id]
                break
            passed.append(node.id)
            seen.add(node.id)
            link = next(node.links(), None)
        self._behind.update(dict.fromkeys(passed, found))
        return found

    def value(self, value: object) -> object:
        """An input's own value, or the one that a link gets from a primitive; else a Source or, if it is lost, None."""
        seen: set[str] = set()
        while as_link(value) is not None:
            source = self.source(value)
            if source is None or source.node.id in seen:
                return None
            if not source.node.class_type.startswith(_PRIMITIVE):
                return source
            seen.add(source.node.id)
            value = source.node.inputs.get("value")
        return value

    def upstream(self, start: Node, seen: set[str] | None = None) -> Iterator[Node]:
        """`start` and all that it is made from, the nearest first. seen: ids to pass over, which grows."""
        seen = set() if seen is None else seen
        if start.id in seen:
            return
        seen.add(start.id)
        waiting = deque([start])
        while waiting:
            node = waiting.popleft()
            yield node
            for link in node.links():
                if link.node_id in self.nodes and link.node_id not in seen:
                    seen.add(link.node_id)
                    waiting.append(self.nodes[link.node_id])

    def follow(self, value: object, names: Iterable[str]) -> Iterator[Source]:
        """The sources along a path: each is reached by the first of the inputs `names` that is a link."""
        names = tuple(names)
        seen: set[str] = set()
        source = self.source(value)
        while source is not None and source.node.id not in seen:
            seen.add(source.node.id)
            yield source
            inputs = source.node.inputs
            source = next((found for name in names if (found := self.source(inputs.get(name))) is not None), None)


def read_graph(text: str) -> Graph | None:
    """None for text that is not a graph."""
    if len(text) > MAX_CHARS:
        return None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, dict):
        return None
    nodes = {}
    for name, entry in entries.items():
        if isinstance(entry, dict):
            class_type, inputs = entry.get("class_type"), entry.get("inputs", {})
            if isinstance(class_type, str) and isinstance(inputs, dict):
                nodes[name] = Node(id=name, class_type=class_type, inputs=inputs)
    return Graph(nodes) if nodes else None


def as_link(value: object) -> Link | None:
    """Ids are text; some programs write numbers."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    node_id, slot = value
    if isinstance(node_id, bool) or not isinstance(node_id, str | int) or not isinstance(slot, int | float):
        return None
    return Link(str(node_id), int(slot)) if slot == slot and abs(slot) < 1 << 16 else None
