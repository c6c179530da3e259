"""The model zoos' weights: the cache first, then a download, then a message with the way out."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon.model_zoo import model_store, vision

from embedding_learning.errors import UsageError
from embedding_learning.model import backbones
from embedding_learning.model.weights import model_zoo
from embedding_learning.model.weights.catalog import ARCHITECTURES
from tests.helpers.limits import HANG_LIMIT

CPU = [mx.cpu()]
NAME = "squeezenet1.1"
needs_gluoncv = pytest.mark.skipif(
    importlib.util.find_spec("gluoncv") is None, reason="gluoncv is not installed"
)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of random weights."""
    mx.random.seed(1)
    net = vision.get_model(NAME)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, 224, 224)))
    path = tmp_path_factory.mktemp("zoo") / "net.params"
    net.save_parameters(str(path))
    return path.read_bytes()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Path:
    """The path of the file in the empty cache; the zoo knows the checksum of the file above."""
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "home"))
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(model_store._model_sha1, NAME, digest)
    return tmp_path / "home" / "models" / f"{NAME}-{digest[:8]}.params"


class Zoo(BaseHTTPRequestHandler):
    """Answers with what is set."""

    served: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.served.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Zoo]]:
    """A zoo on this machine that holds nothing yet."""
    Zoo.served, Zoo.asked = {}, []
    server = HTTPServer(("127.0.0.1", 0), Zoo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MXNET_GLUON_REPO", f"http://127.0.0.1:{server.server_port}/mirror/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield Zoo
    server.shutdown()
    server.server_close()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def refusal(name: str = NAME) -> str:
    with pytest.raises(UsageError) as caught:
        model_zoo.fetch_weights(name)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_weights_in_the_cache_are_taken_without_a_question(
    file: Path, zoo: type[Zoo], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    features = backbones.create("squeezenet1_1", CPU, use_pretrained=True)
    classifier = vision.get_model(NAME)
    classifier.load_parameters(str(file))
    x = mx.nd.random.normal(shape=(1, 3, 64, 64))
    np.testing.assert_array_equal(features(x).asnumpy(), classifier.features(x).asnumpy())
    assert {p.lr_mult for p in features.collect_params().values()} == {0.01}
    assert zoo.asked == []
    assert caplog.messages == [f"The backbone starts from {file}."]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_weights_are_downloaded_once(
    file: Path, zoo: type[Zoo], content: bytes, damaged: bool
) -> None:
    if damaged:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"half of it")
    address = f"/mirror/gluon/models/{file.stem}.zip"
    zoo.served[address] = zipped(file.name, content)
    for _ in range(2):
        assert model_zoo.fetch_weights(NAME) == str(file)
    assert file.read_bytes() == content
    assert zoo.asked == [address]
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["missing", "no zip", "other name", "other content", "cut off", "overwritten"]
)
def test_what_is_not_the_zoos_file_is_not_kept(
    file: Path, zoo: type[Zoo], content: bytes, fault: str
) -> None:
    address = f"/mirror/gluon/models/{file.stem}.zip"
    if fault == "no zip":
        zoo.served[address] = b"<html>"
    elif fault != "missing":
        name = "../evil.params" if fault == "other name" else file.name
        body = zipped(name, content[:-1] if fault == "other content" else content)
        if fault == "cut off":
            body = body[: len(body) // 2]
        elif fault == "overwritten":
            body = body[:60] + bytes(40) + body[100:]
        zoo.served[address] = body
    message = refusal()
    assert message.startswith(f"--use-pretrained: the weights of {NAME} are not in {file.parent}, ")
    url = f"{os.environ['MXNET_GLUON_REPO']}gluon/models/{file.stem}.zip"
    assert f"and the download of {url} failed (" in message
    assert f"unpack {file.name} into that folder, or get https://download.pytorch.org/" in message
    assert "squeezenet1_1-b8a52dc0.pth and give it with --pretrained-params" in message
    assert ("(HTTPError)" in message) == (fault == "missing")
    assert list(file.parent.iterdir()) == []
    assert not list(file.parent.parent.glob("**/evil*"))


def test_a_side_that_does_not_answer_is_waited_for_ten_seconds_at_most(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_zoo, "_TIMEOUT", 1)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MXNET_GLUON_REPO", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "failed (OSError)" in refusal()


def test_a_search_for_an_address_that_never_ends_is_given_up(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()
    searched: list[bool] = []
    monkeypatch.setattr(model_zoo, "_TIMEOUT", 0.5)
    search = lambda *_, **__: searched.append(given_up.wait(HANG_LIMIT))  # noqa: E731
    monkeypatch.setattr("requests.get", search)
    assert "failed (OSError)" in refusal()
    assert searched == []
    given_up.set()


def test_a_folder_that_cannot_be_written_to_is_named(
    file: Path, zoo: type[Zoo], tmp_path: Path
) -> None:
    (tmp_path / "home").write_bytes(b"no folder")
    assert refusal().startswith(f"--use-pretrained: the weights of {NAME} are not in")


def test_a_cached_file_that_may_not_be_read_is_replaced(
    file: Path, zoo: type[Zoo], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(b"of another user")
    check = model_zoo.check_sha1

    def check_readable(path: str, sha1: str) -> bool:
        if path == str(file):
            raise PermissionError(13, "Permission denied")
        return bool(check(path, sha1))

    monkeypatch.setattr(model_zoo, "check_sha1", check_readable)
    zoo.served[f"/mirror/gluon/models/{file.stem}.zip"] = zipped(file.name, content)
    assert model_zoo.fetch_weights(NAME) == str(file)
    assert file.read_bytes() == content


def test_a_file_that_cannot_be_created_is_the_reported_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(model_zoo, "open", refuse, raising=False)
    assert "failed (PermissionError)" in refusal()


def test_a_network_of_no_zoo_is_refused_with_the_way_out() -> None:
    assert refusal("mobilenet_v2") == (
        "--use-pretrained: no model zoo has weights of mobilenet_v2; get "
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth and give it with "
        "--pretrained-params"
    )
    assert refusal("xception71").endswith("; --list-models shows which networks have weights")


@needs_gluoncv
def test_the_table_shows_which_weights_the_zoos_have() -> None:
    from gluoncv.model_zoo import model_store as gluoncv_store

    for name, found in ARCHITECTURES.items():
        names = {
            "mxnet": model_store._model_sha1,
            "gluoncv": gluoncv_store._model_sha1,
        }
        for zoo, known in names.items():
            is_there = model_zoo._FILES.get(name, name) in known
            if found.zoo == zoo:
                assert is_there, name
            elif found.zoo == "":
                assert not is_there, name
    assert {name for name, found in ARCHITECTURES.items() if found.zoo == "mxnet"} == set(
        model_store._model_sha1
    )
