"""The model zoos' ImageNet weights: from their cache, or downloaded into it."""

from __future__ import annotations

import os
import shutil
import threading
import zipfile
import zlib
from typing import BinaryIO

import requests
from mxnet.gluon.utils import check_sha1

from embedding_learning.errors import UsageError
from embedding_learning.model.weights.catalog import ARCHITECTURES, torchvision_file
from embedding_learning.runtime.atomic_files import atomic_write
from embedding_learning.runtime.user_folders import find_zoo_folder

# Of requests, which are OSErrors, of a zip file and what is packed in it, and of another file.
_FAULTS = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, KeyError, ValueError)
_ADDRESS = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/"
# Seconds without a word from the other side, the search for its address included.
_PATIENCE = 5
# gluoncv's names of files, where they are others than its networks'.
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
    """The file of a network's weights, by Gluon's or gluoncv's name of it.

    Taken from the zoo's cache if it is there and whole, else downloaded into it.

    Raises
    ------
    UsageError
        If the weights cannot be had, at most ten seconds after the last word from the other side;
        names the file that would do, its address, and where to put it.
    """
    other = torchvision_file(name)
    instead = f"get {other} and give it with --pretrained-params" if other else ""
    if not ARCHITECTURES[name].zoo:
        way_out = instead or "--list-models tells of which networks there are any"
        raise UsageError(f"--use-pretrained: no model zoo has weights of {name}; {way_out}")
    sha1 = _sha1(name)
    file = f"{_FILES.get(name, name)}-{sha1[:8]}"
    cache = os.path.join(find_zoo_folder(), "models")
    path = os.path.join(cache, f"{file}.params")
    if os.path.isfile(path) and check_sha1(path, sha1):
        return path
    repository = os.environ.get("MXNET_GLUON_REPO") or _ADDRESS
    address = f"{repository.rstrip('/')}/gluon/models/{file}.zip"
    try:
        os.makedirs(cache, exist_ok=True)
        _download(address, path, sha1)
    except _FAULTS as error:
        raise UsageError(
            f"--use-pretrained: the weights of {name} are not in {cache}, nor could {address} be "
            f"had ({type(error).__name__}); get that file elsewhere and unpack {file}.params into "
            f"that folder{', or ' if instead else ''}{instead}"
        ) from error
    return path


def _sha1(name: str) -> str:
    """The checksum of the file that the zoo has today."""
    if ARCHITECTURES[name].zoo == "mxnet":
        from mxnet.gluon.model_zoo import model_store
    else:
        from gluoncv.model_zoo import model_store
    sha1: str = model_store._model_sha1[_FILES.get(name, name)]
    return sha1


def _download(address: str, path: str, sha1: str) -> None:
    """Brings the zip file and puts what it holds in place if its checksum is right.

    Raises one of _FAULTS if there is no such file to be had.
    """
    with atomic_write(path) as partial:
        archive = f"{partial}.zip"
        try:
            with open(archive, "wb") as file:
                _receive(address, file)
            with zipfile.ZipFile(archive) as members:
                member = members.open(os.path.basename(path))
                with member, open(partial, "wb") as file:
                    shutil.copyfileobj(member, file)
        finally:
            os.remove(archive)
        if not check_sha1(partial, sha1):
            raise ValueError("another file than the zoo's")


def _receive(address: str, file: BinaryIO) -> None:
    """Writes what is at an address to a file."""
    found: list[requests.Response | Exception] = []

    def ask() -> None:
        try:
            found.append(requests.get(address, stream=True, timeout=_PATIENCE))
        except Exception as error:
            found.append(error)

    # Nothing bounds how long the search for an address takes, nor several that do not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    response = found[0] if found else TimeoutError("no answer")
    if isinstance(response, Exception):
        raise OSError(str(response)) from response
    with response:
        response.raise_for_status()
        for part in response.iter_content(2**20):
            file.write(part)
