"""`python -m api`: serve the API with uvicorn until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse

import uvicorn

from api.app import create_app
from farm.logs import configure_logging
from farm.settings import Settings

_DRAIN_S = 10  # what a request may still take after SIGTERM


def main() -> None:
    """Read arguments and settings once, then serve."""
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve the API of the farm.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    arguments = parser.parse_args()
    settings = Settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    uvicorn.run(
        create_app(settings),
        host=arguments.host,
        port=arguments.port,
        log_config=None,  # ours, above
        access_log=False,  # api.observe logs requests
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )


if __name__ == "__main__":
    main()
