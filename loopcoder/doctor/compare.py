"""What differs between the nodes of a job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from loopcoder.doctor.findings import Finding, Node

_MAY_DIFFER = {"driver", "GPUs"}
"""With which a run starts nevertheless."""
_SHOWN = 8


def differences(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Yield what is not the same on all nodes, with the names of the nodes.

    What a node could not look at is not compared; a package that one of them lacks is.
    """
    looked = [node for node in nodes if "python" in node.seen.values]
    for name in dict.fromkeys(n for node in looked for n in node.seen.values):
        having = defaultdict(list)
        for node in looked:
            if name in node.seen.values or name not in _MAY_DIFFER:
                having[node.seen.values.get(name, "none")].append(node.name)
        if len(having) < 2:
            continue
        fact = "; ".join(f"{value} on {_names(on)}" for value, on in having.items())
        if name in _MAY_DIFFER:
            why, fix = "all nodes wait for the slowest", "leave out the nodes that differ"
            yield Finding(f"nodes: {name}", "warning", fact, why, fix)
        else:
            why = "a run refuses nodes that may compute another step"
            fix = "the same checkout, installed from one requirements.lock, on all nodes"
            yield Finding(f"nodes: {name}", "error", fact, why, fix)


def _names(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return ", ".join(nodes[:_SHOWN]) + more
