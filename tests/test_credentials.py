"""Credentials: where they are looked for, whose they are, and that they are never repeated."""

from __future__ import annotations

import pickle
import sys
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from das_gpu import redaction
from das_gpu.credentials import (
    ANONYMOUS,
    Credential,
    Secret,
    parse_connection_string,
    refuse_ambiguous,
    token,
)
from das_gpu.errors import UsageError
from das_gpu.redaction import redact
from tests.azurite import KEY

SIGNATURE = "sv=2024-11-04&sr=c&sp=r&se=2030-01-01&sig=Y2FuYXJ5Y2FuYXJ5%2Bz%3D"
CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=rapid;AccountKey={KEY};"
CONNECTION_SAS = f"BlobEndpoint=https://rapid.blob.test/;SharedAccessSignature={SIGNATURE}"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No credentials but the test's, and nothing registered."""
    for name in ("CONNECTION_STRING", "ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.setattr(redaction, "_secrets", set())


@pytest.fixture
def environment(monkeypatch):
    """Sets variables of the environment: those of Azure by their last words."""

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name if name[:2] == "MY" else f"AZURE_STORAGE_{name}", value)

    return put


# Forms


@pytest.mark.parametrize(
    "text",
    [
        "auto",
        "anonymous",
        "default",
        "key:MY_KEY",
        "sas:MY_TOKEN_2",
        "sas:@/run/secrets/token",
        "key:@~/a file: with blanks",
        "connection-string:@C:/x",
    ],
)
def test_a_credential_is_written_as_it_is_read(text):
    assert str(Credential.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key",
        "key:",
        "key:@",
        "sas:",
        "AUTO",
        "anonymous:X",
        "default:X",
        "auto:X",
        "token:X",
        "key:2NAME",
        "key:A-B",
        KEY,
        f"key:{KEY}",
        f"key:@{KEY}",
        SIGNATURE,
        f"?{SIGNATURE}",
        f"sas:{SIGNATURE}",
        f"sas:?{SIGNATURE}",
        f"sas:@{SIGNATURE}",
        f"sas:@?{SIGNATURE}",
        CONNECTION,
        f"connection-string:{CONNECTION}",
        f"connection-string:@{CONNECTION}",
        f"https://rapid.blob.core.windows.net/c?{SIGNATURE}",
    ],
)
def test_what_is_no_form_is_refused_and_not_repeated(text):
    with pytest.raises(UsageError, match="is never given as an option") as caught:
        Credential.parse(text)
    shown = "".join(traceback.format_exception(caught.value))
    assert not text or len(text) < 20 or text not in shown
    for secret in (KEY, KEY[:20], "Y2FuYXJ5", "%2Bz"):
        assert secret not in shown


@given(st.text())
@pytest.mark.slow
def test_any_text_is_a_credential_or_refused(text):
    try:
        parsed = Credential.parse(text)
    except UsageError:
        return
    assert str(parsed) == text


def test_a_credential_goes_into_a_pickle_and_a_secret_does_not(environment):
    environment(MY_KEY=KEY)
    credential = Credential.parse("key:MY_KEY")
    data = pickle.dumps(credential)
    assert pickle.loads(data) == credential  # noqa: S301 - our own bytes
    assert KEY.encode() not in data
    secret = credential.resolve("rapid")
    assert secret.value == KEY
    assert KEY not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps({"inside": secret})


# Places


def test_secrets_are_read_from_variables_and_files(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind, text, secret in (
        ("key", KEY, Secret("key", KEY)),
        ("sas", SIGNATURE, Secret("sas", SIGNATURE)),
        ("sas", f"?{SIGNATURE}", Secret("sas", SIGNATURE)),
        ("connection-string", CONNECTION, Secret("key", KEY)),
        ("connection-string", CONNECTION_SAS, Secret("sas", SIGNATURE)),
    ):
        # As an editor leaves it: with a line break at the end.
        (tmp_path / "secret").write_text(f"{text}\n")
        environment(MY_SECRET=text)
        for where in ("MY_SECRET", f"@{tmp_path}/secret", "@~/secret"):
            assert Credential.parse(f"{kind}:{where}").resolve("rapid") == secret


def test_what_is_read_is_hidden_from_then_on(environment):
    environment(MY_KEY=KEY, MY_TOKEN=SIGNATURE)
    text = f"{KEY} Y2FuYXJ5Y2FuYXJ5+z= Y2FuYXJ5Y2FuYXJ5%2Bz%3D"
    assert redact(text) == text
    Credential.parse("key:MY_KEY").resolve("rapid")
    assert redact(text) == "(secret) Y2FuYXJ5Y2FuYXJ5+z= Y2FuYXJ5Y2FuYXJ5%2Bz%3D"
    Credential.parse("sas:MY_TOKEN").resolve("rapid")
    assert redact(text) == "(secret) (secret) (secret)"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "cannot be read: it is not a text"),
    ],
)
def test_a_file_that_holds_no_secret_is_named(tmp_path, content, said):
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"secret.*{said}"):
        Credential.parse(f"key:@{file}").resolve("rapid")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="Is a directory"):
        Credential.parse(f"key:@{tmp_path}").resolve("rapid")


def test_a_device_that_never_ends_is_not_read_for_ever():
    with pytest.raises(UsageError):
        Credential.parse("sas:@/dev/zero").resolve("rapid")


@pytest.mark.parametrize("value", ["", "  "])
def test_a_variable_that_holds_nothing_is_named(environment, value):
    environment(MY_KEY=value)
    for name in ("MY_KEY", "MY_OTHER_KEY"):
        with pytest.raises(UsageError, match=f"{name}, named as .* is not set"):
            Credential.parse(f"key:{name}").resolve("rapid")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("sas", KEY, "holds no 'sig='"),
        ("sas", CONNECTION, "holds no 'sig='"),
        ("key", SIGNATURE, "not an account key"),
        ("key", CONNECTION, "not an account key"),
        ("key", "secret passphrase", "not an account key"),
        ("connection-string", KEY, "no AccountKey"),
        ("connection-string", SIGNATURE, "no AccountKey"),
        ("connection-string", "AccountName=rapid;AccountKey=", "no AccountKey"),
    ],
)
def test_a_secret_of_another_kind_is_refused_and_not_repeated(environment, kind, text, said):
    environment(MY_SECRET=text)
    with pytest.raises(UsageError, match=said) as caught:
        Credential.parse(f"{kind}:MY_SECRET").resolve("rapid")
    shown = "".join(traceback.format_exception(caught.value))
    assert text not in shown
    assert KEY[:20] not in shown
    assert "passphrase" not in shown


# Whose they are


def test_without_a_credential_nothing_is_sent():
    assert Credential().resolve("rapid") is ANONYMOUS
    assert Credential().connection() == {}


def test_auto_prefers_a_connection_string_then_a_key_then_a_signature(environment):
    environment(SAS_TOKEN=f"?{SIGNATURE}")
    assert Credential().resolve("rapid") == Secret("sas", SIGNATURE)
    environment(ACCOUNT_KEY=KEY)
    assert Credential().resolve("rapid") == Secret("key", KEY)
    environment(CONNECTION_STRING="AccountName=rapid;AccountKey=YWJjZGVm")
    assert Credential().resolve("rapid") == Secret("key", "YWJjZGVm")


def test_auto_sends_nothing_to_another_account(environment):
    """Another account's key would even spoil the reading of a public container."""
    environment(CONNECTION_STRING=CONNECTION, ACCOUNT_NAME="rapid", ACCOUNT_KEY=KEY)
    assert Credential().resolve("rapid").kind == "key"
    assert Credential().resolve("another") is ANONYMOUS
    environment(ACCOUNT_NAME="another", ACCOUNT_KEY="YWJjZGVm")
    assert Credential().resolve("rapid") == Secret("key", KEY), "the connection string's"
    assert Credential().resolve("another") == Secret("key", "YWJjZGVm")


def test_anonymous_looks_nowhere(environment):
    environment(CONNECTION_STRING=CONNECTION, ACCOUNT_KEY=KEY, SAS_TOKEN=SIGNATURE)
    assert Credential("anonymous").resolve("rapid") is ANONYMOUS
    assert Credential("anonymous").connection() == {}


def test_a_connection_string_is_not_sent_to_another_account(environment):
    environment(MY_CONNECTION=CONNECTION)
    with pytest.raises(UsageError, match="for the account another") as caught:
        Credential("connection-string", "MY_CONNECTION").resolve("another")
    assert KEY not in str(caught.value)


def test_a_credential_that_is_named_wins_over_the_environment(environment):
    environment(CONNECTION_STRING=CONNECTION, ACCOUNT_NAME="rapid", ACCOUNT_KEY=KEY)
    environment(MY_TOKEN=SIGNATURE)
    assert Credential("sas", "MY_TOKEN").resolve("another") == Secret("sas", SIGNATURE)


@pytest.mark.parametrize("name", ["ACCOUNT_KEY", "SAS_TOKEN"])
def test_a_secret_that_does_not_say_whose_it_is_goes_to_one_account_only(environment, name):
    environment(**{name: SIGNATURE})
    refuse_ambiguous({"rapid"})
    refuse_ambiguous(set())
    with pytest.raises(UsageError, match=rf"AZURE_STORAGE_{name} is set.*mine and rapid") as caught:
        refuse_ambiguous({"rapid", "mine"})
    assert SIGNATURE not in str(caught.value)
    environment(ACCOUNT_NAME="mine")
    refuse_ambiguous({"rapid", "mine"})


def test_accounts_without_a_secret_are_not_ambiguous():
    refuse_ambiguous({"rapid", "mine"})


def test_a_connection_string_is_split_at_its_first_equals_signs():
    found = parse_connection_string(
        f" AccountName = rapid ;{CONNECTION_SAS};;nonsense;AccountKey=a=="
    )
    assert found == {
        "accountname": "rapid",
        "blobendpoint": "https://rapid.blob.test/",
        "sharedaccesssignature": SIGNATURE,
        "accountkey": "a==",
    }
    assert parse_connection_string("") == {}


@given(st.text())
def test_any_text_can_be_split(text):
    assert all(key == key.strip().lower() for key in parse_connection_string(text))


# azure-identity


class StandIn:
    """What azure-identity's chain is to us: an object with `get_token`."""

    def __init__(self, **_options):
        self.asked = []

    def get_token(self, *scopes, **_options):
        from azure.core.credentials import AccessToken

        self.asked.append(scopes)
        return AccessToken("canary.token.canary", int(time.time()) + 3600)


def test_default_is_azure_identitys_chain(monkeypatch):
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", StandIn)
    secret = Credential("default").resolve("rapid")
    assert (secret.kind, secret.value) == ("token", "")
    text, expires_s = token(secret.chain)
    assert secret.chain.asked == [("https://storage.azure.com/.default",)]
    assert text == "canary.token.canary"
    assert expires_s > time.time()
    assert redact(f"Bearer {text}") == "Bearer (secret)"
    assert "canary" not in repr(secret)


def test_default_without_azure_identity_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(UsageError, match=r"azure-identity: install das-gpu\[azure\]"):
        Credential("default").resolve("rapid")


def test_nothing_but_default_loads_azure_identity(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    environment(CONNECTION_STRING=CONNECTION)
    assert Credential().resolve("rapid").kind == "key"
    assert Credential().resolve("another") is ANONYMOUS
