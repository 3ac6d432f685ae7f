"""How SOURCE and OUT are reached: credentials, the account, the library that reads, patience."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from das_gpu.cli.options import option
from das_gpu.errors import UsageError

if TYPE_CHECKING:
    from das_gpu.store import Access

ACCESS = Group(
    "Access",
    help="A secret is never given itself, but the environment variable, or @FILE, that holds it.",
    sort_key=17,
)


@Parameter(name="*")
@dataclass(frozen=True)
class AccessOptions:
    """How SOURCE is reached."""

    credential: Annotated[
        str,
        option(
            ACCESS,
            "anonymous, default (azure-identity), or key:, sas: or connection-string: and NAME or "
            "@FILE. [default: auto, what AZURE_STORAGE_... variables hold for the account, "
            "else anonymous]",
            metavar="FORM",
        ),
    ] = "auto"
    account: Annotated[
        str, option(ACCESS, "Storage account of az:// addresses.", metavar="NAME")
    ] = ""
    transport: Annotated[
        Literal["obstore", "azure-sdk"],
        option(ACCESS, "The library that reads. [default: obstore]"),
    ] = "obstore"
    patience: Annotated[
        float | None,
        option(
            ACCESS,
            "How long one chunk is tried before it is given up. [default: 240]",
            metavar="SECONDS",
        ),
    ] = None

    def access(self, credential: str | None = None) -> Access:
        """How SOURCE is reached; with another credential, how OUT is."""
        from das_gpu.credentials import Credential
        from das_gpu.patience import Patience
        from das_gpu.store import Access

        if self.patience is not None and not self.patience > 0:
            raise UsageError(f"--patience {self.patience:g} leaves no time: give seconds above 0.")
        patience = Patience() if self.patience is None else Patience.within(self.patience)
        parsed = Credential.parse(self.credential if credential is None else credential)
        return Access(parsed, self.transport, patience, self.account)
