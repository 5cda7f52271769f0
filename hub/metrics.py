"""The Prometheus families of a node. No room, user or tenant is ever a label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"auralink_hub_{name}", text, labels, registry=REGISTRY)


def gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"auralink_hub_{name}", text, labels, registry=REGISTRY)


def histogram(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(f"auralink_hub_{name}_seconds", text, labels, buckets=_SECONDS, registry=REGISTRY)


COMMANDS = counter(
    "commands", "Commands by name, door and outcome (ok, or the code of the refusal)", "name", "door", "outcome"
)
COMMAND_SECONDS = histogram("command", "Time from decode to answer", "name")
