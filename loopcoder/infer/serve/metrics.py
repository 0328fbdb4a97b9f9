"""What the server counts, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Count:
    """A number that only grows."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, number: int) -> None:
        self.value += number


class Histogram:
    """How often durations were up to each of some bounds, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        bounds = [*(f"{bound:g}" for bound in _SECONDS), "+Inf"]
        for bound, count in zip(bounds, accumulate(self._counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {sum(self._counts)}"


class Metrics:
    """All counts since the start. Used in the event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By path and status; 0: the client went away before there was one."""
        self.prompt, self.generated = Count(), Count()
        self.first_token_s, self.request_s = Histogram(), Histogram()

    def text(self, running: int, waiting: int) -> str:
        """Return everything, with the sequences that run and wait at this moment."""
        return "\n".join([*self._lines(running, waiting), ""])

    def _lines(self, running: int, waiting: int) -> Iterator[str]:
        yield from _head("requests_total", "counter", "requests by path and status of HTTP")
        for (path, status), count in sorted(self.requests.items()):
            yield f'loopcoder_requests_total{{path="{path}",status="{status}"}} {count}'
        for name, kind, about, value in (
            ("prompt_tokens_total", "counter", "tokens of accepted prompts", self.prompt.value),
            ("generated_tokens_total", "counter", "tokens generated", self.generated.value),
            ("sequences_running", "gauge", "sequences that are decoded now", running),
            ("sequences_waiting", "gauge", "sequences that wait for a place", waiting),
        ):
            yield from _head(name, kind, about)
            yield f"loopcoder_{name} {value}"
        for name, about, histogram in (
            ("first_token_seconds", "from a request to its first token", self.first_token_s),
            ("request_seconds", "from a request to the end of its answer", self.request_s),
        ):
            yield from _head(name, "histogram", about)
            yield from histogram.lines(f"loopcoder_{name}")


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP loopcoder_{name} {about}"
    yield f"# TYPE loopcoder_{name} {kind}"
