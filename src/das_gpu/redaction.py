"""Secrets kept out of everything that people or programs read.

Whoever resolves a secret registers it here. What is shown passes `redact`; exceptions of
libraries, whose texts may quote a signed URL, pass `scrub` before they are chained; loggers of
libraries that log URLs get `guard`.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import parse_qsl, quote, quote_plus

_HIDDEN = "(secret)"
_SHORTEST = 6  # a shorter text would be found everywhere
_SIGNATURE = re.compile(r"(?i)(\bsig=)(?!\(secret\))[^&\s'\"<>)]+")
_OF_OSERROR = ("strerror", "filename")  # its text is made of these, and they are in no __dict__
_GUARDED = (
    "urllib3.connectionpool",
    "azure.core.pipeline.policies.http_logging_policy",
    "azure.identity",
    "msal",
)

_secrets: set[str] = set()


def register(secret: str) -> None:
    """Remember a secret, in the forms in which it may turn up: plain and in URLs.

    Of a shared access signature, its signature is the secret; the rest says what it is for.
    """
    signatures = [value for name, value in parse_qsl(secret) if name.lower() == "sig"]
    for text in signatures or [secret]:
        if len(text) >= _SHORTEST:
            _secrets.update((text, quote(text), quote(text, safe=""), quote_plus(text)))


def redact(text: str) -> str:
    """Replace every registered secret, and every signature in a URL.

    Examples
    --------
    >>> redact("GET /container/a.png?sv=2024&sig=c2VjcmV0&se=2027 HTTP/1.1")
    'GET /container/a.png?sv=2024&sig=(secret)&se=2027 HTTP/1.1'
    """
    for secret in _secrets:
        text = text.replace(secret, _HIDDEN)
    return _SIGNATURE.sub(rf"\g<1>{_HIDDEN}", text)


def scrub(error: BaseException) -> None:
    """Redact the texts of an exception, and of all it was caused by, where they stand."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__, *one.args]
        one.args = tuple(redact(each) if isinstance(each, str) else each for each in one.args)
        for name in (*vars(one), *_OF_OSERROR):
            value = getattr(one, name, None)
            if isinstance(value, str) and (clean := redact(value)) != value:
                setattr(one, name, clean)
            elif isinstance(value, BaseException):
                waiting.append(value)


class _Redacting(logging.Filter):
    """Redacts a record before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        return True


_FILTER = _Redacting()


def guard() -> None:
    """Redact what the libraries that send signed requests write to their logs.

    At debug level they log whole URLs.
    """
    for name in _GUARDED:
        logging.getLogger(name).addFilter(_FILTER)
