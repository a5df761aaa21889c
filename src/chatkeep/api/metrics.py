"""Prometheus metrics, served at /metrics. Labels hold no owners, ids or content."""

from functools import cache

from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from chatkeep.answers.runner import TurnObserver
from chatkeep.errors import ChatkeepError
from chatkeep.model import Status
from chatkeep.settings import metrics_folder
from chatkeep.store import Observer, Store

REGISTRY = CollectorRegistry()
SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter("chatkeep_requests", "Requests answered.", ["method", "route", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "chatkeep_request_seconds", "Time from the head of a request to the end of its response.", ["method", "route"],
    buckets=SECONDS_BUCKETS, registry=REGISTRY,
)  # fmt: skip
REJECTED = Counter(
    "chatkeep_rejected", "Requests refused before they reached a route, by status.", ["status"], registry=REGISTRY
)
STORE_SECONDS = Histogram(
    "chatkeep_store_seconds", "Operations of the store.", ["operation"], buckets=SECONDS_BUCKETS, registry=REGISTRY
)
STORE_ERRORS = Counter(
    "chatkeep_store_errors", "Operations of the store that raised.", ["operation", "error"], registry=REGISTRY
)
COMMIT_ITEMS = Histogram("chatkeep_commit_items", "Writes in one commit.", buckets=SIZE_BUCKETS, registry=REGISTRY)
STORE_STATE = Gauge(
    "chatkeep_store_state", "State of the store, such as connections in use.", ["what"],
    registry=REGISTRY, multiprocess_mode="livesum",
)  # fmt: skip
TURNS_RUNNING = Gauge(
    "chatkeep_turns_running", "Answers that are being made.", registry=REGISTRY, multiprocess_mode="livesum"
)
TURNS = Counter("chatkeep_turns", "Answers that ended, by status.", ["status"], registry=REGISTRY)

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics() -> Response:
    """Return the metrics of all worker processes."""
    registry = REGISTRY
    if metrics_folder():
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class StoreMetrics(Observer):
    """Measures the calls of a store, and the sizes of its group commits."""

    def called(self, operation: str, seconds: float, error: ChatkeepError | None) -> None:
        """Record the duration, and the error if there was one."""
        _store_seconds(operation).observe(seconds)
        if error is not None:
            STORE_ERRORS.labels(operation, type(error).__name__).inc()

    def committed(self, items: int) -> None:
        """Record the size of a commit."""
        COMMIT_ITEMS.observe(items)


class TurnMetrics(TurnObserver):
    """Counts answers."""

    def running(self, turns: int) -> None:
        """Record how many this process makes now."""
        TURNS_RUNNING.set(turns)

    def ended(self, status: Status) -> None:
        """Record how one ended."""
        TURNS.labels(status.value).inc()


def count_request(store: Store, method: str, route: str | None, status: int, seconds: float) -> None:
    """Record a request, and the current state of the store. `route` is None if no route was reached."""
    if route is None:
        count_refusal(status)
    else:
        requests, durations = _request_metrics(method, route, status)
        requests.inc()
        durations.observe(seconds)
    for what, value in store.state().items():
        _store_state(what).set(value)


def count_refusal(status: int) -> None:
    """Record a request that reached no route."""
    REJECTED.labels(str(status)).inc()


# Cached: looking up the child of a metric costs more than counting, and there are few.
@cache
def _request_metrics(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(method, route, str(status)), REQUEST_SECONDS.labels(method, route)


_store_state = cache(STORE_STATE.labels)
_store_seconds = cache(STORE_SECONDS.labels)
