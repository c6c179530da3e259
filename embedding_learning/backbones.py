"""Where a backbone and its weights come from."""

from __future__ import annotations

import difflib
import os

import mxnet as mx
from mxnet.gluon import HybridBlock, nn
from mxnet.gluon.model_zoo import vision

from embedding_learning.options import UsageError
from embedding_learning.parameter_files import read_parameters, set_parameters

_RESNET_DEPTHS = (18, 34, 50, 101, 152)
GLUON_NAMES = (
    "alexnet",
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    "inceptionv3",
    *(f"mobilenet{width}" for width in ("1.0", "0.75", "0.5", "0.25")),
    *(f"mobilenetv2_{width}" for width in ("1.0", "0.75", "0.5", "0.25")),
    *(f"resnet{depth}_v{version}" for version in (1, 2) for depth in _RESNET_DEPTHS),
    *(f"squeezenet{version}" for version in ("1.0", "1.1")),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
)
# torchvision's spelling where it differs, with the same architecture. Its ResNets put the stride
# into the 3x3 convolution, which is gluoncv's v1b and not Gluon's v1.
TORCHVISION_NAMES = {
    "inception_v3": "inceptionv3",
    "mobilenet_v2": "mobilenetv2_1.0",
    "squeezenet1_0": "squeezenet1.0",
    "squeezenet1_1": "squeezenet1.1",
    **{f"resnet{depth}": f"resnet{depth}_v1b" for depth in _RESNET_DEPTHS},
}
# What the original does with pretrained weights: these layers learn at a hundredth of the rate.
_PRETRAINED_CONVOLUTION_LR_MULT = 0.01


def create(
    name: str,
    devices: list[mx.Context],
    use_pretrained: bool = False,
    pretrained_params: str | None = None,
) -> HybridBlock:
    """The layers of a classifier up to its features.

    Parameters
    ----------
    name : str
        One of GLUON_NAMES or of TORCHVISION_NAMES, in any case.
    devices : list of Context
        Where pretrained weights are put; without them the layers are left uninitialized.
    use_pretrained : bool
        Take the weights of Gluon's model zoo, from its cache or its address.
    pretrained_params : str, optional
        Take the weights from this Gluon parameter file instead.

    Returns
    -------
    HybridBlock
        (n, 3, height, width) to features. With pretrained weights its convolutions have an
        `lr_mult` of 0.01.

    Raises
    ------
    UsageError
        If the name is unknown or the weights cannot be had.
    """
    check_name(name)
    name = TORCHVISION_NAMES.get(name.lower(), name.lower())
    classifier = _classifier(name)
    features = _features(classifier)
    if pretrained_params:
        source = f"--pretrained-params {pretrained_params}"
        arrays = read_parameters(pretrained_params, "--pretrained-params")
        wanted = _feature_parameters(classifier, features)
        # The file of a whole classifier holds its last layer too.
        arrays = {name: array for name, array in arrays.items() if name in wanted}
        set_parameters(wanted, arrays, source, devices)
    elif use_pretrained:
        _load_from_zoo(classifier, name, devices)
    if use_pretrained or pretrained_params:
        slow_down_convolutions(features)
    return features


def slow_down_convolutions(features: HybridBlock) -> None:
    """Lets pretrained convolutions learn at a hundredth of the rate, as the original does."""
    for parameter in features.collect_params().values():
        if "conv" in parameter.name:
            parameter.lr_mult = _PRETRAINED_CONVOLUTION_LR_MULT


def check_name(name: str) -> None:
    """Raises UsageError with the nearest names if there is no such backbone."""
    names = [*GLUON_NAMES, *TORCHVISION_NAMES]
    if name.lower() not in names:
        near = difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.0)
        raise UsageError(f"--model {name}: unknown; the nearest names are {', '.join(near)}")


def _classifier(name: str) -> HybridBlock:
    if name in GLUON_NAMES:
        return vision.get_model(name)
    # Only here, since importing gluoncv takes seconds.
    try:
        from gluoncv import model_zoo
    except RuntimeError as error:
        # It refuses to work where a PyTorch is installed that is younger than itself.
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--model: {name} comes from gluoncv, which refuses this environment ({reason}); "
            "install the requirements into an environment of their own"
        ) from error

    return model_zoo.get_model(name)


def _features(classifier: HybridBlock) -> HybridBlock:
    """The classifier without its last layer."""
    if hasattr(classifier, "features"):
        return classifier.features
    # gluoncv's ResNets hold their layers in order and have no such attribute.
    features = nn.HybridSequential(prefix="")
    for layer in classifier._children.values():
        if layer is not classifier.fc:
            features.add(layer)
    return features


def _feature_parameters(
    classifier: HybridBlock, features: HybridBlock
) -> dict[str, mx.gluon.Parameter]:
    """The parameters of the features by their names in a file of the whole classifier."""
    wanted = {id(parameter) for parameter in features.collect_params().values()}
    named = classifier._collect_params_with_prefix()
    return {name: parameter for name, parameter in named.items() if id(parameter) in wanted}


def _load_from_zoo(classifier: HybridBlock, name: str, devices: list[mx.Context]) -> None:
    if name in GLUON_NAMES:
        from mxnet.gluon.model_zoo import model_store
    else:
        from gluoncv.model_zoo import model_store
    cache = os.path.join(mx.base.data_dir(), "models")
    try:
        file = model_store.get_model_file(name, root=cache)
    except Exception as error:
        # The download raises errors of half a dozen libraries; each means the same to the user.
        raise UsageError(
            f"--use-pretrained: the weights of {name} are neither in {cache} nor could they be "
            f"downloaded ({type(error).__name__}); put the file of the model zoo there, or name "
            "one with --pretrained-params FILE"
        ) from error
    classifier.load_parameters(file, ctx=devices)
