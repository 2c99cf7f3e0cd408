"""
The exposition of metrics in the text format of Prometheus, or in that of OpenMetrics if the client prefers it.

This is the only module that imports prometheus-client, which is the extra ``metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dicomtwist.runtime.figures.counts import BOUNDS
from dicomtwist.web.monitoring.definitions import METRICS, Metric, Snapshot

__all__ = ["expose"]


def expose(snapshots: Mapping[str, Snapshot], accept: str) -> tuple[bytes, str]:
    """
    Return the metrics of all processes as text, and its media type. It takes some milliseconds for each process.

    :param snapshots: the metrics by the names of the processes.
    :param accept: the field Accept of the request.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshots(snapshots))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Snapshots(Collector):
    """Metrics that were collected before."""

    def __init__(self, snapshots: Mapping[str, Snapshot]) -> None:
        self._snapshots = snapshots

    def describe(self) -> list[Any]:
        """Return nothing, so that the registry does not collect once more."""
        return []

    def collect(self) -> Iterator[Any]:
        for name, metric in METRICS.items():
            samples = [
                (process, sample) for process, snapshot in self._snapshots.items() for sample in snapshot.get(name, ())
            ]
            if samples:
                yield _family(name, metric, samples)


def _family(name: str, metric: Metric, samples: list[tuple[str, list[Any]]]) -> Any:
    labels = ("process", *metric.labels)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.words, labels=labels)
        for process, (*values, classes, total) in samples:
            bounds = [*map(str, BOUNDS), "+Inf"]
            histogram.add_metric(
                [process, *map(str, values)], list(zip(bounds, accumulate(classes), strict=True)), sum_value=total
            )
        return histogram
    family: Any = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
        name, metric.words, labels=labels
    )
    for process, (*values, number) in samples:
        family.add_metric([process, *map(str, values)], number)
    return family
