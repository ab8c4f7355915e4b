"""How the command line ends: one error type that carries its message and its exit code."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `farm`; scripts may rely on them."""

    OK = 0
    FAILED = 1  # images failed, a job was cancelled, or a part of the farm would not start
    USAGE = 2  # the command line or a prompt file makes no sense
    NO_FARM = 3  # nothing answers at the URL
    REFUSED = 4  # the API refused the request
    IN_USE = 5  # the port or the data folder belongs to somebody else
    INTERRUPTED = 130  # Ctrl-C; a job that was being watched goes on


class CliError(Exception):
    """A command ends here; the message is meant to be shown as it is."""

    def __init__(self, message: str, *, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
