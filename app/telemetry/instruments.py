"""Counters and histograms without locks, for one event loop: a tenth of a microsecond each.

`exposition` turns them into Prometheus's text when somebody asks.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Labels = tuple[str, ...]


@dataclass(slots=True)
class Counter:
    """Sums by label values; only ever grows."""

    name: str
    documentation: str
    label_names: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict[Labels, float])

    def add(self, *labels: str, amount: float = 1) -> None:
        """Add to the sum of `labels`, which are in the order of `label_names`."""
        self.values[labels] = self.values.get(labels, 0) + amount


@dataclass(slots=True)
class Histogram:
    """Counts of values by upper bounds in `buckets`, in ascending order, and their sums."""

    name: str
    documentation: str
    buckets: tuple[float, ...]
    label_names: Labels = ()
    counts: dict[Labels, list[int]] = field(default_factory=dict[Labels, list[int]])
    """Not cumulative; the last is of values above every bound."""
    sums: dict[Labels, float] = field(default_factory=dict[Labels, float])

    def observe(self, value: float, *labels: str) -> None:
        """Count a value."""
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.buckets) + 1)
            self.sums[labels] = 0
        counts[bisect_left(self.buckets, value)] += 1
        self.sums[labels] += value


@dataclass(frozen=True, slots=True)
class Gauge:
    """Values that are read when somebody asks."""

    name: str
    documentation: str
    label_names: Labels
    read: Callable[[], Mapping[Labels, float]]
