"""The Prometheus families of a node. No room, user or tenant is ever a label."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

REGISTRY = CollectorRegistry()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"auralink_hub_{name}", text, labels, registry=REGISTRY)


def gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"auralink_hub_{name}", text, labels, registry=REGISTRY)


def histogram(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(f"auralink_hub_{name}_seconds", text, labels, buckets=_SECONDS, registry=REGISTRY)


class Tally:
    """A counter for what happens thousands of times a second on the loop: integers, made into samples when scraped.

    The library's own takes a lock, and looks up its labels under another, each time.
    """

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name, self._text, self._labels = f"auralink_hub_{name}", text, labels
        self.values: dict[tuple[str, ...], int] = {}
        REGISTRY.register(self)

    def add(self, number: int, *labels: str) -> None:
        values = self.values
        values[labels] = values.get(labels, 0) + number

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, number in list(self.values.items()):
            family.add_metric(labels, number)
        yield family


class Level:
    """A gauge for the same."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = f"auralink_hub_{name}", text
        self.value = 0
        REGISTRY.register(self)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._text, value=self.value)


class Outcomes:
    """How often what ended how, and how long it took: a counter and a histogram in one, for the same."""

    def __init__(self, name: str, text: str, time_text: str, label: str, *more: str) -> None:
        self._name, self._label, self._labels = f"auralink_hub_{name}", label, (label, *more)
        self._text, self._time_text = text, time_text
        self._counts: dict[tuple[str, ...], int] = {}
        # How many in each bucket and above the last, and the sum.
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        REGISTRY.register(self)

    def add(self, seconds: float, labels: tuple[str, ...]) -> None:
        counts, name = self._counts, labels[0]
        counts[labels] = counts.get(labels, 0) + 1
        buckets = self._buckets.get(name)
        if buckets is None:
            buckets = self._buckets[name] = [0] * (len(_SECONDS) + 1)
            self._sums[name] = 0.0
        buckets[bisect_left(_SECONDS, seconds)] += 1
        self._sums[name] += seconds

    def collect(self) -> Iterator[Metric]:
        counter = CounterMetricFamily(f"{self._name}s", self._text, labels=self._labels)
        for labels, number in list(self._counts.items()):
            counter.add_metric(labels, number)
        yield counter
        histogram = HistogramMetricFamily(f"{self._name}_seconds", self._time_text, labels=[self._label])
        for name, counts in list(self._buckets.items()):
            histogram.add_metric([name], _below(counts), self._sums[name])
        yield histogram


class Timing:
    """A histogram without labels, for the same."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = f"auralink_hub_{name}_seconds", text
        self._buckets, self._sum = [0] * (len(_SECONDS) + 1), 0.0
        REGISTRY.register(self)

    def observe(self, seconds: float) -> None:
        self._buckets[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._text, buckets=_below(self._buckets), sum_value=self._sum)


class Totals:
    """A counter by one label of what others count already: `read` gives the numbers when it is scraped."""

    def __init__(self, name: str, text: str, label: str) -> None:
        self._name, self._text, self._label = f"auralink_hub_{name}", text, label
        self.read: Callable[[], Mapping[str, int]] = dict
        REGISTRY.register(self)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in self.read().items():
            family.add_metric([value], number)
        yield family


def _below(counts: Iterable[int]) -> list[tuple[str, float]]:
    """By edge, how many are not above it."""
    buckets, below = [], 0
    for edge, count in zip((*map(str, _SECONDS), "+Inf"), counts, strict=True):
        below += count
        buckets.append((edge, float(below)))
    return buckets


COMMANDS = Outcomes(
    "command",
    "Commands by name, door and outcome (ok, or the code of the refusal)",
    "Time from decode to answer",
    "name",
    "door",
    "outcome",
)
