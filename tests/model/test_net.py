"""The network: its outputs, its sampling, and that the original's network reads its files."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon, nd
from mxnet.gluon import nn

from embedding_learning import MarginNet
from embedding_learning.model.net import ImageNormalization
from embedding_learning.model.sampling import HardSampling


def small_backbone():
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(4, 3, in_channels=3), nn.Activation("relu"), nn.GlobalAvgPool2D())
    return backbone


def small_net(**settings):
    net = MarginNet(small_backbone(), emb_dim=16, batch_k=3, **settings)
    net.initialize(mx.init.Xavier(magnitude=2))
    return net


def images(n, size=8, seed=0):
    return nd.array(np.random.default_rng(seed).normal(size=(n, 3, size, size)))


@pytest.mark.parametrize("hybridized", [False, True])
def test_outputs_for_any_batch_size_of_whole_classes(hybridized):
    net = small_net()
    if hybridized:
        net.hybridize(static_alloc=True, static_shape=True)
    for n in (6, 30, 9, 6):
        a_indices, anchors, positives, negatives, embeddings = net(images(n))
        assert a_indices.shape == (n * 2,)
        assert anchors.shape == positives.shape == negatives.shape == (n * 2, 16)
        assert embeddings.shape == (n, 16)
        lengths = np.linalg.norm(embeddings.asnumpy(), axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)


@pytest.mark.parametrize("hybridized", [False, True])
def test_embed_gives_the_embeddings_alone_and_samples_nothing(hybridized):
    net = small_net()
    if hybridized:
        net.hybridize(static_alloc=True, static_shape=True)
    x = images(30)
    net.embed(x)  # determines the sizes and initializes the weights
    mx.random.seed(5)
    expected = [output.asnumpy() for output in net(x)]
    mx.random.seed(5)
    embeddings = net.embed(x)
    for output, before in zip(net(x), expected):
        np.testing.assert_array_equal(output.asnumpy(), before)
    np.testing.assert_allclose(embeddings.asnumpy(), expected[-1], atol=1e-6)
    assert net.embed(images(1)).shape == (1, 16)


def test_hybridizing_changes_no_value():
    net = small_net()
    x = images(12)
    plain = net.embed(x).asnumpy()
    net.hybridize(static_alloc=True, static_shape=True)
    np.testing.assert_allclose(net(x)[-1].asnumpy(), plain, atol=1e-6)


def test_feat_dim_adds_one_layer():
    net = small_net(feat_dim=7)
    net(images(6))
    assert net.feature.weight.shape == (7, 4)
    assert net.dense.weight.shape == (16, 7)
    assert small_net().feature is None


def test_the_sampling_is_the_one_given():
    sampled = small_net(sampling=HardSampling).sampling
    assert isinstance(sampled, HardSampling)
    assert sampled._batch_k == 3


def test_the_original_network_loads_the_file(tmp_path):
    """It has a backbone `base_net`, a layer `dense` and no other parameters."""

    class OriginalNet(gluon.Block):
        def __init__(self):
            super().__init__()
            self.base_net = small_backbone()
            self.dense = nn.Dense(16)

        def forward(self, x):
            return nd.L2Normalization(self.dense(self.base_net(x)))

    net, original = small_net(preprocess=ImageNormalization()), OriginalNet()
    pixels = nd.array(np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8)), dtype=np.uint8)
    expected = net.embed(pixels).asnumpy()
    net.save_parameters(str(tmp_path / "net.params"))
    original.load_parameters(str(tmp_path / "net.params"))
    found = original(ImageNormalization()(pixels)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_image_normalization_is_imagenets():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4)).astype(np.uint8)
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    deviation = np.array([0.229, 0.224, 0.225])[:, None, None]
    found = ImageNormalization()(nd.array(pixels, dtype=np.uint8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.asnumpy(), (pixels / 255 - mean) / deviation, atol=2e-6)
