"""Deep metric learning on Apache MXNet Gluon."""

from embedding_learning import mxnet_runtime

mxnet_runtime.install()
