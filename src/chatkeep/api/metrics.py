"""What the server counts and measures, at /metrics for Prometheus. No owner, no id, no content is in it."""

import time
from collections.abc import Awaitable, Callable
from functools import cache, wraps
from typing import Any

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
from chatkeep.store import Store
from chatkeep.stores.group_commit import GroupCommit

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


def watch(store: Store) -> None:
    """Measure every operation of a store, and the size of every group that it commits."""
    for name in sorted(Store.__abstractmethods__ - {"access", "aclose"}):
        setattr(store, name, _measured(name, getattr(store, name)))
    if BATCH_ITEMS.observe not in GroupCommit.listeners:
        GroupCommit.listeners.append(BATCH_ITEMS.observe)


def _measured(name: str, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    seconds = STORE_SECONDS.labels(name)

    @wraps(work)
    async def measured(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return await work(*arguments, **options)
        except ChatkeepError as error:
            STORE_ERRORS.labels(name, type(error).__name__).inc()
            raise
        finally:
            seconds.observe(time.perf_counter() - began)

    return measured


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
