"""The composition root of the API: builds everything from the settings and puts it together. Knows no torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from api import (
    a1111,
    archive,
    health,
    images,
    ingredients,
    jobs,
    manifests,
    metrics,
    models,
    one_job,
    openai,
    openapi,
    page,
    problems,
    reports,
    retention,
    stored,
    tenants,
    uploads,
)
from api.batches import forecast, grid
from api.batches.preparing import GRID_CHORE
from api.chores import Chores, Handler
from api.collector import FarmCollector
from api.guard import keys
from api.guard.browsers import cors_of, origins_of
from api.guard.gate import Gate
from api.guard.keyring import keys_of
from api.metrics import HttpMetrics
from api.observe import Observe
from api.parts import DEFAULT_TENANT, build_parts
from api.tracing import Tracing
from api.watching import events, farm_events
from api.watching.polled import Polled
from api.webhooks import deliveries
from api.webhooks import endpoints as webhooks
from api.webhooks.sending import Sender
from farm.catalog import load_catalog
from farm.settings import Settings
from farm.tracing import Traces, make_traces


def create_app(settings: Settings, *, traces: Traces | None = None) -> FastAPI:
    """Return the application. Nothing is connected before it is asked for; raises Fatal for a broken setting.

    Its own `traces` go where the settings and the environment say.
    """
    if traces is None:
        traces = make_traces(settings, "api", environment=os.environ, instance=f"{socket.gethostname()}:{os.getpid()}")
    http_metrics = HttpMetrics()
    sender = Sender.of(settings)
    given_keys = keys_of(settings, tenant=DEFAULT_TENANT)
    cors_origins = origins_of(settings.cors_origins)
    handlers: dict[str, Handler] = {
        "manifest": retention.keep_manifest,
        "expire": retention.expire,
        GRID_CHORE: grid.keep_grid,
        openai.CHORE: openai.keep_outputs,
        "webhook": deliveries.Deliveries(deliveries.DeliveryMetrics(http_metrics.registry)),
    }

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        farm = build_parts(settings, sender, given_keys, started_at=time.time())
        collector = FarmCollector(farm, handlers)
        http_metrics.registry.register(collector)
        app.state.parts = farm
        chores = Chores(farm, handlers, at_once={"webhook": deliveries.AT_ONCE})
        chores.start()
        try:
            yield
        finally:
            farm.watcher.close()
            chores.stop()
            farm.watcher.join()
            await farm.passage.close()
            http_metrics.registry.unregister(collector)
            farm.celery.close()
            farm.ledger.close()
            traces.close()

    app = FastAPI(
        title="Diffusion Farm",
        version=version("diffusion-farm"),
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=lifespan,
        redirect_slashes=False,  # a path is right or it is 404
        # Scripts of another host make them, which must not get at the keys that a page of this origin holds.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.metrics = http_metrics
    app.state.asks_for_keys = settings.auth == "keys"
    app.add_middleware(Polled)  # the first is the innermost, the last the outermost
    if traces.is_on:
        app.add_middleware(Tracing, traces=traces)
    app.add_middleware(Gate, settings=settings)
    if cors_origins:
        app.add_middleware(CORSMiddleware, **cors_of(cors_origins))
    app.add_middleware(Observe, metrics=http_metrics)
    problems.install(app, dialects={**a1111.DIALECTS, **openai.DIALECTS})
    for module in (
        jobs,
        forecast,
        one_job,
        grid,
        events,
        archive,
        images,
        manifests,
        stored,
        webhooks,
        uploads,
        ingredients,
        tenants,
        keys,
        models,
        reports,
        farm_events,
        health,
        metrics,
        page,
    ):
        app.include_router(module.router)
    for router in (*openai.ROUTERS, *a1111.ROUTERS):
        app.include_router(router)
    app.webhooks.include_router(webhooks.messages)
    app.openapi = openapi.document_of(app, catalog=load_catalog(settings.catalog_file))  # type: ignore[method-assign]
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
