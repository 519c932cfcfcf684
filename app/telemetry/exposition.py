"""Metrics as Prometheus's text; of several workers all, each with a label of its own.

`prometheus_client` is imported here alone, so that only a server whose metrics are read loads it.
"""

import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from app.telemetry.instruments import Histogram
from app.telemetry.metrics import Metrics

Family = dict[str, Any]
"""A metric as JSON: `name`, `documentation`, `type`, `samples` of [name, labels, value]."""


def families_of(metrics: Metrics) -> list[Family]:
    """Return this process's metrics: the platform's own, and those of Python and the system."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    if gc.isenabled():
        GCCollector(registry=registry)
    return [_to_json(metric) for metric in [*_own(metrics), *registry.collect()]]


def render(families: Mapping[str, Iterable[Family]], *, names_workers: bool) -> bytes:
    """Write the metrics of processes, by the name of each, which can be the label `worker`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families, names_workers=names_workers))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Mapping[str, Iterable[Family]], *, names_workers: bool) -> None:
        self._families = families
        self._names_workers = names_workers

    @override
    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for worker, families in self._families.items():
            for family in families:
                name = family["name"]
                metric = merged.get(name)
                if metric is None:
                    metric = Metric(name, family["documentation"], family["type"])
                    merged[name] = metric
                for sample_name, labels, value in family["samples"]:
                    own = {"worker": worker} if self._names_workers else {}
                    metric.add_sample(sample_name, {**labels, **own}, value)
        return merged.values()


def _own(metrics: Metrics) -> Iterator[Metric]:
    for counter in metrics.counters:
        family = CounterMetricFamily(
            counter.name, counter.documentation, labels=counter.label_names
        )
        for labels, value in counter.values.items():
            family.add_metric(labels, value)
        yield family
    for histogram in metrics.histograms:
        yield _histogram(histogram)
    for gauge in metrics.gauges:
        family = GaugeMetricFamily(gauge.name, gauge.documentation, labels=gauge.label_names)
        for labels, value in gauge.read().items():
            family.add_metric(labels, value)
        yield family


def _histogram(histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(
        histogram.name, histogram.documentation, labels=histogram.label_names
    )
    for labels, counts in histogram.counts.items():
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*histogram.buckets, math.inf), counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == math.inf else str(float(bound)), total))
        family.add_metric(labels, buckets, sum_value=histogram.sums[labels])
    return family


def _to_json(metric: Metric) -> Family:
    return {
        "name": metric.name,
        "documentation": metric.documentation,
        "type": metric.type,
        "samples": [[sample.name, sample.labels, sample.value] for sample in metric.samples],
    }
