"""Metrics of a recorder for Prometheus.

    watch(recorder)                      # in the registry that prometheus_client serves
    watch(recorder, registry, recorder_name="kitchen")

They are read when Prometheus scrapes, and cost nothing in between.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from chatkeep.errors import InvalidInput

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

    from chatkeep.recorder import Recorder

COUNTERS = {
    "recorded": "Messages that were taken.",
    "sent": "Messages that the store acknowledged.",
    "retried": "Appends that were tried again.",
    "dead": "Messages that the store refused for good.",
    "dropped": "Messages that were dropped because the recorder was full.",
    "erased": "Messages that were removed, as their owner was erased.",
    "lost": "Messages that neither the store nor the journal has.",
    "sync_failures": "How often the disk refused the journal.",
}
GAUGES = {
    "unsent": "Messages that are held for the store.",
    "unsent_bytes": "Their size.",
    "queued": "Those of them that the journal does not have yet.",
    "oldest_unsent": "Age of the oldest message that is held, in seconds.",
    "journal_lag": "Age of the oldest message that the journal does not have, in seconds.",
    "highest_journal_lag": "From a message's recording to the journal's commit, in seconds: the longest so far.",
    "lag": "From a message's recording to the store's acknowledgement, in seconds: of the last one.",
    "highest_lag": "The longest so far.",
    "sync_lag": "From the journal's commit to the disk, in seconds: of the last one.",
    "highest_sync_lag": "The longest so far: what a power failure may take.",
}


class _Collector:
    """Collects a recorder's metrics."""

    def __init__(self, recorder: "Recorder", name: str) -> None:
        self._recorder = recorder
        self._name = name

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        stats = self._recorder.stats()
        for family_type, metrics in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for field, help_text in metrics.items():
                family = family_type(f"chatkeep_recorder_{field}", help_text, labels=["recorder"])
                family.add_metric([self._name], getattr(stats, field))
                yield family
        failing = GaugeMetricFamily(
            "chatkeep_recorder_journal_failing", "1 while the journal cannot be written.", labels=["recorder"]
        )
        failing.add_metric([self._name], float(stats.journal_failure is not None))
        yield failing


def watch(recorder: "Recorder", registry: "CollectorRegistry | None" = None, *, recorder_name: str = "default") -> None:
    """Register a recorder's metrics, with `recorder_name` as their label `recorder`.

    registry: defaults to the one that prometheus_client serves.
    Raises InvalidInput if prometheus_client is not installed.
    """
    try:
        from prometheus_client import REGISTRY
    except ModuleNotFoundError:
        raise InvalidInput("metrics need prometheus_client; install it with: pip install 'chatkeep[server]'") from None
    (REGISTRY if registry is None else registry).register(_Collector(recorder, recorder_name))
