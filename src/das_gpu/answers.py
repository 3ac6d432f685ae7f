"""What a store's refusals and failures mean, whichever library reports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from das_gpu.credentials import ENVIRONMENT
from das_gpu.errors import (
    AccessDeniedError,
    DasGpuError,
    DestinationError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)
from das_gpu.locations import Location

Kind = type[DasGpuError]

STATUSES: Mapping[int, tuple[Kind, str]] = {
    401: (AccessDeniedError, "the credentials are not valid"),
    403: (AccessDeniedError, "access is denied"),
    404: (SourceNotFoundError, "nothing is stored there"),
}
# Azure answers 409 where public access is switched off for the whole account.
_REFUSALS = ("PublicAccessNotPermitted",)
_ADVICE: Mapping[Kind, str] = {
    SourceNotFoundError: "Check the spelling",
    AccessDeniedError: "Check the credentials",
    UsageError: "Correct the location",
    SourceError: "Try again; if it persists, ask who runs the store",
}


@dataclass(frozen=True, slots=True)
class Errand:
    """What is being done where, for messages.

    Attributes
    ----------
    location : Location
    credential : str
        Which credential is used, as the user named it; empty when none is.
    writing : bool
        The place is a run's output: failures are the destination's.
    """

    location: Location
    credential: str = ""
    writing: bool = False

    def failed(self, key: str, kind: Kind, meaning: str, found: str = "") -> DasGpuError:
        """Make the error that a user sees.

        Parameters
        ----------
        key : str
            The object, when it is one.
        kind, meaning
            Kind of error, and what it means in a few words.
        found : str
            What the store said.
        """
        place = f"{self.location}/{key}" if key else str(self.location)
        doing = "Writing to" if self.writing else "Reading"
        detail = f" ({found})" if found else ""
        text = f"{doing} {place}: {meaning}{detail}. {self._advice(kind)}."
        if self.writing and issubclass(kind, SourceError):
            return DestinationError(text)
        return kind(text)

    def answered(
        self, key: str, status: int, code: str = "", otherwise: str = "the store failed"
    ) -> DasGpuError:
        """Make the error for an HTTP status and the store's own error code."""
        kind, meaning = STATUSES.get(status, (SourceError, otherwise))
        if code in _REFUSALS:
            kind, meaning = STATUSES[403]
        return self.failed(key, kind, meaning, f"HTTP status {status}" + (code and f", {code}"))

    def _advice(self, kind: Kind) -> str:
        advice = _ADVICE[kind]
        if self.location.scheme != "azure" or kind in (SourceError, UsageError):
            return advice
        if self.credential:
            return f"{advice}. It was tried with the credential '{self.credential}'"
        option = "--out-credential" if self.writing else "--credential"
        return f"{advice}. It was tried anonymously; give {option}, or set {ENVIRONMENT}"
