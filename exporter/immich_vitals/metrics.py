"""Metric declarations, samples, and the text that Prometheus reads.

A metric is declared once, as a module constant beside the collector that fills it, and is the only way to make
a sample. So a misspelt label fails in the first test, and the reference in docs/metrics.md cannot be forgotten.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric as Family

PREFIX = "immich_vitals_"


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of one series. `labels` are the values, in the order in which the metric declares the names."""

    metric: "Metric"
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as the documentation shows it.

    `name` is without the prefix `immich_vitals_`; a name that ends in `_total` is a counter, all others are
    gauges. `help` is one sentence that says what is counted, or what is true when the value is 1.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def kind(self) -> str:
        """`counter` or `gauge`."""
        return "counter" if self.name.endswith("_total") else "gauge"

    def sample(self, value: float, **labels: str) -> Sample:
        """One sample. Raises `ValueError` when the labels are not exactly the declared ones."""
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} takes labels {self.labels}, not {tuple(labels)}")
        try:
            values = tuple([_said(labels[name]) for name in self.labels])
        except KeyError:
            raise ValueError(f"{self.name} takes labels {self.labels}, not {tuple(labels)}") from None
        return Sample(self, values, float(value))

    def known(self, value: float | None, **labels: str) -> Iterator[Sample]:
        """One sample, or none when the value is unknown: an unknown value is no sample, not 0 and not -1."""
        if value is not None:
            yield self.sample(value, **labels)


def _said(label: str) -> str:
    """The label as text: names of files may be bytes that are none, and Python has signs for these that cannot be
    written. What Prometheus reads is then `\\udcfc` for the byte fc."""
    return label if label.isascii() else label.encode("utf-8", "backslashreplace").decode()


def info(**labels: str | None) -> dict[str, str]:
    """Labels for an info metric, with an empty string (in Prometheus: no label) for what is not known."""
    return {name: value or "" for name, value in labels.items()}


def families(metrics: Iterable[Metric], samples: Iterable[Sample]) -> list[Family]:
    """The samples as metric families for prometheus_client, in the order of `metrics`.

    Metrics without a sample are left out. Every sample must belong to one of `metrics`.
    """
    by_metric: dict[str, Family] = {}
    for metric in metrics:
        name = metric.full_name
        family = Family(name.removesuffix("_total") if metric.kind == "counter" else name, metric.help, metric.kind)
        by_metric[metric.name] = family
    for sample in samples:
        metric = sample.metric
        by_metric[metric.name].add_sample(
            metric.full_name, dict(zip(metric.labels, sample.labels, strict=True)), sample.value
        )
    return [family for family in by_metric.values() if family.samples]
