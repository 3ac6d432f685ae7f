"""Redaction: registered secrets vanish from texts, exceptions and logs of libraries."""

from __future__ import annotations

import logging
import socket
import traceback
from urllib.parse import quote, quote_plus

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from das_gpu import redaction
from das_gpu.redaction import guard, redact, register, scrub
from tests.azurite import serve_blobs

KEY = "q+Zr/7Canary0canary1CANARY2/zzz+w=="
SIGNATURE = "sv=2024-11-04&sp=r&sig=Ab%2BCd%2Fcanary%3D&se=2030-01-01"


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(redaction, "_secrets", set())


@given(
    st.text(min_size=6).filter(lambda text: "sig=" not in text),
    st.text(),
    st.text(),
    st.sampled_from([str, quote, quote_plus, lambda text: quote(text, safe="")]),
)
def test_a_registered_secret_vanishes_in_every_form(secret, before, after, form):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_secrets", set())
        register(secret)
        shown = redact(f"{before} {form(secret)} {after}".replace("(secret)", ""))
    # What is left between the marks no longer holds it.
    assert all(form(secret) not in part for part in shown.split("(secret)"))


def test_of_a_signature_only_the_secret_part_is_hidden():
    register(SIGNATURE)
    assert redact(f"GET /c/x?{SIGNATURE}") == (
        "GET /c/x?sv=2024-11-04&sp=r&sig=(secret)&se=2030-01-01"
    )
    assert redact("signed with Ab+Cd/canary= today") == "signed with (secret) today"
    assert redact("Reading sv=2024-11-04 from sp=r") == "Reading sv=2024-11-04 from sp=r"


@pytest.mark.parametrize(
    "text",
    [
        "/c/x?sv=1&sig=abc%2Bdef%3D&se=2",
        "/c/x?SIG=abc%2Bdef%3D",
        "'https://a/c?sig=abc%2Bdef%3D'",
        "<Url>https://a/c?sig=abc%2Bdef%3D</Url>",
        "(sig=abc%2Bdef%3D)",
        "sig=abc%2bdef%3d",
        "sig=abc+def=",
    ],
)
def test_nobodys_signature_is_shown(text):
    """Also one that was never registered: a redirect's, or another program's."""
    assert "abc" not in redact(text)
    assert "sig=(secret)" in redact(text).lower()


def test_other_words_are_left_alone():
    text = "design=1 config=2 sign=3 sigma=4"
    assert redact(text) == text


def test_what_is_too_short_to_be_a_secret_does_not_blank_everything():
    register("a")
    register("")
    assert redact("a banana") == "a banana"


# Exceptions


class RefusedError(Exception):
    """Keeps texts and another exception in attributes, as Azure's do."""

    def __init__(self, message, inner):
        super().__init__(message)
        self.message = message
        self.inner_exception = inner


def fail_below():
    raise OSError(5, f"no route to /c?{SIGNATURE}")


def fail():
    try:
        fail_below()
    except OSError as error:
        raise ValueError(f"bad key {KEY}", KeyError(KEY)) from error


def fail_above():
    try:
        fail()
    except ValueError:
        raise RefusedError(f"with {KEY}", TypeError(f"?{SIGNATURE}"))  # noqa: B904 - by context


def test_an_exception_is_scrubbed_with_all_that_led_to_it():
    register(KEY)
    register(SIGNATURE)
    with pytest.raises(RefusedError) as caught:
        fail_above()
    error = caught.value
    before = "".join(traceback.format_exception(error))
    scrub(error)
    after = "".join(traceback.format_exception(error))
    inside = f"{error.message} {error.inner_exception} {error.__context__.args!r}"
    assert before.lower().count("canary") > 3
    assert "canary" not in (after + inside).lower()
    assert after.count("(secret)") == inside.count("(secret)") == 4


def test_scrubbing_ends_where_causes_go_round_in_a_circle():
    register(KEY)
    one, other = ValueError(KEY), TypeError(KEY)
    one.__cause__, other.__cause__ = other, one
    scrub(one)
    assert str(one) == str(other) == "(secret)"


def test_scrubbing_keeps_what_is_no_text():
    error = OSError(2, "No such file", "name")
    scrub(error)
    assert (error.errno, error.strerror, error.filename) == (2, "No such file", "name")


def test_a_connection_refused_quotes_a_url_that_is_scrubbed():
    """What requests really raises: an exception around an exception around an exception."""
    register(SIGNATURE)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get(f"http://127.0.0.1:{port}/c/x?{SIGNATURE}", timeout=1)
    before = "".join(traceback.format_exception(caught.value))
    assert "canary" in before, "else there is nothing to test"
    scrub(caught.value)
    after = "".join(traceback.format_exception(caught.value))
    assert "canary" not in after
    assert "Max retries exceeded with url: /c/x?" in after


# Logs


def test_a_library_that_logs_urls_logs_no_signature(caplog):
    register(SIGNATURE)
    guard()
    with (
        serve_blobs(lambda _: b"x") as served,
        caplog.at_level(logging.DEBUG),
        urllib3.PoolManager() as pool,
    ):
        pool.request("GET", f"{served.url}/x?{SIGNATURE}")
    assert "canary" in served.targets[0], "it was sent"
    assert "GET /account/container/x?sv=2024-11-04" in caplog.text
    assert "sig=(secret)" in caplog.text
    assert "canary" not in caplog.text


def test_a_log_record_is_redacted_with_its_arguments(caplog):
    register(KEY)
    guard()
    log = logging.getLogger("urllib3.connectionpool")
    with caplog.at_level(logging.DEBUG):
        log.warning("Retrying %r after %s", ValueError(KEY), {"key": KEY})
    assert caplog.text.count("(secret)") == 2
    assert "canary" not in caplog.text


def test_guarding_twice_adds_nothing():
    guard()
    guard()
    for name in redaction._GUARDED:
        assert logging.getLogger(name).filters.count(redaction._FILTER) == 1
