"""What the server counts and measures, at /metrics for Prometheus. No owner, no id, no content is in it."""

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

from chatkeep.errors import ChatkeepError
from chatkeep.settings import shared_metrics
from chatkeep.store import Observer, Store

REGISTRY = CollectorRegistry()
FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter("chatkeep_requests", "Requests answered.", ["method", "route", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "chatkeep_request_seconds", "From a request's head to its answer's end.", ["method", "route"],
    buckets=FAST, registry=REGISTRY,
)  # fmt: skip
REJECTED = Counter("chatkeep_rejected", "Requests not let in, by status.", ["status"], registry=REGISTRY)
STORE_SECONDS = Histogram(
    "chatkeep_store_seconds", "Operations of the store.", ["operation"], buckets=FAST, registry=REGISTRY
)
STORE_ERRORS = Counter(
    "chatkeep_store_errors", "Operations of the store that raised.", ["operation", "error"], registry=REGISTRY
)
BATCH_ITEMS = Histogram("chatkeep_commit_items", "Writes that one commit took along.", buckets=SIZES, registry=REGISTRY)
STORE_STATE = Gauge(
    "chatkeep_store_state", "Connections in use, and what else the store tells of itself.", ["what"],
    registry=REGISTRY, multiprocess_mode="livesum",
)  # fmt: skip

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics() -> Response:
    """Return the counts of all worker processes."""
    registry = REGISTRY
    if shared_metrics():
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class StoreMetrics(Observer):
    """Measures the calls of a store, and the size of its group commits."""

    def called(self, operation: str, seconds: float, error: ChatkeepError | None) -> None:
        """Count the call's seconds, and its error if it raised one."""
        _duration(operation).observe(seconds)
        if error is not None:
            STORE_ERRORS.labels(operation, type(error).__name__).inc()

    def committed(self, items: int) -> None:
        """Count a commit by its size."""
        BATCH_ITEMS.observe(items)


def answered(store: Store, method: str, route: str | None, status: int, seconds: float) -> None:
    """Count a request."""
    if route is None:
        REJECTED.labels(str(status)).inc()
    else:
        count, duration = _counters(method, route, status)
        count.inc()
        duration.observe(seconds)
    for what, value in store.state().items():
        _gauge(what).set(value)


@cache
def _counters(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """What counts the answers of a route: looked up once, as there are few."""
    return REQUESTS.labels(method, route, str(status)), REQUEST_SECONDS.labels(method, route)


_gauge = cache(STORE_STATE.labels)
_duration = cache(STORE_SECONDS.labels)
