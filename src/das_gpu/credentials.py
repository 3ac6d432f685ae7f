"""Where secrets are found, and what they are.

A :class:`Credential` names a place (an environment variable or a file) and holds no secret, so
it may be pickled and shown; only :meth:`Credential.resolve` reads one. Nothing here asks a cloud's
metadata address, but ``default``, which the user has to ask for.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from das_gpu.errors import UsageError
from das_gpu.redaction import register

Kind = Literal["auto", "anonymous", "default", "key", "sas", "connection-string"]

FORMS = (
    "auto, anonymous, default, key:WHERE, sas:WHERE or connection-string:WHERE, where WHERE is the "
    "name of an environment variable, or @ and the path of a file, that holds the secret"
)
ENVIRONMENT = (
    "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SECRET = re.compile(r"(?i)sig=|accountkey=|[a-z0-9+/]{86}==")  # what is no file's name
_LARGEST_FILE = 1 << 16
_SCOPE = "https://storage.azure.com/.default"


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """What is sent to a store: a key, a signature, tokens, or nothing. Never shown or pickled.

    Attributes
    ----------
    kind : {"anonymous", "key", "sas", "token"}
    value : str
        The key, or the signature without a leading ``?``.
    chain : object or None
        An azure-identity credential, when tokens are sent.
    origin : str
        The variable, or @ and the file, in which it was found.
    """

    kind: Literal["anonymous", "key", "sas", "token"]
    value: str = ""
    chain: object | None = None
    origin: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return f"<Secret: {self.kind}>"

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        raise TypeError("a secret is not pickled: send the Credential, which says where it is")


ANONYMOUS = Secret("anonymous")


@dataclass(frozen=True, slots=True)
class Credential:
    """Which credential to use, and where it is found. Holds no secret.

    Attributes
    ----------
    kind : str
        ``auto`` takes what the environment holds for the account, else nothing; ``default`` is
        azure-identity's chain.
    where : str
        An environment variable, or ``@`` and the path of a file.
    """

    kind: Kind = "auto"
    where: str = ""

    @classmethod
    def parse(cls, text: str) -> Credential:
        """Understand what a user gives as a credential.

        Raises
        ------
        UsageError
            It is none of the forms. The text is not repeated, since it may be a secret.

        Examples
        --------
        >>> Credential.parse("sas:MY_TOKEN")
        Credential(kind='sas', where='MY_TOKEN')
        """
        kind, _, where = text.partition(":")
        needs_place = kind in ("key", "sas", "connection-string")
        file = where[1:] if where.startswith("@") else ""
        sound = _NAME.fullmatch(where) or (file and not _SECRET.search(file))
        if kind not in get_args(Kind) or (not sound if needs_place else where):
            raise UsageError(
                f"The credential is not understood. Give {FORMS}. The secret itself is never given "
                "as an option: it would stand in process lists and shell histories."
            )
        return cls(kind, where)  # type: ignore[arg-type]  # one of Kind, by the test above

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}" if self.where else self.kind

    def resolve(self, account: str) -> Secret:
        """Find the secret for a storage account of Azure.

        Raises
        ------
        UsageError
            The variable or file that was named is not there or holds nothing of that kind, or
            azure-identity is not installed.
        """
        secret = self._found(account)
        return replace(secret, origin=self.where) if self.where else secret

    def _found(self, account: str) -> Secret:
        match self.kind:
            case "anonymous":
                return ANONYMOUS
            case "default":
                return _default_chain()
            case "auto":
                return _from_environment(account)
            case "key":
                return _key(_read(self.where))
            case "sas":
                return _signature(_read(self.where))
        secret = _of_connection(parse_connection_string(_read(self.where)), account)
        if secret is None:
            raise UsageError(
                f"The connection string in {self.where} holds no AccountKey and no "
                f"SharedAccessSignature for the account {account}. Copy the string of that account "
                "again, or correct the account's name."
            )
        return secret

    def connection(self) -> dict[str, str]:
        """The connection string's parts that a location may be made of; keys in lower case.

        Its values may be secret. Empty where there is no connection string.
        """
        if self.kind == "connection-string":
            return parse_connection_string(_read(self.where))
        if self.kind == "auto":
            return parse_connection_string(os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
        return {}


def parse_connection_string(text: str) -> dict[str, str]:
    """Split an Azure connection string; keys in lower case."""
    pairs = (part.split("=", 1) for part in text.split(";") if "=" in part)
    return {key.strip().lower(): value.strip() for key, value in pairs}


def refuse_ambiguous(accounts: set[str]) -> None:
    """Refuse to send the environment's key or signature to more accounts than it can be for.

    Raises
    ------
    UsageError
        There is one, the environment does not say whose, and several accounts would get it.
    """
    names = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN")
    named = [name for name in names if os.environ.get(name)]
    if len(accounts) > 1 and named and not os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        raise UsageError(
            f"{named[0]} is set and two accounts are used, {' and '.join(sorted(accounts))}: a "
            "secret is sent to its own account only. Set AZURE_STORAGE_ACCOUNT_NAME to the one it "
            "is for, or give --credential and --out-credential."
        )


def token(chain: object) -> tuple[str, float]:
    """Get a bearer token for Azure Storage from an azure-identity credential.

    Returns
    -------
    (str, float)
        The token, which is secret, and when it expires, in seconds since 1970.
    """
    answer = chain.get_token(_SCOPE)  # type: ignore[attr-defined]  # azure-identity is optional
    register(answer.token)
    return answer.token, answer.expires_on


def _from_environment(account: str) -> Secret:
    """What the environment holds for an account; its credentials are not sent to another one."""
    named = parse_connection_string(os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    if (secret := _of_connection(named, account)) is not None:
        return replace(secret, origin="AZURE_STORAGE_CONNECTION_STRING")
    if os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", account) != account:
        return ANONYMOUS
    if key := os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"):
        return replace(_key(key), origin="AZURE_STORAGE_ACCOUNT_KEY")
    if signature := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        return replace(_signature(signature), origin="AZURE_STORAGE_SAS_TOKEN")
    return ANONYMOUS


def _of_connection(named: dict[str, str], account: str) -> Secret | None:
    if not named or named.get("accountname", account) != account:
        return None
    if key := named.get("accountkey"):
        return _key(key)
    if signature := named.get("sharedaccesssignature"):
        return _signature(signature)
    return None


def _key(text: str) -> Secret:
    register(text)
    try:
        b64decode(text, validate=True)
    except ValueError as error:
        raise UsageError(
            "What was given as a key is not an account key: 88 characters that end in '=='. Copy "
            "it again; a shared access signature or a connection string is named as such."
        ) from error
    return Secret("key", text)


def _signature(text: str) -> Secret:
    text = text.lstrip("?")
    register(text)
    if "sig=" not in text:
        raise UsageError(
            "The shared access signature holds no 'sig=': give what follows the '?' of the URL."
        )
    return Secret("sas", text)


def _read(where: str) -> str:
    """Text of the variable or file that was named."""
    if not where.startswith("@"):
        text = os.environ.get(where, "").strip()
        if not text:
            raise UsageError(
                f"The environment variable {where}, named as the place of a credential, is not "
                "set. Set and export it, or name another one, or @FILE."
            )
        return text
    path = Path(where[1:]).expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not a text"
        raise UsageError(
            f"The credential's file {path} cannot be read: {what}. Name "
            "another one, or make it readable for you."
        ) from error
    if not text:
        raise UsageError(
            f"The credential's file {path} is empty: put the secret into it, and nothing else."
        )
    return text


def _default_chain() -> Secret:
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise UsageError(
            "The credential 'default' needs the package azure-identity: install das-gpu[azure]."
        ) from error
    return Secret("token", chain=DefaultAzureCredential(), origin="azure-identity")
