"""`python -m api`: serve the API with uvicorn until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging

import uvicorn
from pydantic import ValidationError

from api.app import create_app
from farm.errors import Fatal
from farm.logs import configure_logging
from farm.settings import Settings

_DRAIN_S = 10  # what a request may still take after SIGTERM


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
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    logging.getLogger("uvicorn.access").disabled = True  # api.observe logs requests, with more to tell
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        log_config=None,  # ours, above
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )


if __name__ == "__main__":
    main()
