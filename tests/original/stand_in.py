"""A stand-in for the original example: small, but with all that the program uses of its files.

It computes what the original does, except for the sampling: that is uniform, and different in every
process.
"""

from __future__ import annotations

from pathlib import Path

_DATA = """
import os, random
import mxnet as mx
import numpy as np

def _pixels(file, box, crop_at):
    x, y, w, h = box
    image = mx.image.imread(file)
    image = image[y:min(y + h, image.shape[0]), x:min(x + w, image.shape[1])]
    image = mx.image.imresize(image, 256, 256).astype("float32") / 127.5 - 1
    return crop_at(image, (224, 224))[0].transpose((2, 0, 1)).expand_dims(0)

class Images:
    def __init__(self, folder, k, n):
        self.k, self.n, self.done = k, n, False
        def last(name):
            with open(os.path.join(folder, name)) as file:
                return [line.split()[1:] for line in file]
        self.files = [os.path.join(folder, "images", name) for name, in last("images.txt")]
        self.labels = np.array([int(label) for label, in last("image_class_labels.txt")]) - 1
        self.boxes = [[int(v) for v in box] for box in last("bounding_boxes.txt")]
        self.tests = np.flatnonzero(self.labels >= 100)
        self.n_test = len(self.tests)

    def next(self):
        rows = []
        for label in np.random.choice(100, self.n // self.k, replace=False):
            own = np.flatnonzero(self.labels == label)
            rows += list(np.random.choice(own, self.k, replace=False))
        return self.batch(rows, mx.image.random_crop)

    def batch(self, rows, crop):
        images = [_pixels(self.files[row], self.boxes[row], crop) for row in rows]
        labels = mx.nd.array(self.labels[rows])
        return mx.io.DataBatch(data=[mx.nd.concat(*images, dim=0)], label=[labels])

def cub200_iterator(folder, k, n, shape):
    return Images(folder, k, n), Images(folder, k, n)
"""

_MODEL = """
import mxnet as mx
import numpy as np
from mxnet.gluon import Block, nn

class MarginNet(Block):
    def __init__(self, base_net, emb_dim, batch_k):
        super().__init__()
        self.k = batch_k
        with self.name_scope():
            self.base_net = base_net
            self.dense = nn.Dense(emb_dim)

    def forward(self, x):
        z = mx.nd.L2Normalization(self.dense(self.base_net(x)))
        n, k = len(x), self.k
        a = [i for i in range(n) for _ in range(k - 1)]
        p = [j for i in range(n) for j in range(i // k * k, i // k * k + k) if j != i]
        far = [[j // k != i // k for j in range(n)] for i in range(n)]
        q = [j for row in far for j in np.random.choice(n, k - 1, p=np.array(row) / (n - k))]
        return a, z[a], z[p], z[q], z

class MarginLoss:
    def __init__(self, margin, nu):
        self.margin, self.nu = margin, nu

    def __call__(self, a, p, n, beta, labels):
        b = beta.data().take(labels)
        near, far = (((a - o) ** 2).sum(axis=1) + 1e-8 for o in (p, n))
        pulls = mx.nd.relu(near.sqrt() - b + self.margin)
        pushes = mx.nd.relu(b - far.sqrt() + self.margin)
        return (pulls + pushes).sum() / ((pulls > 0) + (pushes > 0)).sum()
"""

_TRAIN = """
import argparse, logging, time
import mxnet as mx
import numpy as np
from bottleneck import argpartition
from data import cub200_iterator
from mxnet import autograd, gluon
from mxnet.gluon.model_zoo import vision
from model import MarginLoss, MarginNet

logging.basicConfig(level=logging.INFO)
parser = argparse.ArgumentParser()
for name in ("data-path", "gpus", "optimizer", "steps", "model", "save-model-prefix", "kvstore"):
    parser.add_argument("--" + name, default="")
for name in ("embed-dim", "batch-size", "batch-k", "epochs", "seed", "log-interval"):
    parser.add_argument("--" + name, type=int)
for name in ("lr", "lr-beta", "margin", "beta", "nu", "factor", "wd"):
    parser.add_argument("--" + name, type=float)
parser.add_argument("--use-pretrained", action="store_true")
opt = parser.parse_args()
mx.random.seed(opt.seed)
context = [mx.cpu()]
zoo = vision.get_model(opt.model, pretrained=opt.use_pretrained)
if opt.gpus is '' and opt.use_pretrained:
    for parameter in zoo.collect_params().values():
        parameter.lr_mult = 0.01 if "conv" in parameter.name else 1.0
net = MarginNet(zoo.features, opt.embed_dim, opt.batch_k)
beta = gluon.Parameter("beta", shape=(100,))
train_data, val_data = cub200_iterator(opt.data_path, opt.batch_k, opt.batch_size, (3, 224, 224))

def recalls():
    z = net(val_data.batch(val_data.tests, mx.image.center_crop).data[0])[-1].asnumpy()
    labels = val_data.labels[val_data.tests]
    distances = ((z[:, None] - z) ** 2).sum(axis=2) + 9 * np.eye(len(z))
    for k in (1, 2, 4, 8, 16):
        near = [argpartition(row, k)[:k] for row in distances]
        yield k, np.mean([label in labels[rows] for label, rows in zip(labels, near)])

def train(epochs, ctx):
    net.initialize(mx.init.Xavier(magnitude=2), ctx=ctx)
    beta.initialize(mx.init.Constant(opt.beta), ctx=ctx)
    print("what it prints is not part of the conversation")
    settings = {"learning_rate": opt.lr, "wd": opt.wd}
    if opt.optimizer == "sgd":
        settings["momentum"] = 0.9
    trainers = [
        gluon.Trainer(net.collect_params(), opt.optimizer, settings),
        gluon.Trainer([beta], "sgd", {"learning_rate": opt.lr_beta, "momentum": 0.9}),
    ]
    loss = MarginLoss(margin=opt.margin, nu=opt.nu)
    for epoch in range(epochs):
        start, total = time.time(), 0.0
        for i in range(200):
            batch = train_data.next()
            with autograd.record():
                rows, *triplets, _ = net(batch.data[0])
                value = loss(*triplets, beta, batch.label[0].take(mx.nd.array(rows)))
            value.backward()
            for trainer in trainers:
                trainer.step(opt.batch_size)
            total += value.asscalar()
        logging.info("[Epoch %d] training loss=%f", epoch, total)
        logging.info("[Epoch %d] time cost: %f", epoch, time.time() - start)
        for k, value in recalls():
            logging.info("[Epoch %d] validation: Recall@%d=%f", epoch, k, value)
"""


def write(folder: Path) -> Path:
    """Writes its three files into a new folder."""
    folder.mkdir(parents=True)
    for name, text in (("data.py", _DATA), ("model.py", _MODEL), ("train.py", _TRAIN)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def change(folder: Path, file: str, old: str, new: str) -> None:
    """Replaces a text in one of the files, which has to have it."""
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
