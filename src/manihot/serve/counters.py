"""What /metrics tells, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """A number that only grows, one per value of its labels."""

    kind = "counter"

    def __init__(self, name: str, what: str, labels: tuple[str, ...] = ()) -> None:
        self.name, self.what, self.labels = name, what, labels
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, *values: str, by: float = 1.0) -> None:
        """Count one more, or `by`. values: of the labels, from a small known set."""
        self.values[values] = self.values.get(values, 0.0) + by

    def lines(self) -> list[str]:
        """Its samples."""
        return [
            f"{self.name}{_labels(self.labels, values)} {_number(value)}"
            for values, value in sorted(self.values.items())
        ]


class Histogram:
    """How a quantity is distributed, by cumulative buckets."""

    kind = "histogram"

    def __init__(self, name: str, what: str, edges: tuple[float, ...]) -> None:
        self.name, self.what, self.edges = name, what, edges
        self.counts, self.total = [0] * (len(edges) + 1), 0.0

    def add(self, value: float) -> None:
        """One more observation."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    def lines(self) -> list[str]:
        """Its samples."""
        found, so_far = [], 0
        for edge, count in zip((*self.edges, None), self.counts, strict=True):
            so_far += count
            found.append(f'{self.name}_bucket{{le="{"+Inf" if edge is None else f"{edge:g}"}"}} {so_far}')
        return [*found, f"{self.name}_sum {_number(self.total)}", f"{self.name}_count {so_far}"]


class Gauge:
    """A number that is looked up when it is asked for."""

    kind = "gauge"

    def __init__(self, name: str, what: str, value: Callable[[], float]) -> None:
        self.name, self.what, self.value = name, what, value

    def lines(self) -> list[str]:
        """Its one sample."""
        return [f"{self.name} {_number(self.value())}"]


class Counters:
    """All that is counted; `gauges` are added by whoever knows their values."""

    def __init__(self) -> None:
        self.requests = Counter("manihot_requests_total", "Requests, by path and status", ("path", "status"))
        self.photographs = Counter("manihot_photographs_total", "Photographs, by what became of them", ("outcome",))
        self.refused = Counter("manihot_refused_total", "Requests turned away for want of room")
        self.returns = Counter("manihot_returns_total", "Archives of returned photographs that were kept")
        self.received = Counter("manihot_received_bytes_total", "Bytes of bodies that were read")
        self.seconds = Histogram("manihot_request_seconds", "From a request's head to its answer", SECONDS)
        self.batches = Histogram("manihot_batch_size", "Photographs that went through the network at once", SIZES)
        self.gauges: list[Gauge] = []

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        own: tuple[Counter | Histogram, ...] = (
            self.requests,
            self.photographs,
            self.refused,
            self.returns,
            self.received,
            self.seconds,
            self.batches,
        )
        found: list[str] = []
        for one in (*own, *self.gauges):
            found += [f"# HELP {one.name} {one.what}", f"# TYPE {one.name} {one.kind}", *one.lines()]
        return "\n".join(found) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in values)
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True)) + "}"


def resident_bytes(process: int | str = "self") -> float:
    """Memory of a process, where the system tells it; 0 elsewhere."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _page()
    except OSError:
        return 0.0


def _page() -> int:
    if sys.platform == "win32":
        return 4096
    import resource

    return resource.getpagesize()
