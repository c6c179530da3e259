"""ImageNet weights of the model zoos: read from the cache, or downloaded into it."""

from __future__ import annotations

import os
import shutil
import threading
import zipfile
import zlib
from contextlib import suppress
from typing import BinaryIO

from mxnet.gluon.utils import check_sha1

from embedding_learning.errors import UsageError
from embedding_learning.model.weights.catalog import ARCHITECTURES, torchvision_url
from embedding_learning.runtime.atomic_files import atomic_write
from embedding_learning.runtime.user_folders import find_zoo_folder

# Errors of a download (those of requests are OSErrors), of a zip file and its content, and of a
# checksum.
_DOWNLOAD_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
)
_BUCKET = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/"
# Seconds without any data from the server; the DNS lookup has the same limit.
_TIMEOUT = 5
# gluoncv's names of files, where they differ from the networks' names.
_FILES = {
    "resnet18_v1b_0.89": "resnet18_v1b_2.6x",
    "resnet50_v1d_0.86": "resnet50_v1d_1.8x",
    "resnet50_v1d_0.48": "resnet50_v1d_3.6x",
    "resnet50_v1d_0.37": "resnet50_v1d_5.9x",
    "resnet50_v1d_0.11": "resnet50_v1d_8.8x",
    "resnet101_v1d_0.76": "resnet101_v1d_1.9x",
    "resnet101_v1d_0.73": "resnet101_v1d_2.2x",
    **{name: f"{name[:-1]}cls" for name in ARCHITECTURES if name.startswith("hrnet")},
}


def fetch_weights(name: str) -> str:
    """Returns the path of a network's weights, by its name in Gluon or gluoncv.

    Takes them from the zoo's cache if the file there is complete, else downloads them into it.

    Raises
    ------
    UsageError
        If the weights are not available, at most ten seconds after the last data from the server.
        Names the file that is needed, its URL, and where to put it.
    """
    other = torchvision_url(name)
    instead = f"get {other} and give it with --pretrained-params" if other else ""
    if not ARCHITECTURES[name].zoo:
        way_out = instead or "--list-models shows which networks have weights"
        raise UsageError(f"--use-pretrained: no model zoo has weights of {name}; {way_out}")
    sha1 = _sha1(name)
    file = f"{_FILES.get(name, name)}-{sha1[:8]}"
    cache = os.path.join(find_zoo_folder(), "models")
    path = os.path.join(cache, f"{file}.params")
    if _is_complete(path, sha1):
        return path
    repository = os.environ.get("MXNET_GLUON_REPO") or _BUCKET
    url = f"{repository.rstrip('/')}/gluon/models/{file}.zip"
    try:
        os.makedirs(cache, exist_ok=True)
        _download(url, path, sha1)
    except _DOWNLOAD_ERRORS as error:
        raise UsageError(
            f"--use-pretrained: the weights of {name} are not in {cache}, and the download of "
            f"{url} failed ({type(error).__name__}); get that file elsewhere and unpack "
            f"{file}.params into that folder{', or ' if instead else ''}{instead}"
        ) from error
    return path


def _is_complete(path: str, sha1: str) -> bool:
    """Returns whether the file exists, can be read and has this checksum."""
    with suppress(OSError):
        return os.path.isfile(path) and bool(check_sha1(path, sha1))
    return False


def _sha1(name: str) -> str:
    """Returns the checksum of the file that is in the zoo today."""
    if ARCHITECTURES[name].zoo == "mxnet":
        from mxnet.gluon.model_zoo import model_store
    else:
        from gluoncv.model_zoo import model_store
    sha1: str = model_store._model_sha1[_FILES.get(name, name)]
    return sha1


def _download(url: str, path: str, sha1: str) -> None:
    """Downloads a zip file and unpacks the weights in it to `path`, atomically.

    Raises one of _DOWNLOAD_ERRORS if that fails or the checksum is wrong.
    """
    with atomic_write(path) as partial:
        archive = f"{partial}.zip"
        try:
            with open(archive, "wb") as file:
                _receive(url, file)
            with zipfile.ZipFile(archive) as members:
                member = members.open(os.path.basename(path))
                with member, open(partial, "wb") as file:
                    shutil.copyfileobj(member, file)
        finally:
            # It does not exist if it could not be created, which is the error to report.
            with suppress(FileNotFoundError):
                os.remove(archive)
        if not check_sha1(partial, sha1):
            raise ValueError("the checksum is wrong")


def _receive(url: str, file: BinaryIO) -> None:
    """Writes the content of a URL to a file. Raises OSError if the server does not answer."""
    # Imported here, since it takes time and most runs download nothing.
    import requests

    answers: list[requests.Response | Exception] = []

    def request() -> None:
        try:
            answers.append(requests.get(url, stream=True, timeout=_TIMEOUT))
        except Exception as error:
            answers.append(error)

    # requests limits neither the time of a DNS lookup nor that of trying several addresses.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    response = answers[0] if answers else TimeoutError("no answer")
    if isinstance(response, Exception):
        raise OSError(str(response)) from response
    with response:
        response.raise_for_status()
        for part in response.iter_content(2**20):
            file.write(part)
