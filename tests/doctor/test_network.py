"""Names, interfaces and proxies."""

from __future__ import annotations

import random
import socket

import pytest

from loopcoder.doctor import network
from loopcoder.doctor.findings import Finding


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*network.INTERFACES, "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def found(check: str, nodes: int = 1) -> list[Finding]:
    return [f for f in network.check_network(nodes).findings if f.check == check]


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    name = f"node{rng.randrange(10**9)}.invalid"
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    for nodes, level in ((1, "note"), (2, "warning")):
        (finding,) = found("host name", nodes)
        assert finding.level == level and name in finding.fact and "/etc/hosts" in finding.fix
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert [found("host name", nodes)[0].level for nodes in (1, 2)] == ["ok", "note"]


@pytest.mark.parametrize(
    ("variable", "value", "level"),
    [
        ("GLOO_SOCKET_IFNAME", "lo", "ok"),
        ("GLOO_SOCKET_IFNAME", "l", "error"),
        ("NCCL_SOCKET_IFNAME", "l", "ok"),
        ("NCCL_SOCKET_IFNAME", "=lo", "ok"),
        ("NCCL_SOCKET_IFNAME", "=l", "error"),
        ("NCCL_SOCKET_IFNAME", "ib", "error"),
    ],
)
def test_interfaces(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, level: str) -> None:
    monkeypatch.setattr(network.psutil, "net_if_addrs", lambda: {"lo": [], "eth0": []})
    monkeypatch.setattr(network, "route_of", lambda name: object() if name == "lo" else None)
    monkeypatch.setenv(variable, value)
    (finding,) = found("interface")
    assert finding.level == level and f"{variable}={value}" in finding.fact
    assert level == "ok" or finding.fix.startswith(f"unset {variable}")


def test_proxies_are_told_without_their_passwords(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    assert found("proxy") == []
    secret = f"{rng.getrandbits(64):x}"
    monkeypatch.setenv("https_proxy", f"http://me:{secret}@proxy.example:3128")
    (finding,) = found("proxy")
    assert finding.level == "note" and "proxy.example:3128" in finding.fact
    assert secret not in str(finding)
    monkeypatch.setenv("https_proxy", f"http://me:{secret}@proxy.example:port")
    (finding,) = found("proxy")
    assert finding.level == "warning" and secret not in str(finding)
