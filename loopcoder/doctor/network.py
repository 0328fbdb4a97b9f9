"""The network as this machine knows it: its own name, the interfaces that are named, proxies."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

import psutil

from loopcoder.doctor.findings import Seen
from loopcoder.network import is_loopback, route_of

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_network(nodes: int = 1) -> Seen:
    """Look at names, interfaces and proxies; nothing is sent but a question to the resolver."""
    seen = Seen()
    _own_name(seen, nodes)
    _interfaces(seen, os.environ)
    _proxies(seen)
    return seen


def _own_name(seen: Seen, nodes: int) -> None:
    name = socket.gethostname()
    fix = "echo ADDRESS " + name + " >> /etc/hosts on all nodes, or export MASTER_ADDR=ADDRESS"
    level = "warning" if nodes > 1 else "note"
    try:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError as error:
        why = "libraries that look for this machine by its name wait, or do not find it"
        fact = f"{name} does not resolve here ({error.strerror})"
        seen.add("host name", level, fact, why, fix)  # type: ignore[arg-type]
        return
    fact = f"{name} is {address}"
    if is_loopback(address) and nodes > 1:
        why = "that is the loopback; what looks for this machine by its name stays on it"
        seen.add("host name", "note", fact, why, fix)
    else:
        seen.ok("host name", fact)


def _interfaces(seen: Seen, environ: Mapping[str, str]) -> None:
    there = psutil.net_if_addrs()
    names = ", ".join(sorted(there))
    for variable in INTERFACES:
        given = environ.get(variable, "")
        if not given:
            continue
        if _matches(variable, given, list(there)):
            seen.ok("interface", f"{variable}={given}")
            continue
        seen.add(
            "interface",
            "error",
            f"{variable}={given}; this machine has {names}",
            "no interface of this name has an address, so the ranks do not find each other",
            f"unset {variable}, or name one of them",
        )


def _matches(variable: str, given: str, there: list[str]) -> bool:
    """Say whether a variable names an interface: gloo takes whole names; NCCL beginnings of names,
    whole ones behind a `=`, and all but some behind a `^`."""
    exclude, exact = given.startswith("^"), given.startswith("=")
    wanted = given.lstrip("^=").split(",")
    if variable == "GLOO_SOCKET_IFNAME":
        return route_of(given.partition(",")[0]) is not None
    hits = [
        name for name in there if any(name == w if exact else name.startswith(w) for w in wanted)
    ]
    return any(name not in hits and name != "lo" for name in there) if exclude else bool(hits)


def _proxies(seen: Seen) -> None:
    """Say by which proxies requests go; passwords in their URLs are not shown."""
    for scheme, url in sorted(urllib.request.getproxies().items()):
        if scheme not in ("http", "https", "all"):
            continue
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            place, fault = f"{parts.hostname}:{parts.port or 80}", not parts.hostname
        except ValueError:
            place, fault = "what is no URL", True
        name = f"{scheme}_proxy"
        fix = f"unset {name}, or export no_proxy=HOST,..."
        if fault:
            why = "Weights & Biases and object stores are not reached"
            seen.add("proxy", "warning", f"{name} is {place}", why, fix)
        else:
            why = "Weights & Biases and object stores are asked by it; ranks reach each other "
            seen.add("proxy", "note", f"{name} is {place}", why + "without", fix)
