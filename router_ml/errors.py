"""Every error that this project raises on purpose.

RouterError
+-- InputError (ValueError)        an argument, file or setting is wrong; the message says what to do
|   +-- QueryError                 the query itself
|   +-- ContextError               a context of the wrong shape
|   +-- RowError                   one row of a file: file, line, field
|   +-- PolicyError                an unknown or contradictory policy
|   +-- CatalogueError             an unknown model or a bad catalogue
|   +-- SettingsError              an environment variable or option
|   +-- ExperimentError            an experiment that cannot be run as written
+-- BundleError                    a learned bundle cannot be used
|   +-- BundleMissing
|   +-- BundleCorrupt              truncated, altered or of the wrong content
|   +-- BundleFormatError          written by a newer version
+-- EncoderError                   the sentence encoder cannot be loaded or run
+-- StoreError                     the event store
+-- GatewayError                   a request could not be served
    +-- NoModelAvailable           no healthy model to call
    +-- DeadlineExceeded (TimeoutError)
    +-- Overloaded                 refused: try again after `retry_after_s`
    +-- AttemptsFailed             every model of the chain was tried
    +-- StreamInterrupted          failed after the first byte; never repeated silently
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def shown(value: object) -> str:
    """Return a short form of any value for a message, however long or deep the value is."""
    try:
        return _SHORT.repr(value)
    except Exception:  # a `__repr__` of another library, or an integer of thousands of digits
        return f"a {type(value).__name__}"


class RouterError(Exception):
    """Root of all errors raised on purpose. Every one can be pickled, so that process pools return it as it was."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, dict(self.__dict__))


def _rebuilt(kind: type[RouterError], args: tuple[Any, ...], state: dict[str, Any]) -> RouterError:
    """Return an error with its message and attributes, without calling an `__init__` that wants other arguments."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InputError(RouterError, ValueError):
    """An argument, file or setting is wrong; the message says what to do."""


class QueryError(InputError):
    """The query cannot be routed, for example because it is not a string."""


class ContextError(InputError):
    """The context has the wrong shape; `field` names the key."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RowError(InputError):
    """A row of a JSON Lines file is wrong."""

    def __init__(self, file: str, line: int, field: str | None, problem: str) -> None:
        where = f"{file}:{line}" + (f": field {field!r}" if field else "")
        super().__init__(f"{where}: {problem}")
        self.file = file
        self.line = line
        self.field = field
        self.problem = problem


class PolicyError(InputError):
    """A policy is unknown or contradicts itself."""


class CatalogueError(InputError):
    """A model is unknown, or a catalogue file is wrong."""


class SettingsError(InputError):
    """A setting (environment variable, option) has a value that cannot be used."""


class ExperimentError(InputError):
    """An experiment cannot be run as it is written."""


class BundleError(RouterError):
    """A learned bundle cannot be used."""


class BundleMissing(BundleError):
    """There is no bundle at the given path."""


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, truncated, altered or of the wrong content."""


class BundleFormatError(BundleError):
    """The bundle was written in a format this version does not read."""


class EncoderError(RouterError):
    """The sentence encoder cannot be loaded or run."""


class StoreError(RouterError):
    """The event store cannot be opened, read or written."""


class GatewayError(RouterError):
    """A request could not be served."""


class NoModelAvailable(GatewayError):
    """No model of the chain is installed, healthy and able to serve the request."""


class DeadlineExceeded(GatewayError, TimeoutError):
    """The deadline of the whole chain passed."""


class Overloaded(GatewayError):
    """The request was refused because it could not have been served in time.

    `retry_after_s` is the time in seconds after which a slot is likely to be free."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AttemptsFailed(GatewayError):
    """Every model of the chain was tried and failed; `attempts` holds each with its error."""

    def __init__(self, message: str, attempts: Sequence[object]) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)


class StreamInterrupted(GatewayError):
    """A stream broke after its first byte had been passed on; it is never repeated silently."""
