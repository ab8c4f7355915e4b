"""`python -m api`: serve the API with uvicorn until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import sys
from contextlib import suppress
from socket import socket
from typing import Final

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from api.app import create_app
from farm.errors import Fatal
from farm.logs import configure_logging
from farm.settings import Settings

_DRAIN_S: Final = 10  # what a request may still take after SIGTERM
_NOT_STARTED: Final = 3  # as uvicorn's own command ends
_COLLECTED_AFTER: Final = (20_000, 20, 50)  # new objects; collections of these; of those
_SWITCH_S: Final = 0.0005  # threads read Redis for the event loop; by default each of their steps may wait 5 ms for it


class Server(uvicorn.Server):
    """uvicorn, but whoever waits for news is told first that no more will come: it waits for them to leave."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start, and do what clients would wait for later: the first signature loads what S3 knows of its endpoints."""
        await super().startup(sockets)
        with suppress(Fatal):  # without credentials: readiness says so
            self._app.state.parts.store.presigned_url("warm-up")
        # A collection holds up every client. What stands for as long as we do is looked at by none, and the others
        # are rare: a request leaves next to nothing behind that only they would find.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTED_AFTER)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop in good order."""
        self._app.state.parts.watcher.close()
        await super().shutdown(sockets)


def objection(settings: Settings, host: str) -> str:
    """Return what speaks against listening at `host`: nothing if keys are asked for, or this machine alone gets in."""
    try:
        is_local = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_local = host == "localhost"
    is_safe = is_local or settings.auth == "keys"
    return "" if is_safe else f"whoever reaches {host} is the farm's operator"


def main() -> None:
    """Read arguments and settings once, then serve."""
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve the API of the farm.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        settings = Settings()
        app = create_app(settings)
    except (ValidationError, Fatal) as error:  # a wrong FARM_* variable, a broken catalog file
        parser.exit(2, f"{parser.prog}: {error}\n")
    refusal = objection(settings, arguments.host)
    if refusal and "auth" not in settings.model_fields_set:
        parser.exit(
            2, f"{parser.prog}: {refusal}; set FARM_AUTH=keys to ask for API keys, or FARM_AUTH=open to mean it\n"
        )
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    logging.getLogger("uvicorn.access").disabled = True  # api.observe logs requests, with more to tell
    if refusal:
        logging.getLogger("api").warning("FARM_AUTH=open: %s", refusal, extra={"action": "api_open"})
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_config=None,  # ours, above
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    sys.setswitchinterval(_SWITCH_S)
    server = Server(config, app)
    with suppress(KeyboardInterrupt):  # uvicorn has stopped in good order, and raises the signal again
        server.run()
    if not server.started:
        sys.exit(_NOT_STARTED)


if __name__ == "__main__":
    main()
