"""The one error tree: whose fault it is decides the branch, and the branch decides what happens next.

Errors are translated at two edges only: `api.problems` turns them into HTTP answers, `worker.render` into ledger
transitions. Everything between lets them pass.
"""

from __future__ import annotations


class FarmError(Exception):
    """Something in the farm went wrong; the message is meant to be shown."""


class Refused(FarmError):
    """The client's fault: asking again the same way cannot help.

    `field` is the JSON path of the offending value (`prompts.3.width`), `value` what was given and `choices`
    what would have been accepted, each as far as they apply.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        choices: list[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.choices = choices


class UnknownJob(Refused):
    """There is no job with this id."""


class UnknownModel(Refused):
    """The catalog has no model with this name."""


class JobCancelled(Refused):
    """A cancelled job is not taken up again."""


class IdempotencyConflict(Refused):
    """The same Idempotency-Key came with a different body."""


class QueueFull(FarmError):
    """The backlog is at its limit: the client may try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Transient(FarmError):
    """Nobody's fault: the same thing may succeed later, so it is tried again."""


class LedgerDown(Transient):
    """Redis does not answer."""


class StorageDown(Transient):
    """The S3 endpoint does not answer, or not with success."""


class HubDown(Transient):
    """The hub of models does not answer, or not with success."""


class Fatal(FarmError):
    """Trying again cannot help: the unit is failed and the reason recorded."""


class ModelBroken(Fatal):
    """The model's weights cannot be loaded; every unit that asks for it fails with this reason."""


class RenderFailed(Fatal):
    """This unit cannot be rendered, wherever it is tried."""
