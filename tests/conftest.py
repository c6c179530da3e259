"""Fixtures of several tests: the data next to the checkout, and small data sets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

# Lets the tests import MXNet in any order.
import embedding_learning  # noqa: F401
from tests.helpers import tiny_backbone
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT, SHARED

# Threads that wait for each other sleep: where other programs keep the cores busy, spinning makes
# these small networks a hundred times slower. OpenMP reads this when MXNet is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _leave_in_memory(descriptor: int) -> None:
    """Replaces `os.fsync`: no test cuts the power, and a disk takes many seconds for all tests."""
    os.fstat(descriptor)


os.fsync = _leave_in_memory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with slow tests first, so that the last file to be run is a short one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared next to the checkout; most machines have none."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared does not exist")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, np.ndarray]:
    """Inputs and outputs of the original example, by group/name."""
    with np.load(shared / "golden" / "upstream_mxnet_1.9.1.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def write_cub() -> Callable[..., Path]:
    """A function that draws a data set in the layout of CUB-200-2011 into a new folder."""

    def write(
        folder: Path, images_of_class: Sequence[int], size: tuple[int, int] = (44, 40)
    ) -> Path:
        """`images_of_class` JPEG files of each class, each class in shades of its own colour."""
        rng = np.random.default_rng(0)
        names = [f"{number:03d}.Bird_{number}" for number, _ in enumerate(images_of_class, 1)]
        width, height = size
        files, labels = [], []
        for number, (name, count) in enumerate(zip(names, images_of_class), 1):
            (folder / "images" / name).mkdir(parents=True)
            colour = rng.integers(0, 256, 3)
            for image in range(1, count + 1):
                shade = colour + rng.normal(0, 40, 3)
                pixels = np.clip(shade + rng.normal(0, 30, (height, width, 3)), 0, 255)
                cv2.imwrite(str(folder / "images" / name / f"{image}.jpg"), pixels.astype(np.uint8))
                files.append(f"{name}/{image}.jpg")
                labels.append(number)
        for file, values in {
            "images.txt": files,
            "image_class_labels.txt": labels,
            "bounding_boxes.txt": [f"2.0 1.0 {width - 4:.1f} {height - 3:.1f}"] * len(files),
            "classes.txt": names,
        }.items():
            lines = [f"{number} {value}\n" for number, value in enumerate(values, 1)]
            (folder / file).write_text("".join(lines), encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_cub(tmp_path_factory: pytest.TempPathFactory, write_cub: Callable[..., Path]) -> Path:
    """Eight classes of four images in the layout of CUB-200-2011; to be read, not changed."""
    return write_cub(tmp_path_factory.mktemp("data") / "tiny_cub", [4] * 8)


@pytest.fixture(scope="module")
def tiny_backbones() -> Iterator[None]:
    """`--model=tiny` and `--model=tiny-norm` in this process, for the tests of a module."""
    with tiny_backbone.registered():
        yield


@pytest.fixture
def quick_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots that are quick to draw and to read: small maps, few iterations, no compression."""
    from embedding_learning.plots import canvas, projection, tsne

    monkeypatch.setattr(canvas, "_PNG_COMPRESSION", 0)
    monkeypatch.setattr(projection, "_ITERATIONS", 250)
    monkeypatch.setattr(tsne, "_PHOTOGRAPHS", 800)


@pytest.fixture(scope="session")
def train_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs train.py as a user does, from a folder; it has `--model=tiny`, too."""

    def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *flags],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": tiny_backbone.PYTHONPATH},
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT,
        )

    return run
