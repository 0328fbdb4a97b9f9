"""This machine in the network: by which of its addresses and interfaces others are reached."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

_ANSWERS_S = 5.0
_TRY_EVERY_S = 0.5


@dataclass(frozen=True)
class Route:
    """From where packets of this machine leave."""

    address: str
    interface: str | None
    """None: no interface has the address, as in some containers."""


def is_loopback(address: str) -> bool:
    """Say whether no other machine is reached at an address."""
    return ipaddress.ip_address(address).is_loopback


def is_own_name(host: str) -> bool:
    """Say whether a name or address is that of the machine itself, wherever it is asked."""
    try:
        return host == "localhost" or is_loopback(host)
    except ValueError:
        return False


def route_to(host: str) -> Route:
    """Return the way to a host. Nothing is sent.

    Raises:
        OSError: the name does not resolve, or there is no route.
    """
    family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        address = str(probe.getsockname()[0])
    return Route(address, _interface_with(address))


def route_of(interface: str) -> Route | None:
    """Return the way that an interface of this machine is; None: there is none, or it has no
    address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for found in psutil.net_if_addrs().get(interface, []):
            if found.family == family:
                return Route(found.address.partition("%")[0], interface)
    return None


def is_here(host: str) -> bool:
    """Say whether a name or address is this machine's.

    Raises:
        OSError: the name does not resolve.
    """
    found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    return any(is_loopback(address) or _interface_with(address) for address in found)


def fault_of(host: str, port: int) -> str | None:
    """Say why nothing can be connected to at an address; None: something can."""
    try:
        socket.create_connection((host, port), timeout=_ANSWERS_S).close()
    except socket.gaierror as error:
        return f"{host} does not resolve here ({error.strerror})"
    except TimeoutError:
        return f"{host}:{port} does not answer"
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}"
    return None


def wait_for(
    host: str,
    port: int,
    timeout_s: float,
    report_after_s: float,
    report: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
) -> str | None:
    """Wait until something can be connected to.

    Args:
        timeout_s: How long.
        report_after_s: After how long to say what is wrong so far.
        report: Is told it, once.
        look: Is called now and then; what it raises ends the waiting.

    Returns:
        What was wrong to the end; None: it is there.
    """
    began, reported = time.monotonic(), False
    while (fault := fault_of(host, port)) is not None:
        waited = time.monotonic() - began
        if waited > timeout_s:
            return fault
        if waited > report_after_s and not reported:
            reported = True
            report(fault)
        look()
        time.sleep(_TRY_EVERY_S)
    return None


def _interface_with(address: str) -> str | None:
    for name, found in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == address for a in found):
            return name
    # all of 127.0.0.0/8 is the loopback's
    return _interface_with("127.0.0.1") if is_loopback(address) and address != "127.0.0.1" else None
