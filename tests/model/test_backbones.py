"""Backbones by name, and where their weights come from."""

from __future__ import annotations

import functools
import gc
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import Block, nn
from mxnet.gluon.model_zoo import vision
from mxnet.gluon.nn import conv_layers

from embedding_learning.errors import UsageError
from embedding_learning.model import backbones
from embedding_learning.model.families import gluoncv
from embedding_learning.model.weights import catalog
from embedding_learning.model.weights.catalog import (
    ARCHITECTURES,
    GLUON_NAMES,
    TORCHVISION_NAMES,
    Architecture,
)

CPU = [mx.cpu()]
SIDE = 64
needs_gluoncv = pytest.mark.skipif(
    importlib.util.find_spec("gluoncv") is None, reason="gluoncv is not installed"
)
# Names of torchvision and the shape of their features for two images of SIDE pixels.
FEATURES = [
    pytest.param("squeezenet1_1", (2, 512, 3, 3)),
    pytest.param("mobilenet_v2", (2, 1280, 1, 1)),
    pytest.param("resnet18", (2, 512), marks=needs_gluoncv),
    pytest.param("mobilenet0.25", (2, 256)),
]


class SavedClassifier(NamedTuple):
    """A whole network and the file of its parameters."""

    network: Block
    file: str


def images(side: int = SIDE) -> mx.nd.NDArray:
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side))
    return mx.nd.array(pixels, dtype=np.float32)


def convolutions(block: Block) -> Iterator[nn.Conv2D]:
    """Every convolution inside of a block."""
    for child in block._children.values():
        if isinstance(child, nn.Conv2D):
            yield child
        yield from convolutions(child)


def classifier_of(name: str) -> Block:
    """The whole network that a name of Gluon's or gluoncv's model zoo stands for."""
    if name.endswith("_v1b"):
        from gluoncv import model_zoo

        return model_zoo.get_model(name, classes=7)
    return vision.get_model(name, classes=7)


@pytest.fixture(scope="module")
def save_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SavedClassifier]:
    """A function that makes a network with random weights, once, and saves it as a zoo does."""
    folder = tmp_path_factory.mktemp("zoo")

    @functools.cache
    def save(name: str) -> SavedClassifier:
        classifier = classifier_of(name)
        classifier.initialize(mx.init.Xavier())
        # SqueezeNet ends in a pooling that needs the whole size.
        classifier(images(224 if name.startswith("squeezenet") else 32)[:1])
        file = str(folder / f"{name}.params")
        classifier.save_parameters(file)
        return SavedClassifier(classifier, file)

    return save


def features_of(classifier: Block, x: mx.nd.NDArray) -> np.ndarray:
    """Returns the output of a classifier before its last layer."""
    if hasattr(classifier, "features"):
        return classifier.features(x).asnumpy()
    *layers, _ = classifier._children.values()
    for layer in layers:
        x = layer(x)
    return x.asnumpy()


def refusal(name: str, **source: object) -> str:
    """The one line in which a backbone is refused."""
    with pytest.raises(UsageError) as caught:
        backbones.create(name, CPU, **source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Names


def test_every_name_has_a_row() -> None:
    """`test_the_table_has_parameters_and_features_of_each_network` builds each row."""
    for name in (*GLUON_NAMES, *TORCHVISION_NAMES):
        backbones.check_name(name)
        assert catalog.resolve_name(name) in ARCHITECTURES


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["SqueezeNet1.1", "SQUEEZENET1_1", pytest.param("ResNet18", marks=needs_gluoncv)]
)
def test_a_name_is_taken_in_any_case(name: str) -> None:
    backbones.check_name(name)
    written, usual = (backbones.create(each, CPU) for each in (name, name.lower()))
    assert repr(written) == repr(usual)


def test_every_network_of_gluon_is_known() -> None:
    """`get_model` lists its names when it is asked for one that it does not have."""
    with pytest.raises(ValueError, match="resnet50_v2") as caught:
        vision.get_model("none")
    listed = {line.strip() for line in str(caught.value).splitlines()[1:]} - {""}
    assert listed == set(GLUON_NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name, shape", FEATURES)
def test_features_have_their_shape(name: str, shape: tuple[int, ...]) -> None:
    features = backbones.create(name, CPU)
    features.initialize()
    assert features(images()).shape == shape
    features.hybridize()
    assert features(images()).shape == shape


# Shapes of the weights of convolutions, by the arguments of the function that infers them.
WEIGHT_SHAPES: dict[str, Any] = {}


@pytest.fixture
def quick_building(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Builds networks in two thirds of the time.

    Gluon composes and infers a graph for each convolution, and most are equal. The garbage
    collector goes through the many new objects again and again, and none of them is garbage yet.
    """
    infer = conv_layers._infer_weight_shape

    def infer_once(*arguments: Any) -> Any:
        key = repr(arguments)
        if key not in WEIGHT_SHAPES:
            WEIGHT_SHAPES[key] = infer(*arguments)
        return WEIGHT_SHAPES[key]

    monkeypatch.setattr(conv_layers, "_infer_weight_shape", infer_once)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_building")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_gluoncv) if row.family == "gluoncv" else name
        for name, row in ARCHITECTURES.items()
    ],
)
def test_the_table_has_parameters_and_features_of_each_network(name: str) -> None:
    """Nothing is computed: only shapes are."""
    backbone = backbones.build_uninitialized(name)
    expected = ARCHITECTURES[name]
    graph = backbone.features(mx.sym.var("data"))
    shape = (1, 3, expected.crop_size, expected.crop_size)
    shapes, ((count, *rest),), _ = graph.infer_shape(data=shape)
    assert (count, math.prod(rest)) == (1, expected.features)
    sizes = dict(zip(graph.list_arguments(), map(math.prod, shapes)))
    learned = [p.name for p in backbone.parameters.values() if p.grad_req != "null"]
    assert sum(sizes[parameter] for parameter in learned) == expected.parameters
    # The last layer alone is missing.
    layers = {parameter.rpartition(".")[0] for parameter in backbone.head}
    last = {"output", "output.0", "fc", "classifier", "out.3"}
    # GoogLeNet has it in two places.
    assert layers == {"head.2", "output"} if name == "googlenet" else len(layers & last) == 1


@needs_gluoncv
def test_every_image_classifier_of_gluoncv_is_known() -> None:
    from gluoncv.model_zoo import model_zoo

    # Small images, video, detection, segmentation, poses and depth; int8 does not train, and the
    # group norm of gluoncv is no part of a graph.
    others = "cifar|_kinetics|ucf101|hmdb51|sthsth|_custom|ssd_|rcnn|yolo|fcn_|psp_|deeplab|icnet"
    others += "|fastscnn|danet|pose|int8|center_net|siamrpn|monodepth|hrnet.*_s$|_gn$"
    wanted = {name for name in model_zoo._models if not re.search(others, name)}
    assert wanted == set(ARCHITECTURES) - {"mobilenet_v2"}


@pytest.mark.slow
@needs_gluoncv
@pytest.mark.parametrize(
    "name, last",
    [("googlenet", "output"), ("dla34", "fc"), ("hrnet_w18_small_v1_c", "classifier")],
)
def test_the_features_of_a_network_without_an_order_are_before_its_last_layer(
    name: str, last: str
) -> None:
    mx.random.seed(1)
    classifier = gluoncv.build(name)
    classifier.initialize(mx.init.Xavier())
    x = images(96 if name != "googlenet" else 224)[:1]
    dense, classes = getattr(classifier, last), classifier(x).asnumpy()
    # It may change the classifier.
    features = gluoncv.take_features(classifier, name)
    np.testing.assert_allclose(dense(features(x)).asnumpy(), classes, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@needs_gluoncv
def test_nothing_is_dropped_at_random_that_would_be_in_evaluation() -> None:
    features = backbones.build_uninitialized("resnest26").features
    features.initialize()
    with mx.autograd.train_mode():
        one, other = (features(images()).asnumpy() for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_a_network_that_onednn_cannot_train_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MXNET_MKLDNN_ENABLED", raising=False)
    with pytest.raises(UsageError, match=r"^--model NASNet_4_1056: the oneDNN in MXNet fails"):
        backbones.check_trainable("NASNet_4_1056", on_cpu=True)
    for name in ("nasnet_7_1920", "nasnet_6_4032"):
        with pytest.raises(UsageError, match=f"^--model {name}: the oneDNN in MXNet fails"):
            backbones.check_trainable(name, on_cpu=True)
    backbones.check_trainable("nasnet_4_1056", on_cpu=False)
    backbones.check_trainable("nasnet_5_1538", on_cpu=True)
    monkeypatch.setenv("MXNET_MKLDNN_ENABLED", "0")
    backbones.check_trainable("nasnet_4_1056", on_cpu=True)


# Pooling


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, map_shape",
    [
        ("squeezenet1.1", (512, 3, 3)),
        ("resnet18_v2", (512, 2, 2)),
        ("mobilenet_v2", (1280, 2, 2)),
        ("densenet121", (1024, 2, 2)),
        pytest.param("resnet18", (512, 2, 2), marks=needs_gluoncv),
        pytest.param("darknet53", (1024, 2, 2), marks=needs_gluoncv),
    ],
)
def test_the_last_map_is_pooled_as_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, map_shape: tuple[int, ...]
) -> None:
    # All have the layers, and so the weights, of the one that is built first.
    build = functools.cache(backbones.build_uninitialized)
    monkeypatch.setattr(backbones, "build_uninitialized", build)
    mx.random.seed(1)
    nets = {pool: backbones.create(name, CPU, pool=pool) for pool in ("none", "avg", "max")}
    nets["none"].initialize(mx.init.Xavier())
    found = nets["none"](images()).asnumpy()
    assert found.shape == (2, *map_shape)
    for pool, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = nets[pool](images()).asnumpy()
        # Of random weights the features may be tiny.
        tolerance = 1e-5 * abs(found).max()
        np.testing.assert_allclose(pooled, reduce(found, axis=(2, 3)), rtol=1e-5, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["alexnet", "vgg11_bn", pytest.param("googlenet", marks=needs_gluoncv)]
)
@pytest.mark.parametrize("pool", ["avg", "max", "none"])
def test_features_that_are_no_map_are_not_pooled(name: str, pool: str) -> None:
    message = f"--pool {pool}: {name} does not end in a feature map; leave it out"
    assert refusal(name, pool=pool) == message


def test_the_pooling_keeps_the_names_of_parameters() -> None:
    original = backbones.create("resnet18_v2", CPU)._collect_params_with_prefix()
    for pool in ("avg", "max", "none"):
        features = backbones.create("resnet18_v2", CPU, pool=pool)
        assert list(features._collect_params_with_prefix()) == list(original)


@needs_gluoncv
def test_the_stride_of_a_resnet_of_torchvision_sits_in_the_3x3_convolution() -> None:
    strides = {
        (layer._kwargs["kernel"], layer._kwargs["stride"])
        for layer in convolutions(backbones.create("resnet50", CPU)[5]._children["0"])
    }
    assert ((3, 3), (2, 2)) in strides
    # The other one with a stride is the shortcut.
    main_path = list(convolutions(backbones.create("resnet50", CPU)[5]._children["0"]))[:3]
    assert [layer._kwargs["stride"] for layer in main_path] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize(
    "name, near",
    [
        ("resnet50v2", "resnet50_v2"),
        ("vgg", "vgg11"),
        ("mobilenet", "mobilenet_v2"),
        ("ResNet50V2", "resnet50_v2"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    message = refusal(name)
    assert message.startswith(f"--model {name}: unknown")
    assert near in message


@pytest.mark.parametrize("name", ["", "?", "resnet18_v1x", "../resnet18_v1"])
def test_whatever_is_no_name_is_refused(name: str) -> None:
    assert refusal(name).startswith(f"--model {name}: unknown; the nearest names are ")


# Weights from a file


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, in_zoo",
    [
        ("squeezenet1_1", "squeezenet1.1"),
        ("mobilenet0.25", "mobilenet0.25"),
        pytest.param("resnet18", "resnet18_v1b", marks=needs_gluoncv),
    ],
)
def test_the_features_are_those_of_the_file(
    save_classifier: Callable[[str], SavedClassifier], name: str, in_zoo: str
) -> None:
    classifier, file = save_classifier(in_zoo)
    features = backbones.create(name, CPU, pretrained_params=file)
    np.testing.assert_array_equal(features(images()).asnumpy(), features_of(classifier, images()))


def test_the_weights_of_a_file_reach_every_device(
    save_classifier: Callable[[str], SavedClassifier],
) -> None:
    file = save_classifier("mobilenet0.25").file
    devices = [mx.cpu(0), mx.cpu(1)]
    features = backbones.create("mobilenet0.25", devices, pretrained_params=file)
    one, other = (features(images().as_in_context(device)).asnumpy() for device in devices)
    np.testing.assert_array_equal(one, other)


def test_half_precision_in_a_file_becomes_single(
    save_classifier: Callable[[str], SavedClassifier], tmp_path: Path
) -> None:
    single = mx.nd.load(save_classifier("mobilenet0.25").file)
    file = str(tmp_path / "half.params")
    mx.nd.save(file, {name: array.astype("float16") for name, array in single.items()})
    features = backbones.create("mobilenet0.25", CPU, pretrained_params=file)
    for name, parameter in features._collect_params_with_prefix().items():
        assert parameter.data().dtype == np.float32
        rounded = single[f"features.{name}"].asnumpy().astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(parameter.data().asnumpy(), rounded)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["squeezenet1.1", "mobilenet0.25", pytest.param("resnet18", marks=needs_gluoncv)]
)
def test_pretrained_convolutions_alone_learn_at_a_hundredth_of_the_rate(
    save_classifier: Callable[[str], SavedClassifier], name: str
) -> None:
    file = save_classifier(TORCHVISION_NAMES.get(name, name)).file
    features = backbones.create(name, CPU, pretrained_params=file)
    slow = {p.name for layer in convolutions(features) for p in layer.collect_params().values()}
    assert slow
    for parameter in features.collect_params().values():
        assert parameter.lr_mult == (0.01 if parameter.name in slow else 1), parameter.name


def test_without_pretrained_weights_everything_learns_at_the_full_rate() -> None:
    features = backbones.create("squeezenet1.1", CPU)
    assert {p.lr_mult for p in features.collect_params().values()} == {1}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "zoo.params"
    message = refusal("squeezenet1.1", pretrained_params=str(file))
    assert message == f"--pretrained-params {file}: no such file, or it cannot be read"


@pytest.mark.parametrize("kept", [0, 5, 1000, -10])
def test_a_file_that_was_cut_off_is_refused(
    save_classifier: Callable[[str], SavedClassifier], tmp_path: Path, kept: int
) -> None:
    file = tmp_path / "zoo.params"
    file.write_bytes(Path(save_classifier("mobilenet0.25").file).read_bytes()[:kept])
    message = refusal("mobilenet0.25", pretrained_params=str(file))
    assert message.startswith(f"--pretrained-params {file}: is damaged")


def test_a_file_of_random_bytes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "zoo.params"
    file.write_bytes(np.random.default_rng(0).bytes(10_000))
    message = refusal("squeezenet1.1", pretrained_params=str(file))
    assert message.startswith(f"--pretrained-params {file}: is damaged")


@pytest.mark.parametrize("saved, wanted", [("mobilenet0.25", "alexnet"), ("alexnet", "vgg11")])
def test_a_file_of_another_network_is_refused(tmp_path: Path, saved: str, wanted: str) -> None:
    file = tmp_path / "zoo.params"
    features = vision.get_model(saved).features[:1]  # enough to differ
    features.initialize()
    features(images())
    features.save_parameters(str(file))
    message = refusal(wanted, pretrained_params=str(file))
    assert message.startswith(f"--pretrained-params {file}: ")
    assert "which the network lacks" in message
    assert "a network of other flags" in message


def test_a_file_with_values_that_are_not_finite_is_refused(
    save_classifier: Callable[[str], SavedClassifier], tmp_path: Path
) -> None:
    arrays = mx.nd.load(save_classifier("mobilenet0.25").file)
    arrays["features.0.weight"][0] = np.nan
    file = str(tmp_path / "zoo.params")
    mx.nd.save(file, arrays)
    message = refusal("mobilenet0.25", pretrained_params=file)
    assert message.startswith(f"--pretrained-params {file}: features.0.weight ")
    assert "not finite" in message


def test_the_last_layer_in_the_file_is_passed_over(
    save_classifier: Callable[[str], SavedClassifier], tmp_path: Path
) -> None:
    """The content of the file does not matter."""
    classifier, saved = save_classifier("mobilenet0.25")
    arrays = mx.nd.load(saved)
    arrays["output.weight"][:] = np.nan
    file = str(tmp_path / "zoo.params")
    mx.nd.save(file, arrays)
    features = backbones.create("mobilenet0.25", CPU, pretrained_params=file)
    np.testing.assert_array_equal(features(images()).asnumpy(), features_of(classifier, images()))


def test_a_file_of_a_narrower_network_is_refused_with_its_first_wrong_shape(
    save_classifier: Callable[[str], SavedClassifier],
) -> None:
    message = refusal("mobilenet0.5", pretrained_params=save_classifier("mobilenet0.25").file)
    assert "features.0.weight has the shape (8, 3, 3, 3)" in message


@pytest.mark.shared
def test_the_weights_trained_on_imagenet_are_taken(shared: Path) -> None:
    file = shared / "weights" / "squeezenet1.1.params"
    classifier = vision.squeezenet1_1()
    classifier.load_parameters(str(file))
    features = backbones.create("squeezenet1_1", CPU, pretrained_params=str(file))
    np.testing.assert_array_equal(features(images()).asnumpy(), features_of(classifier, images()))


def test_an_environment_that_gluoncv_refuses_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As it does next to a PyTorch that is newer than itself."""
    (tmp_path / "gluoncv").mkdir()
    code = 'raise RuntimeError("Legacy torch==2.0 detected\\nand more")'
    (tmp_path / "gluoncv" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "gluoncv"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"this environment \(Legacy torch==2.0 detected\)"):
        backbones.create("resnet18", [mx.cpu()])


def test_a_family_is_a_module_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str) -> mx.gluon.HybridBlock:
        classifier = mx.gluon.HybridBlock()
        classifier.features = nn.HybridSequential()
        classifier.features.add(nn.Conv2D(4, 3), nn.GlobalAvgPool2D())
        classifier.output = nn.Dense(10)
        return classifier

    module = ModuleType("tiny")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "embedding_learning.model.families.tiny", module)
    row = Architecture(parameters=112, features=4, crop_size=32, family="tiny")
    monkeypatch.setitem(ARCHITECTURES, "tiny", row)
    features = backbones.create("Tiny", CPU, pool="max")
    features.initialize()
    assert features(images()).shape == (2, 4)
    test_the_table_has_parameters_and_features_of_each_network("tiny")
    assert "tiny" in catalog.format_table()
    assert refusal("tiny", use_pretrained=True).startswith("--use-pretrained: no model zoo has")
