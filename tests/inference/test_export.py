"""Exported networks: the same embeddings from SymbolBlock and from onnxruntime, in whole files."""

import importlib
import itertools
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import cv2
import mxnet as mx
import numpy as np
import onnx
import pytest
from mxnet import gluon, nd
from mxnet.gluon import nn
from mxnet.gluon.model_zoo.vision import resnet

from embedding_learning.cli.export import main as export_command
from embedding_learning.data.preprocessing import read_square
from embedding_learning.errors import UsageError
from embedding_learning.inference.export import export_onnx, export_symbol
from embedding_learning.model.net import ImageNormalization, MarginNet
from tests.benchmarks.export_families import random_net, random_pixels
from tests.helpers.onnx_files import import_onnxruntime, open_session
from tests.helpers.paths import ROOT

# The code on the page for users; it imports neither MXNet nor this package.
PAGE = ROOT / "docs" / "using-a-model.md"
# The ten lines that search without MXNet.
(EXAMPLE,) = re.findall(
    r"^```python\n(import [^\n]*onnxruntime\n.*?)^```",
    PAGE.read_text(encoding="utf-8"),
    re.M | re.S,
)


def small_net(*layers, size=16, **settings):
    """Convolution and the layers; every pixel of their output counts in the embedding."""
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(6, 3), *layers)
    net = MarginNet(backbone, 8, 2, **{"preprocess": ImageNormalization(), **settings})
    net.initialize(mx.init.Xavier(magnitude=2))
    net.embed(random_pixels(1, size, seed=0).astype("float32"))
    return net


def by_symbol(net, folder, size, images, normalize_input=True):
    prefix = str(folder / "net")
    export_symbol(net, prefix, size, normalize_input)
    block = gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params")
    return block(images).asnumpy()


def by_onnx(net, folder, size, images, normalize_input=True):
    path = str(folder / "net.onnx")
    export_onnx(net, path, size, normalize_input)
    return run_onnx(path, images)


def run_onnx(path, images):
    (embeddings,) = open_session(path).run(["embeddings"], {"data": images.asnumpy()})
    return embeddings


# MXNet says so of every file that it imports.
pytestmark = pytest.mark.filterwarnings("ignore:Cannot decide type:UserWarning")
BOTH = pytest.mark.parametrize("exported", [by_symbol, by_onnx])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("mobilenetv2_0.25", 64),
        ("resnet18_v2", 32),
        ("mobilenetv3_small", 64),
        ("se_resnet18_v1", 32),
        ("squeezenet1.0", 65),
    ],
)
def test_embeddings_of_exported_backbones_for_any_batch_size(backbone, size, tmp_path, monkeypatch):
    # ResNets with all their layers, of an eighth of the channels.
    specification = ("basic_block", [2, 2, 2, 2], [8, 8, 16, 32, 64])
    for module in (resnet, importlib.import_module("gluoncv.model_zoo.se_resnet")):
        monkeypatch.setitem(module.resnet_spec, 18, specification)
    net = random_net(backbone, size)
    pixels = random_pixels(7, size, seed=3)
    expected = net.embed(pixels).asnumpy()
    # Otherwise an export that ignores its input would pass.
    assert np.linalg.norm(expected[0] - expected[1:], axis=1).min() > 0.05
    np.testing.assert_allclose(by_symbol(net, tmp_path, size, pixels), expected, atol=2e-6)
    path = str(tmp_path / "net.onnx")
    export_onnx(net, path, size, normalize_input=True)
    session = open_session(path)
    for n in (7, 1, 2):
        (found,) = session.run(["embeddings"], {"data": pixels[:n].asnumpy()})
        np.testing.assert_allclose(found, expected[:n], atol=2e-5)


@BOTH
@pytest.mark.parametrize("preprocess", [None, ImageNormalization()])
def test_without_normalisation_the_graph_takes_normalised_images(exported, preprocess, tmp_path):
    net = small_net(preprocess=preprocess)
    pixels = random_pixels(3, 16, seed=0)
    images = ImageNormalization()(pixels)
    expected = net.embed(images if preprocess is None else pixels).asnumpy()
    found = exported(net, tmp_path, 16, images, normalize_input=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # And with it pixels, whatever the network at hand takes.
    found = exported(net, tmp_path, 16, pixels)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@BOTH
def test_the_additional_layer_is_exported(exported, tmp_path):
    net = small_net(nn.Flatten(), feat_dim=5)
    pixels = random_pixels(3, 16, seed=0)
    expected = net.embed(pixels).asnumpy()
    np.testing.assert_allclose(exported(net, tmp_path, 16, pixels), expected, atol=1e-6)


@BOTH
def test_a_network_in_training_on_two_devices_is_exported_as_it_stands(exported, tmp_path):
    net = small_net(nn.BatchNorm(epsilon=0.1), nn.Dropout(0.9))
    net.collect_params().reset_ctx([mx.cpu(0), mx.cpu(1)])
    net.hybridize(static_alloc=True, static_shape=True)
    pixels = random_pixels(4, 16, seed=0)
    for _ in range(3):
        with mx.autograd.record():
            outputs = [net(pixels.as_in_context(device))[-1] for device in (mx.cpu(0), mx.cpu(1))]
        mx.autograd.backward(outputs)
    expected = net.embed(pixels).asnumpy()
    np.testing.assert_allclose(exported(net, tmp_path, 16, pixels), expected, atol=1e-6)
    # Nor does exporting change the network.
    np.testing.assert_array_equal(net.embed(pixels).asnumpy(), expected)


@BOTH
def test_a_gamma_that_batch_norm_does_not_use_is_not_used(exported, tmp_path):
    """Files of pretrained ResNets v2 hold such ones."""
    norm = nn.BatchNorm(scale=False)
    net = small_net(norm)
    pixels = random_pixels(3, 16, seed=0)
    expected = net.embed(pixels).asnumpy()
    norm.gamma.set_data(nd.arange(6))
    np.testing.assert_allclose(exported(net, tmp_path, 16, pixels), expected, atol=1e-6)


@BOTH
def test_an_embedding_of_zeros_stays_one(exported, tmp_path):
    net = small_net()
    net.dense.initialize(mx.init.Zero(), force_reinit=True)
    assert not exported(net, tmp_path, 16, random_pixels(2, 16, seed=0)).any()


@BOTH
def test_the_graph_draws_nothing(exported, tmp_path):
    net, pixels = small_net(), random_pixels(4, 16, seed=0)
    mx.random.seed(5)
    expected = nd.random.uniform(shape=(3,)).asnumpy()
    mx.random.seed(5)
    exported(net, tmp_path, 16, pixels)
    np.testing.assert_array_equal(nd.random.uniform(shape=(3,)).asnumpy(), expected)


def test_the_symbol_is_a_checkpoint_of_mxnets_module_too(tmp_path):
    net = small_net(nn.BatchNorm())
    export_symbol(net, str(tmp_path / "net"), 16, normalize_input=True)
    symbol, arguments, auxiliary = mx.model.load_checkpoint(str(tmp_path / "net"), 0)
    assert {"data", *arguments} == set(symbol.list_arguments())
    assert auxiliary.keys() == set(symbol.list_auxiliary_states())
    assert len(symbol.list_outputs()) == 1


def test_what_the_onnx_file_tells(tmp_path):
    path = str(tmp_path / "net.onnx")
    for normalize_input, element in ((True, "uint8"), (False, "float")):
        export_onnx(small_net(), path, 16, normalize_input)
        onnx.checker.check_model(path, full_check=True)
        session = open_session(path)
        (data,), (embeddings,) = session.get_inputs(), session.get_outputs()
        assert (data.name, data.type) == ("data", f"tensor({element})")
        assert data.shape == ["batch", 3, 16, 16]
        assert (embeddings.name, embeddings.type) == ("embeddings", "tensor(float)")
        assert embeddings.shape == ["batch", 8]


def test_onnxruntime_refuses_images_of_another_size_or_type(tmp_path):
    path = str(tmp_path / "net.onnx")
    export_onnx(small_net(), path, 16, normalize_input=True)
    for wrong in (random_pixels(2, 17, seed=0), random_pixels(2, 16, seed=0).astype("float32")):
        with pytest.raises(Exception, match="data"):
            run_onnx(path, wrong)


@pytest.mark.slow
def test_pooling_is_exported_exactly_or_refused(tmp_path):
    """With ceil_mode, windows may reach beyond the image, where the two programs differ."""
    exported = set()
    for pool, window, ceil, size in itertools.product(
        (nn.MaxPool2D, nn.AvgPool2D, partial(nn.AvgPool2D, count_include_pad=False)),
        ((3, 2, 0), (3, 2, 1), (2, 2, 0), (2, 2, 1), (3, 3, 1), (2, 3, 0)),
        (False, True),
        (9, 10),
    ):
        net = small_net(pool(*window, ceil_mode=ceil), size=size)
        pixels = random_pixels(2, size, seed=0)
        try:
            found = by_onnx(net, tmp_path, size, pixels)
        except UsageError:
            continue
        expected = net.embed(pixels).asnumpy()
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=str((pool, window, ceil)))
        exported.add((pool, window, ceil))
    assert {(nn.MaxPool2D, (3, 2, 0), True), (nn.MaxPool2D, (3, 2, 1), True)} <= exported
    # Without it, everything.
    assert sum(not ceil for *_, ceil in exported) == 3 * 6


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (nn.Activation("softrelu"), "Activation(act_type=softrelu)"),
        (nn.BatchNorm(axis=3), "BatchNorm("),
        (nn.AvgPool2D(3, 2, ceil_mode=True), "Pooling("),
        (nn.LeakyReLU(0.1), "LeakyReLU("),
        (nn.HybridLambda(lambda F, x: F.Pooling(x, kernel=(2, 2), pool_type="sum")), "Pooling("),
        (nn.HybridLambda(lambda F, x: F.L2Normalization(x, mode="channel")), "L2Normalization("),
        (nn.HybridLambda(lambda F, x: F.Cast(F.Cast(x, "int32"), "float32")), "Cast("),
        (nn.Dense(3, flatten=False), "FullyConnected("),
    ],
)
def test_what_cannot_be_translated_is_named(layer, operator, tmp_path):
    with pytest.raises(UsageError, match=f"no translation of {re.escape(operator)}") as error:
        export_onnx(small_net(layer), str(tmp_path / "net.onnx"), 16, normalize_input=True)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def exported_with_feedback(export, net, path):
    """Runs an export that must fail; its message, which is one line."""
    with pytest.raises(UsageError) as error:
        export(net, str(path), 16, normalize_input=True)
    assert "\n" not in str(error.value)
    return str(error.value)


EXPORTS = pytest.mark.parametrize("export", [export_symbol, export_onnx])


@EXPORTS
def test_a_size_that_the_network_does_not_take(export, tmp_path):
    message = exported_with_feedback(export, small_net(size=20), tmp_path / "net")
    assert message.startswith("--crop-size 16: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "output, message",
    [
        ("", "argument OUTPUT: the name of a file or folder is empty"),
        ("folder/", "OUTPUT 'folder/': is no file name; give one, such as"),
        ("net.pth", "OUTPUT net.pth: .pth is not written; end the name in .onnx or .safetensors"),
        ("net.PARAMS", "OUTPUT net.PARAMS: .PARAMS is not written; "),
        ("no/net.onnx", "OUTPUT no/net.onnx: the folder no does not exist or cannot be written"),
        ("no/net", "OUTPUT no/net-symbol.json: the folder no does not exist or cannot be writ"),
    ],
)
def test_an_output_of_a_wrong_name_is_refused_before_the_model_is_read(output, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        export_command(["none.params", output])


@pytest.mark.parametrize("model, output", [("net-0000.params", "net"), ("a.onnx", "./a.onnx")])
def test_the_model_is_not_replaced_by_what_is_exported(model, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / model).touch()
    with pytest.raises(UsageError, match=f"^OUTPUT .*: would replace {model}, which is read"):
        export_command([model, output])


@EXPORTS
def test_a_folder_that_is_not_there(export, tmp_path):
    message = exported_with_feedback(export, small_net(), tmp_path / "none" / "net")
    assert message.startswith(str(tmp_path / "none" / "net"))
    assert "No such file or directory" in message


@EXPORTS
@pytest.mark.parametrize("missing", [1, 3000, 100_000])
def test_a_full_disk_leaves_the_former_files(export, missing, tmp_path):
    """`missing`: bytes that do not find a place."""
    net = small_net(feat_dim=50)
    export(net, str(tmp_path / "net"), 16, normalize_input=True)
    former = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    net.dense.initialize(mx.init.One(), force_reinit=True)
    with files_of_at_most(max(map(len, former.values())) - missing):
        message = exported_with_feedback(export, net, tmp_path / "net")
    assert "cannot be written" in message
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == former


@contextmanager
def files_of_at_most(size):
    """The kernel refuses what is written beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_the_package_onnx_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "embedding_learning.inference.onnx_graph", raising=False)
    message = exported_with_feedback(export_onnx, small_net(), tmp_path / "net.onnx")
    assert message.endswith("pip install -r requirements-onnx.txt")
    export_symbol(small_net(), str(tmp_path / "net"), 16, normalize_input=True)


@pytest.mark.slow
def test_searching_with_onnxruntime_alone(tmp_path):
    """The example of the page finds what the network itself finds, in a Python without MXNet."""
    import_onnxruntime()
    net = small_net(nn.MaxPool2D(32), size=224)
    export_onnx(net, str(tmp_path / "birds.onnx"), 224, normalize_input=True)
    (tmp_path / "gallery").mkdir()
    paths = [f"gallery/{number}.jpg" for number in range(8)]
    for path, pixels in zip(["query.jpg", *paths], random_pixels(9, 300, seed=0).asnumpy()):
        cv2.imwrite(str(tmp_path / path), pixels.transpose(1, 2, 0)[:, :, ::-1])

    blocked = "import sys; sys.modules.update(mxnet=None, embedding_learning=None)\n"
    run = subprocess.run(
        [sys.executable, "-c", blocked + EXAMPLE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    printed = [line.split() for line in run.stdout.splitlines()]

    images = [read_square(str(tmp_path / path), None, 256) for path in ["query.jpg", *paths]]
    pixels = np.stack([image[16:240, 16:240].transpose(2, 0, 1) for image in images])
    query, *gallery = net.embed(nd.array(pixels, dtype=np.uint8)).asnumpy()
    distances = np.linalg.norm(gallery - query, axis=1)
    nearest = np.argsort(distances)[:5]
    assert [path for _, path in printed] == [paths[row] for row in nearest]
    found = [float(distance) for distance, _ in printed]
    np.testing.assert_allclose(found, distances[nearest], atol=1e-4)
    assert np.ptp(found) > 0.01
