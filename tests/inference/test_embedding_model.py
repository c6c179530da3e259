"""Saved models: rebuilt as they were, and embedding images as evaluation does in training."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import mxnet as mx
import numpy as np
import pytest

import embedding_learning
from embedding_learning.cli.train_flags import parse
from embedding_learning.data.batches import SequentialBatches
from embedding_learning.data.datasets import cub200
from embedding_learning.data.preprocessing import read_square
from embedding_learning.errors import DataError, UsageError
from embedding_learning.inference import batched, onnxruntime_engine
from embedding_learning.inference.embedding_model import EmbeddingModel, load_model
from embedding_learning.model.description import describe
from embedding_learning.model.net import MarginNet
from embedding_learning.model.weights.params_file import read_description, save_parameters
from tests.helpers.onnx_files import import_onnxruntime
from tests.helpers.saved_models import (
    CROP_SIZE,
    DIMENSION,
    FLAGS,
    IMAGE_SIZE,
    MODEL,
    save_model,
)

# Sums in another order; embeddings have unit length.
CLOSE = 1e-5
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Path:
    path = tmp_path_factory.mktemp("model") / "birds.params"
    save_model(path, "--model=tiny")
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> EmbeddingModel:
    return load_model(file)


@pytest.fixture(scope="module")
def birds(tiny_cub: Path) -> Any:
    return cub200.read(tiny_cub)


def by_hand(net: MarginNet, squares: Sequence[np.ndarray]) -> np.ndarray:
    """Embeddings of squares of IMAGE_SIZE pixels, one at a time and without any graph."""
    net.hybridize(active=False)
    edge = (IMAGE_SIZE - CROP_SIZE) // 2
    rows = []
    for square in squares:
        centre = square[edge : edge + CROP_SIZE, edge : edge + CROP_SIZE]
        x = (centre / 255.0 - MEAN) / DEVIATION
        features = net.base_net(mx.nd.array(x.transpose(2, 0, 1)[None]))
        if net.feature is not None:
            features = net.feature(features)
        row = net.dense(features).asnumpy()[0].astype(np.float64)
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


# Embedding


@pytest.mark.parametrize("batch_size, workers", [(1, 0), (5, 2), (7, 1), (64, 4)])
def test_embeddings_are_those_of_the_definition(
    file: Path, model: EmbeddingModel, birds: Any, batch_size: int, workers: int
) -> None:
    paths = birds.paths[:11]
    found = model.embed(paths, batch_size=batch_size, workers=workers)
    expected = by_hand(load_model(file).net, [read_square(p, None, IMAGE_SIZE) for p in paths])
    assert (found.shape, found.dtype) == ((11, DIMENSION), np.float32)
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    # Or the order would not show.
    assert np.abs(expected[1:] - expected[:-1]).max(axis=1).min() > 100 * CLOSE


def test_boxes_are_cut_out(file: Path, model: EmbeddingModel, birds: Any) -> None:
    rng = np.random.default_rng(3)
    boxes = np.column_stack([rng.integers(-5, 20, (9, 2)), rng.integers(8, 60, (9, 2))])
    squares = [read_square(p, box, IMAGE_SIZE) for p, box in zip(birds.paths, boxes)]
    found = model.embed(birds.paths[:9], boxes)
    np.testing.assert_allclose(found, by_hand(load_model(file).net, squares), atol=CLOSE)
    assert np.abs(found - model.embed(birds.paths[:9])).max() > 100 * CLOSE


@pytest.mark.parametrize("boxed", [False, True])
def test_arrays_and_files_of_the_same_pixels_are_equal(
    model: EmbeddingModel, tmp_path: Path, boxed: bool
) -> None:
    rng = np.random.default_rng(1)
    arrays, paths = [], []
    for number, (height, width) in enumerate([(7, 90), (40, 40), (133, 61), (1, 1)]):
        arrays.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), arrays[-1][:, :, ::-1])
    boxes = np.array([[3, 2, 50, 5], [0, 0, 40, 40], [-9, -3, 200, 8], [0, 0, 1, 1]])
    boxes = boxes if boxed else None
    expected = model.embed(paths, boxes)
    np.testing.assert_array_equal(model.embed(arrays, boxes), expected)
    # Views, whose values do not follow each other in memory.
    views = [np.repeat(array, 2, axis=2)[:, :, ::2] for array in arrays]
    np.testing.assert_array_equal(model.embed(views, boxes), expected)
    mixed = [arrays[0], paths[1], str(paths[2]), arrays[3]]
    np.testing.assert_array_equal(model.embed(mixed, boxes), expected)
    stacked = np.stack([arrays[1], arrays[1]])
    np.testing.assert_allclose(model.embed(stacked)[1], model.embed(paths[1:2])[0], atol=CLOSE)


def test_no_images_have_no_embeddings(model: EmbeddingModel) -> None:
    found = model.embed([])
    assert (found.shape, found.dtype) == ((0, DIMENSION), np.float32)


def test_any_number_of_images_after_any_other(model: EmbeddingModel, birds: Any) -> None:
    expected = model.embed(birds.paths)
    for count in (3, 1, 32, 2, 17, 1):
        np.testing.assert_allclose(model.embed(birds.paths[:count]), expected[:count], atol=CLOSE)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_devices_share_a_batch(file: Path, model: EmbeddingModel, birds: Any, count: int) -> None:
    shared = load_model(file, [mx.cpu(0), mx.cpu(1)])
    found = shared.embed(birds.paths[:count], batch_size=4)
    np.testing.assert_allclose(found, model.embed(birds.paths[:count]), atol=CLOSE)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_batches_are_no_larger_than_asked_and_nearly_full(devices: int) -> None:
    model = EmbeddingModel.__new__(EmbeddingModel)
    model.devices = [mx.cpu(i) for i in range(devices)]
    with pytest.raises(ValueError, match="batch_size must be at least 1, not -1"):
        model.choose_batch_size(5, -1)
    for most in (1, 2, 6, 64):
        for count in [*range(20), 63, 64, 65, 127, 128, 129, 1000]:
            size = model.choose_batch_size(count, most)
            assert size % devices == 0
            assert 1 <= size < most + devices
            batches = -(-count // most)
            assert -(-count // size) <= batches
            # What fills up the last batch: less than one image for each batch and device.
            assert count <= size * max(1, batches) < count + max(1, batches) * devices + devices


def test_neither_loading_nor_embedding_draws_random_numbers(file: Path, birds: Any) -> None:
    mx.random.seed(5)
    expected = mx.nd.random.uniform(shape=(4,)).asnumpy()
    mx.random.seed(5)
    load_model(file).embed(birds.paths[:3])
    np.testing.assert_array_equal(mx.nd.random.uniform(shape=(4,)).asnumpy(), expected)


class Counted:
    """Squares without end, that count how often they are asked for."""

    def __init__(self, count: int) -> None:
        self.shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
        self.asked = 0
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> np.ndarray:
        with self._lock:
            self.asked += 1
        return np.full(self.shape[1:], row % 256, np.uint8)


def test_memory_is_bounded(model: EmbeddingModel) -> None:
    """No more is decoded than a few batches ahead of what has been taken."""
    pixels, workers = Counted(10**6), 2
    batches = model.embed_batches(pixels, 4, workers)
    for taken in range(1, 30):
        assert next(batches).shape == (4, DIMENSION)
        # Two that are queued, one that is computed, one a worker and two that are ready.
        assert pixels.asked <= 4 * (taken + 3 + workers + 2)
    batches.close()


def test_embedding_begins_where_it_is_reported(model: EmbeddingModel) -> None:
    whole = list(model.embed_batches(Counted(23), 5, 0))
    assert [len(part) for part in whole] == [5, 5, 5, 5, 3]
    for first in (0, 2, 4, 5):
        rest = list(model.embed_batches(Counted(23), 5, 2, first))
        assert len(rest) == len(whole[first:])
        for part, expected in zip(rest, whole[first:]):
            np.testing.assert_array_equal(part, expected)


def test_workers_end_with_the_embedding_whatever_ends_it(
    model: EmbeddingModel, birds: Any, tmp_path: Path
) -> None:
    threads = threading.active_count()
    model.embed(birds.paths)
    batches = model.embed_batches(Counted(100), 4, 3)
    next(batches)
    assert threading.active_count() > threads
    batches.close()
    assert threading.active_count() == threads
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"bad\.jpg: is a text file"):
        model.embed([*birds.paths, tmp_path / "bad.jpg"], batch_size=4)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    "images, boxes, message",
    [
        ("a.jpg", None, "a list of images expected, not 'a.jpg' alone"),
        (Path("a.jpg"), None, "a list of images expected"),
        (iter(["a.jpg"]), None, "a list of images expected, not a list_iterator"),
        ({"a.jpg"}, None, "a list of images expected, not a set"),
        ([np.zeros((4, 4, 3))], None, r"image 0: .* not float64 \(4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), None, r"image 0: .* not uint8 \(4, 3\)"),
        (["a.jpg", np.zeros((4, 4), np.uint8)], None, r"image 1: .* not uint8 \(4, 4\)"),
        ([np.zeros((4, 4, 4), np.uint8)], None, r"image 0: .* not uint8 \(4, 4, 4\)"),
        ([np.zeros((4, 4, 3), np.uint16)], None, r"image 0: .* not uint16 \(4, 4, 3\)"),
        (["a.jpg", [[[1, 2, 3]]]], None, "image 1: a file or an array of numpy expected, not list"),
        ([np.zeros((0, 4, 3), np.uint8)], None, r"image 0: .* not uint8 \(0, 4, 3\)"),
        ([np.zeros((4, 4, 3), np.uint8)], np.zeros((2, 4), int), r"boxes \(1, 4\) expected"),
        ([np.zeros((4, 4, 3), np.uint8)], np.zeros(4, int), r"boxes \(1, 4\) expected"),
    ],
)
def test_what_is_no_image_is_refused_at_once(
    model: EmbeddingModel, images: Any, boxes: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.embed(images, boxes)


def test_a_box_outside_of_an_array_is_named(model: EmbeddingModel) -> None:
    images = [np.zeros((9, 9, 3), np.uint8)] * 2
    with pytest.raises(DataError, match=r"image 1: the box \(9, 0, 4, 4\) lies outside"):
        model.embed(images, np.array([[8, 0, 4, 4], [9, 0, 4, 4]]))


def run_out_of_memory(*_: Any) -> None:
    raise mx.base.MXNetError("line 161\nMXNetError: cudaMalloc retry failed: out of memory")


@pytest.mark.parametrize("name", ["set_parameters", "MarginNet.embed"])
def test_a_gpu_without_memory_for_the_network_is_reported(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(f"embedding_learning.inference.embedding_model.{name}", run_out_of_memory)
    with pytest.raises(UsageError, match=r"^--gpus: the memory of a GPU is used up; end other pro"):
        load_model(file)


def test_a_gpu_without_memory_for_a_batch_is_reported(
    model: EmbeddingModel, birds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MXNet reports it again where all devices are waited for. No thread is left behind."""
    monkeypatch.setattr(model, "_graph", run_out_of_memory)
    monkeypatch.setattr(mx.nd, "waitall", run_out_of_memory)
    threads = threading.active_count()
    message = r"--gpus: the memory of a GPU is used up; lower --batch-size \(2 images are computed"
    with pytest.raises(UsageError, match=message):
        model.embed(birds.paths[:4], batch_size=2, workers=2)
    assert threading.active_count() == threads


def test_other_errors_of_mxnet_are_not_taken_for_a_lack_of_memory(
    model: EmbeddingModel, birds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise mx.base.MXNetError("Check failed: shape")

    monkeypatch.setattr(model, "_graph", fail)
    with pytest.raises(mx.base.MXNetError, match="Check failed"):
        model.embed(birds.paths[:1])


def test_embeddings_that_are_not_finite_are_reported(file: Path, birds: Any) -> None:
    model = load_model(file)
    model.net.dense.bias.set_data(mx.nd.full((DIMENSION,), np.nan))
    with pytest.raises(UsageError, match="embeddings are not finite"):
        model.embed(birds.paths[:2])


def test_embed_all_gives_rows_and_labels_in_order_and_reports_each_batch(
    model: EmbeddingModel, birds: Any
) -> None:
    class Squares:
        shape = (32, IMAGE_SIZE, IMAGE_SIZE, 3)

        def __getitem__(self, row: int) -> np.ndarray:
            return read_square(birds.paths[row], None, IMAGE_SIZE)

    batches = SequentialBatches(Squares(), birds.labels, 6, CROP_SIZE, 0)
    next(batches)
    seen: list[int] = []
    devices = [mx.cpu()]
    embeddings, labels = batched.embed_all(
        model.net.embed, devices, batches, lambda: seen.append(1)
    )
    np.testing.assert_array_equal(labels, birds.labels)
    np.testing.assert_allclose(embeddings, model.embed(birds.paths), atol=CLOSE)
    assert len(seen) == 6


# Engines


def test_both_engines_give_equal_embeddings(file: Path, model: EmbeddingModel, birds: Any) -> None:
    import_onnxruntime()
    other = load_model(file, engine="onnxruntime")
    assert (other.choose_engine(1), load_model(file, engine="mxnet").choose_engine(10**6)) == (
        "onnxruntime",
        "mxnet",
    )
    expected = model.embed(birds.paths)
    np.testing.assert_allclose(other.embed(birds.paths, batch_size=5), expected, atol=CLOSE)
    shared = load_model(file, [mx.cpu(0), mx.cpu(1)], engine="onnxruntime")
    np.testing.assert_allclose(shared.embed(birds.paths[:3]), expected[:3], atol=CLOSE)


def test_many_images_on_a_cpu_are_for_onnxruntime_if_it_is_installed(
    file: Path, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_onnxruntime()
    assert [model.choose_engine(count) for count in (0, 999, 1000)] == [
        "mxnet",
        "mxnet",
        "onnxruntime",
    ]
    on_gpu = load_model(file)
    on_gpu.devices = [mx.gpu(0)]
    assert on_gpu.choose_engine(10**6) == "mxnet"
    monkeypatch.setattr(onnxruntime_engine, "_PACKAGES", ("onnx", "a_missing_package"))
    assert load_model(file).choose_engine(10**6) == "mxnet"


def test_an_engine_or_device_that_cannot_be_used_is_refused_when_the_model_is_loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="engine 'cuda': choose from auto, mxnet, onnxruntime"):
        load_model(file, engine="cuda")
    with pytest.raises(ValueError, match=r"devices: a list of contexts expected, not cpu\(0\) "):
        load_model(file, devices=mx.cpu())
    monkeypatch.setattr(onnxruntime_engine, "_PACKAGES", ("onnx", "a_missing_package"))
    with pytest.raises(UsageError, match="--engine onnxruntime: needs the packages onnx and a_"):
        load_model(file, engine="onnxruntime")


@pytest.mark.parametrize("text, count", [("3", 3), ("4,2", 4), (" 5 ", 5), ("", 0), ("x", 0)])
def test_onnxruntime_gets_the_threads_of_openmp(
    monkeypatch: pytest.MonkeyPatch, text: str, count: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert onnxruntime_engine.read_thread_count() == count


def test_onnxruntime_that_cannot_be_imported_is_like_a_missing_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_engine, "is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert load_model(file).choose_engine(10**6) == "mxnet"
    message = r"--engine onnxruntime: cannot be imported \(.*onnxruntime.*\); pip install"
    with pytest.raises(UsageError, match=message):
        load_model(file, engine="onnxruntime")


def test_onnxruntime_computes_on_no_gpu(model: EmbeddingModel, file: Path) -> None:
    import_onnxruntime()
    on_gpu = EmbeddingModel(model.net, model.description, [mx.gpu(0)], "onnxruntime")
    with pytest.raises(UsageError, match="computes on the CPU; leave out --gpus"):
        on_gpu.choose_engine(1)


# Loading


def test_a_model_tells_what_it_is(file: Path, model: EmbeddingModel) -> None:
    assert model.dimension == DIMENSION
    assert isinstance(model.net, MarginNet)
    assert model.description == read_description(str(file), "MODEL")
    assert model.description["trained_on"] == "Birds, cropped to boxes"
    assert (model.description["epoch"], model.description["recall_at_1"]) == (3, 0.5)


def test_it_is_public_and_takes_texts_and_paths(file: Path, birds: Any) -> None:
    found = embedding_learning.load_model(str(file)).embed(birds.paths[:2])
    np.testing.assert_array_equal(found, load_model(file).embed(birds.paths[:2]))
    assert "load_model" in embedding_learning.__all__


def test_a_further_layer_is_rebuilt(tmp_path: Path, birds: Any) -> None:
    path = tmp_path / "model.params"
    net = save_model(path, "--feat-dim=24")
    model = load_model(path)
    assert (model.dimension, model.description["feat_dim"]) == (DIMENSION, 24)
    squares = [read_square(path, None, IMAGE_SIZE) for path in birds.paths[:3]]
    np.testing.assert_allclose(model.embed(birds.paths[:3]), by_hand(net, squares), atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name, feat_dim", [("squeezenet1.1", None), ("SqueezeNet1_1", 24)])
def test_a_file_of_the_original_is_of_the_default_sizes(
    tmp_path: Path, birds: Any, name: str, feat_dim: int | None
) -> None:
    path, whole = tmp_path / "model.params", tmp_path / "whole.params"
    flags = ["--image-size=256", "--crop-size=224"]
    flags += [f"--feat-dim={feat_dim}"] if feat_dim else []
    save_model(path, *flags, described=False)
    save_model(whole, *flags)
    model, expected = load_model(path, model=name), load_model(whole)
    unknown = {"model": name, "trained_on": None, "epoch": None, "recall_at_1": None}
    assert model.description == {**expected.description, **unknown}
    images = birds.paths[:2]
    np.testing.assert_array_equal(model.embed(images), expected.embed(images))


def test_the_backbone_is_named_as_in_training(tmp_path: Path) -> None:
    path = tmp_path / "model.params"
    save_model(path, "--model=SqueezeNet1_1")
    assert load_model(path).description["model"] == "SqueezeNet1_1"
    assert load_model(path, model="squeezenet1_1").dimension == DIMENSION


@pytest.mark.slow
def test_a_backbone_whose_sizes_are_reported_by_its_file_alone_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("gluoncv")
    path = tmp_path / "pruned.params"
    net = save_model(path, "--model=resnet50_v1d_0.11")
    pixels = mx.nd.array(np.random.default_rng(0).integers(0, 256, (2, 3, CROP_SIZE, CROP_SIZE)))
    loaded = load_model(path).net.embed(pixels.astype(np.uint8))
    expected = net.embed(pixels.astype(np.uint8)).asnumpy()
    np.testing.assert_allclose(loaded.asnumpy(), expected, atol=CLOSE)
    name = "base_net.1.gamma"
    arrays = mx.nd.load(str(path))
    arrays[name] = arrays[name].reshape((1, -1))
    mx.nd.save(str(path), arrays)
    with pytest.raises(UsageError, match=f"{name} has the shape .*, the network needs"):
        load_model(path, model="resnet50_v1d_0.11")


def test_other_sizes_than_the_default_ones_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.params"
    save_model(path, described=False)
    with pytest.raises(UsageError, match=r"does not take images of 224 pixels; .* other sizes"):
        load_model(path, model=MODEL)


def test_a_crop_that_is_not_that_of_the_training_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.params"
    save_model(path, crop_size=24)
    with pytest.raises(UsageError, match=r"does not take images of 24 pixels"):
        load_model(path)


def description_of(*flags: str, epoch: int = 3, recall: float = 0.5) -> dict[str, Any]:
    config = parse([*FLAGS, *flags])
    return describe(config.model, config.data, "Birds", epoch, recall)


def test_a_description_depends_on_its_arguments_alone() -> None:
    flags = "--feat-dim=7", "--no-bbox"
    first = description_of(*flags, "--seed=9", epoch=2, recall=0.25)
    assert first == description_of(*flags, epoch=2, recall=0.25)
    assert first == json.loads(json.dumps(first))
    assert first == {
        "format": 1,
        "model": MODEL,
        "embed_dim": DIMENSION,
        "feat_dim": 7,
        "pool": "original",
        "image_size": IMAGE_SIZE,
        "crop_size": CROP_SIZE,
        "exif_orientation": False,
        "resize": "linear",
        "resize_to": "square",
        "bbox": False,
        "train_classes": None,
        "mean": list(MEAN),
        "deviation": list(DEVIATION),
        "trained_on": "Birds",
        "epoch": 2,
        "recall_at_1": 0.25,
    }


@pytest.mark.parametrize(
    "key, values",
    [
        ("format", [0, 2, None, "1"]),
        ("model", ["resnet_51", None, 3, ["resnet18_v1"], "../resnet18_v1"]),
        ("embed_dim", [0, -1, 2**31, 16.0, "16", None, True, [16]]),
        ("feat_dim", [0, "8", False, 1.5, {}]),
        ("pool", [None, "", "median", 1, ["avg"]]),
        ("image_size", [0, 5000, 31, 40.0, None, "40"]),
        ("crop_size", [0, 41, -3, "32", None, [32]]),
        ("exif_orientation", [0, 1, None, "yes"]),
        ("resize", [None, "", "cubic", 1, ["area"]]),
        ("resize_to", [None, "", "at-most", 1, ["square"]]),
        ("bbox", [0, None, "yes"]),
        ("mean", [[0.5, 0.5, 0.5], None, "mean", [0.485, 0.456], {}]),
        ("deviation", [[1, 1, 1], 0.2]),
        ("trained_on", [None, 3, ["Birds"]]),
        ("epoch", [-1, 1.0, None, "3"]),
        ("recall_at_1", [1.5, -0.1, "0.5", None]),
    ],
)
def test_a_description_of_a_stranger_is_refused_in_one_line(
    tmp_path: Path, key: str, values: list[Any]
) -> None:
    path = tmp_path / "model.params"
    for value in values:
        save_cheap(path, {**description_of(), key: value})
        with pytest.raises(UsageError) as caught:
            load_model(path)
        message = str(caught.value)
        assert message.startswith(f"MODEL {path}: ")
        assert "another version" in message or "describes its network, but" in message
        assert "\n" not in message


def save_cheap(path: Path, description: dict[str, Any] | None) -> None:
    """A file whose parameters are of no network."""
    net = mx.gluon.nn.Dense(2, in_units=2)
    net.initialize()
    save_parameters(net, str(path), description)


def test_the_pooling_is_that_of_training_or_the_original(tmp_path: Path) -> None:
    sizes = "--image-size=64", "--crop-size=64"
    save_model(tmp_path / "pooled.params", "--pool=max", *sizes)
    pooled = load_model(tmp_path / "pooled.params")
    assert pooled.description["pool"] == "max"
    assert pooled.net.dense.weight.shape == (DIMENSION, 512)
    net = save_model(tmp_path / "model.params", *sizes)
    description = description_of(*sizes)
    del description["pool"]
    save_parameters(net, str(tmp_path / "model.params"), description)
    original = load_model(tmp_path / "model.params")
    assert original.description["pool"] == "original"
    assert original.net.dense.weight.shape == net.dense.weight.shape != (DIMENSION, 512)


def test_every_key_of_a_description_is_needed_but_that_which_was_not_always_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.params"
    whole = description_of()
    for key in whole.keys() - {"pool", "exif_orientation", "resize", "resize_to"}:
        save_cheap(path, {name: value for name, value in whole.items() if name != key})
        with pytest.raises(UsageError, match=r"another version|describes its network, but"):
            load_model(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embed_dim": 17}, "dense.weight has the shape"),
        ({"feat_dim": 8}, "has no feature.weight"),
        ({"model": "resnet18_v1"}, "base_net"),
    ],
)
def test_a_description_that_does_not_fit_its_parameters_is_reported(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model.params"
    save_model(path, **changes)
    with pytest.raises(UsageError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"MODEL {path}: ")
    assert message in str(caught.value)


def unlike_a_model(folder: Path) -> dict[str, Callable[[], EmbeddingModel]]:
    path = folder / "model.params"
    save_model(path, described=False)
    described = folder / "described.params"
    save_model(described)
    (folder / "text.params").write_text("no model")
    (folder / "bare.params").write_bytes(b"")
    save_cheap(folder / "dense.params", None)
    return {
        "does not name its backbone": lambda: load_model(path),
        "--model resnet_51: unknown": lambda: load_model(path, model="resnet_51"),
        "which the network lacks": lambda: load_model(path, model="alexnet"),
        f"--model alexnet: MODEL {described} is a squeezenet1.1": lambda: load_model(
            described, model="alexnet"
        ),
        "no such file": lambda: load_model(folder / "missing.params"),
        "text.params: is damaged or not": lambda: load_model(folder / "text.params"),
        "bare.params: is damaged or not": lambda: load_model(folder / "bare.params"),
        "holds no embedding layer": lambda: load_model(folder / "dense.params", model=MODEL),
    }


def test_what_is_no_model_is_reported_in_one_line(tmp_path: Path) -> None:
    for message, load in unlike_a_model(tmp_path).items():
        with pytest.raises(UsageError) as caught:
            load()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert load_model(tmp_path / "described.params", model="SqueezeNet1.1").dimension == DIMENSION
