"""Canaries: a signature and a key that really open something, and must be seen nowhere.

The real command runs in a process of its own, with every log at debug level, in success and in
each kind of failure; then all it has said, written and would send to workers is searched.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from das_gpu import Recipe
from das_gpu.answers import Errand
from das_gpu.archive import open_archive
from das_gpu.cli import main
from das_gpu.credentials import Credential
from das_gpu.errors import SourceError
from das_gpu.group import read_group
from das_gpu.patience import Patience
from das_gpu.plan import plan
from das_gpu.sink import open_sink
from das_gpu.store import Access, Store
from tests.archives import random_walk, write_archive
from tests.azurite import ACCOUNT, KEY
from tests.faults import Answer, Latency, Reset, Truncate
from tests.proxy import FaultProxy

PRIVATE = "canaries"
WRITTEN = "canaries-out"
WRONG_KEY = base64.b64encode(b"wrong" * 13)[:86].decode() + "=="
_WINDOW = 12
"""So many characters of a secret in a row are a leak, even if the rest was hidden."""

CHILD = """
import json, logging, sys
from functools import partialmethod

from azure.storage.blob import ContainerClient

from das_gpu.cli import main

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
ContainerClient.__init__ = partialmethod(ContainerClient.__init__, logging_enable=True)
codes = {}
for name, arguments in json.load(sys.stdin).items():
    sys.stderr.write(f"#### {name}\\n")
    codes[name] = main(arguments)
with open(sys.argv[1], "w") as file:
    json.dump(codes, file)
"""
RECIPE = ("--tile-seconds", "5", "--bands", "1", "--channels", "0::1", "--preset", "continuous")


@dataclass(frozen=True)
class Canary:
    """A secret, and the environment variable that it is in."""

    kind: str
    variable: str
    text: str

    @property
    def credential(self):
        return f"{self.kind}:{self.variable}"

    @property
    def fragments(self):
        """What must be seen nowhere: pieces of each form in which it may turn up."""
        secret = parse_qs(self.text)["sig"][0] if self.kind == "sas" else self.text
        forms = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
        forms |= {quote(quote(secret, safe=""), safe="")}
        raw = base64.b64decode(secret)
        windows = {
            form[start : start + _WINDOW].encode()
            for form in forms
            for start in range(len(form) - _WINDOW + 1)
        }
        return windows | {raw, raw.hex().encode(), repr(raw)[2:-1].encode()}


def leaks(canaries, **texts):
    """Lines in which a piece of a secret is seen."""
    fragments = set().union(*(canary.fragments for canary in canaries))
    return [
        (name, line)
        for name, text in texts.items()
        for line in text.split(b"\n")
        if any(fragment in line for fragment in fragments)
    ]


def signature(container, rights="rwdlc", hours=1):
    return generate_container_sas(
        ACCOUNT,
        container,
        account_key=KEY,
        permission=ContainerSasPermissions.from_string(rights),
        expiry=datetime.now(UTC) + timedelta(hours=hours),
    )


def canaries(kind):
    """What opens the source, what opens the destination, and what opens neither."""
    if kind == "key":
        right = Canary("key", "CANARY", KEY)
        return right, right, Canary("key", "WRONG", WRONG_KEY)
    return (
        Canary("sas", "CANARY_IN", signature(PRIVATE, "rl")),
        Canary("sas", "CANARY_OUT", signature(WRITTEN)),
        Canary("sas", "WRONG", signature(PRIVATE, hours=-1)),
    )


@pytest.fixture(scope="module")
def azure(azurite, tmp_path_factory):
    """A private container with an archive, and one to write to."""
    samples = random_walk(8, 4000, seed=5)
    folder = write_archive(tmp_path_factory.mktemp("canary") / "a.zarr", samples, 200.0, (8, 1000))
    azurite.create_container(PRIVATE)
    azurite.create_container(WRITTEN)
    azurite.upload_folder(folder, PRIVATE, "a.zarr")
    return azurite


def test_the_search_finds_what_it_looks_for():
    """Else nothing below would mean anything."""
    for canary in (Canary("key", "CANARY", KEY), Canary("sas", "CANARY", signature(PRIVATE))):
        secret = parse_qs(canary.text)["sig"][0] if canary.kind == "sas" else canary.text
        for text in (
            secret,
            quote_plus(secret),
            f"https://host/c?sv=1&sig={quote(secret)}&se=2",
            f"{secret[10:22]}...",
            base64.b64decode(secret).hex(),
            repr(base64.b64decode(secret)),
        ):
            assert leaks([canary], text=f"before\n{text}\nafter".encode())
    assert not leaks(
        [Canary("key", "CANARY", KEY)], text=b"sig=(secret)&se=2030-01-01 AuthorizationFailure"
    )


# The command


@contextmanager
def answering_once():
    """A server that is gone after the first connection, which only looks if it is there."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=1)) as server:

        def answer():
            with suppress(OSError):
                server.accept()[0].close()
                server.close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


@dataclass
class Scenarios:
    """What the command is to do, again and again, and how each time is to end."""

    azure: Any
    kind: str
    transport: str
    folder: Path
    stack: ExitStack
    commands: dict[str, list[str]] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        self.reading, self.writing, self.wrong = canaries(self.kind)
        self._of_source()
        if self.transport == "obstore":  # writing is Azure's own library's, whatever reads
            self._of_destination()

    @property
    def canaries(self):
        return [self.reading, self.writing, self.wrong]

    def _add(self, name, code, source, out, *, reading=None, writing=None):
        arguments = ["extract", source, out, *RECIPE, "--transport", self.transport]
        arguments += ["--credential", (reading or self.reading).credential]
        arguments += ["--out-credential", (writing or self.writing).credential]
        arguments += ["--patience", "0.5", "--debug", "--json"]
        self.commands[name], self.expected[name] = arguments, code

    def _bad(self, fault, container, prefix="a.zarr", **where):
        """A place behind a proxy with a fault."""
        proxy = self.stack.enter_context(FaultProxy(self.azure.port))
        proxy.inject(fault, **where)
        return proxy.url(container, prefix)

    def _gone(self, container):
        port = self.stack.enter_context(answering_once())
        return f"http://127.0.0.1:{port}/{ACCOUNT}/{container}/a.zarr"

    def _of_source(self):
        source = self.azure.url(PRIVATE, "a.zarr")
        chunk = {"key": "RawData/0.2", "method": "GET"}
        for name, code, place in (
            ("success", 0, source),
            ("gone", 4, self._gone(PRIVATE)),
            ("never whole", 3, self._bad(Truncate(10), PRIVATE, **chunk)),
            ("forbidden in the middle", 5, self._bad(Answer(403), PRIVATE, **chunk)),
            ("reset in the middle", 3, self._bad(Reset(None), PRIVATE, **chunk)),
            ("reset", 4, self._bad(Reset(None), PRIVATE)),
            ("failing", 4, self._bad(Answer(500), PRIVATE)),
            ("throttled", 4, self._bad(Answer(429, {"Retry-After": "9"}), PRIVATE)),
            ("nowhere", 4, self.azure.url(PRIVATE, "elsewhere")),
        ):
            self._add(f"source {name}", code, place, str(self.folder / name))
        self._add("source denied", 5, source, str(self.folder / "denied"), reading=self.wrong)

    def _of_destination(self):
        source, put = self.azure.url(PRIVATE, "a.zarr"), {"method": "PUT"}
        mine = f"{self.kind}-{self.transport}"
        for name, code, place in (
            ("success", 0, self.azure.url(WRITTEN, mine)),
            ("gone", 6, self._gone(WRITTEN)),
            ("forbidden in the middle", 5, self._bad(Answer(403), WRITTEN, f"{mine}-b", **put)),
            ("reset in the middle", 6, self._bad(Reset(None), WRITTEN, f"{mine}-c", **put)),
            ("failing in the middle", 6, self._bad(Answer(500), WRITTEN, f"{mine}-d", **put)),
            ("failing", 6, self._bad(Answer(500), WRITTEN)),
        ):
            self._add(f"destination {name}", code, source, place)
        place = self.azure.url(WRITTEN, f"{mine}-e")
        self._add("destination denied", 5, source, place, writing=self.wrong)


def environment(secrets):
    """This process's, with the canaries and no other credential."""
    ours = {name: v for name, v in os.environ.items() if not name.startswith(("AZURE_", "DAS_"))}
    return ours | {canary.variable: canary.text for canary in secrets}


def files_below(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blobs(azure, container):
    """Every blob, with what the service keeps beside it."""
    with azure.service() as service:
        client = service.get_container_client(container)
        return {
            blob.name: client.download_blob(blob.name).readall() + repr(dict(blob)).encode()
            for blob in client.list_blobs(include=["metadata"])
        }


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["obstore", "azure-sdk"])
@pytest.mark.parametrize("kind", ["key", "sas"])
def test_neither_success_nor_failure_shows_a_secret(azure, tmp_path, kind, transport):
    out, codes = tmp_path / "out", tmp_path / "codes"
    with ExitStack() as stack:
        scenarios = Scenarios(azure, kind, transport, out, stack)
        ran = subprocess.run(
            [sys.executable, "-c", CHILD, str(codes)],
            input=json.dumps(scenarios.commands).encode(),
            env=environment(scenarios.canaries),
            capture_output=True,
            timeout=120,
        )
    said = {"stdout": ran.stdout, "stderr": ran.stderr}
    n_commands = len(scenarios.commands)
    written = files_below(out) | blobs(azure, WRITTEN)
    assert leaks(scenarios.canaries, **said, **written) == []

    assert json.loads(codes.read_text()) == scenarios.expected, ran.stderr.decode()[-3000:]
    # There was something to look through: results, reports of errors, tracebacks, and logs of
    # URLs and headers whose secrets were taken out.
    assert len([line for line in ran.stdout.splitlines() if json.loads(line)]) == n_commands
    assert ran.stderr.count(b"Traceback (most recent call last)") >= n_commands // 2
    assert b"DEBUG:urllib3.connectionpool:http" in ran.stderr
    assert b"DEBUG:azure.storage.blob._shared.policies:Request URL" in ran.stderr
    assert (b"sig=(secret)" in ran.stderr) == (kind == "sas")
    assert {Path(name).name for name in written} >= {"run.json", "metadata.jsonl", "00000.jsonl"}
    assert any(name.endswith(".png") for name in written)
    assert any(b"RawData/0.2" in text for name, text in written.items() if "undeliv" in name)


@pytest.mark.parametrize("transport", ["obstore", "azure-sdk"])
def test_an_exception_holds_no_secret_for_whoever_prints_it(monkeypatch, transport, caplog):
    """A program that calls das-gpu: requests quotes the URL that it could not reach."""
    canary = Canary("sas", "CANARY", signature(PRIVATE))
    monkeypatch.setenv(canary.variable, canary.text)
    access = Access(Credential.parse(canary.credential), transport, Patience.within(0.5))
    with answering_once() as port, caplog.at_level(logging.DEBUG):
        store = Store(access.locate(f"http://127.0.0.1:{port}/{ACCOUNT}/{PRIVATE}"), access)
        with pytest.raises(SourceError, match="cannot be reached") as caught:
            store.get("x")
    shown = "".join(traceback.format_exception(caught.value))
    assert leaks([canary], traceback=shown.encode(), logs=caplog.text.encode()) == []
    assert "Tried once" in shown


@pytest.mark.slow
def test_a_running_command_shows_no_secret_in_the_process_list(azure, tmp_path):
    reading, writing, _ = canaries("sas")
    command = [sys.executable, "-m", "das_gpu", "extract"]
    command += ["SOURCE", azure.url(WRITTEN, "listed"), *RECIPE]
    command += ["--credential", reading.credential, "--out-credential", writing.credential]
    seen: dict[str, bytes] = {}
    with FaultProxy(azure.port) as proxy:
        proxy.inject(Latency(0.3))
        command[4] = proxy.url(PRIVATE, "a.zarr")
        with subprocess.Popen(
            command,
            env=environment([reading, writing]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as running:
            while running.poll() is None:
                seen |= command_lines(running.pid)
                time.sleep(0.05)
            said = running.stderr.read()
    assert running.returncode == 0, said
    assert leaks([reading, writing], **seen) == []
    assert any(b"sas:CANARY_IN" in text for text in seen.values()), "it was looked at"


def command_lines(parent):
    """Command line and name of a process and of all its descendants."""
    found = {}
    with suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for name in ("cmdline", "comm"):
                found[f"{task.name}/{name}"] = (task / name).read_bytes()
            for child in (task / "children").read_text().split():
                found |= command_lines(child)
    return found


# What goes to workers


@pytest.mark.parametrize("kind", ["key", "sas"])
@pytest.mark.parametrize("transport", ["obstore", "azure-sdk"])
def test_what_is_sent_to_workers_holds_no_secret(azure, monkeypatch, kind, transport):
    """And works there: each looks the secret up again."""
    reading, writing, _ = canaries(kind)
    monkeypatch.setenv(reading.variable, reading.text)
    monkeypatch.setenv(writing.variable, writing.text)
    access = Access(Credential.parse(reading.credential), transport, Patience(10))
    location = access.locate(azure.url(PRIVATE, "a.zarr"))
    archive = open_archive(location, access=access)
    recipe = Recipe().with_settings({"tile.seconds": 5, "tile.bands": 1})
    sent = {
        "location": location,
        "access": access,
        "store": Store(location, access),
        "group": read_group(location, access=access),
        "archive": archive,
        "array": archive.data,
        "recipe": recipe,
        "plan": plan(archive.acquisition, recipe),
        "errand": Errand(location, str(access.credential)),
    }
    pickles = {name: pickle.dumps(one) for name, one in sent.items()}
    shown = {f"repr of {name}": f"{one!r} {one}".encode() for name, one in sent.items()}
    assert leaks([reading, writing], **pickles, **shown) == []
    again = pickle.loads(pickles["archive"])  # noqa: S301 - our own bytes
    assert (again.data[:, :10] == archive.data[:, :10]).all()


@pytest.mark.parametrize("kind", ["key", "sas"])
def test_what_holds_a_secret_does_not_go_into_a_pickle(azure, monkeypatch, kind):
    """What libraries make of a credential: their clients, and the transports around them."""
    reading, writing, _ = canaries(kind)
    monkeypatch.setenv(reading.variable, reading.text)
    monkeypatch.setenv(writing.variable, writing.text)
    location = Access().locate(azure.url(PRIVATE, "a.zarr"))
    credential = Credential.parse(reading.credential)
    sink_access = Access(Credential.parse(writing.credential))
    holders = {
        "obstore": Store(location, Access(credential))._transport,
        "azure-sdk": Store(location, Access(credential, "azure-sdk"))._transport,
        "sink": open_sink(azure.url(WRITTEN, "pickled"), sink_access),
        "secret": credential.resolve(ACCOUNT),
    }
    for name, one in holders.items():
        with pytest.raises(Exception, match="pickle"):
            pickle.dumps(one)
        assert leaks([reading, writing], **{name: f"{one!r} {vars_of(one)!r}".encode()}) == []


def vars_of(one):
    return getattr(one, "__dict__", None)


# Before anything is sent


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "http://192.0.2.1:10000/account/container"],
        ["info", "http://rapid.blob.core.windows.net/container"],
        ["extract", "http://192.0.2.1:10000/account/container", "{out}"],
        ["extract", "{out}", "http://192.0.2.1:10000/account/container"],
    ],
)
def test_plain_http_to_another_machine_is_refused_before_any_connection(
    arguments, tmp_path, monkeypatch, capfd
):
    touched = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: touched.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **_: touched.append(names))
    monkeypatch.setenv("CANARY", signature(PRIVATE))
    options = ["--credential", "sas:CANARY"]
    options += ["--out-credential", "sas:CANARY"] if arguments[0] == "extract" else []
    assert main([text.format(out=tmp_path / "out") for text in arguments] + options) == 2
    assert "plain http to another machine" in capfd.readouterr().err
    assert touched == []


@pytest.mark.parametrize("flags", [[], ["--debug", "--json"]])
@pytest.mark.parametrize(
    "mistake",
    [
        ["--credential", "{sas}"],
        ["--credential", "sas:{sas}"],
        ["--credential", "sas:?{sas}"],
        ["--credential", "sas:@{sas}"],
        ["--credential", "{key}"],
        ["--credential", "key:{key}"],
        ["--credential", "key:@{key}"],
        ["--credential", "connection-string:AccountKey={key}"],
        ["https://rapid.blob.core.windows.net/container/a.zarr?{sas}"],
        ["rapid.blob.core.windows.net/container/a.zarr?{sas}"],
        ["az://container/a.zarr?{sas}", "--account", "rapid"],
        ["https://user:{key}@rapid.blob.core.windows.net/container"],
    ],
)
def test_a_secret_that_is_given_by_mistake_is_not_repeated(mistake, flags, tmp_path, capfd):
    canary = Canary("sas", "CANARY", signature(PRIVATE))
    given = [text.format(sas=canary.text, key=KEY) for text in mistake]
    source = [str(tmp_path)] if given[0].startswith("--") else []
    assert main(["info", *source, *given, *flags]) in (2, 4)
    said = capfd.readouterr()
    texts = {"stdout": said.out.encode(), "stderr": said.err.encode()}
    assert leaks([canary, Canary("key", "", KEY)], **texts) == []
    assert said.err
