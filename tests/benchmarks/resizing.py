"""What `--resize area` changes: frozen ImageNet features of photographs and of their thumbnails.

    python -m tests.benchmarks.resizing FOLDER/cub_fullres FOLDER/squeezenet1.1.params

A camera's photographs are some eight times as large as what a network sees. These are smaller, so
they are shrunk to fewer pixels first, which are then enlarged to the 256 that the network was
trained with: what counts is how many pixels become one.
"""

from __future__ import annotations

import argparse

import cv2
from PIL import Image

from embedding_learning import recall_at_k
from embedding_learning.config import RESIZES
from embedding_learning.data.datasets import load
from embedding_learning.data.preprocessing import read_full_image, resize_to_square
from embedding_learning.model.net import ImageNormalization

# isort: split
import mxnet as mx
import numpy as np
from mxnet.gluon.model_zoo import vision

SIZE, CROP = 256, 224


def features(net: vision.SqueezeNet, squares: list[np.ndarray]) -> np.ndarray:
    """Of unit length, (n, d)."""
    edge, normalize, rows = (SIZE - CROP) // 2, ImageNormalization(), []
    for start in range(0, len(squares), 64):
        large = [
            cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
            for square in squares[start : start + 64]
        ]
        pixels = np.stack(large)[:, edge : edge + CROP, edge : edge + CROP].transpose(0, 3, 1, 2)
        maps = net.features(normalize(mx.nd.array(pixels, dtype=np.uint8)))
        rows.append(maps.mean(axis=(2, 3)).asnumpy())
    found = np.concatenate(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_path")
    parser.add_argument("parameters")
    args = parser.parse_args()
    net = vision.squeezenet1_1()
    net.load_parameters(args.parameters)
    split = load(args.data_path, "", use_boxes=False)
    photographs = [
        cv2.cvtColor(read_full_image(path, False), cv2.COLOR_BGR2RGB)
        for part in split.parts
        for path in part.paths
    ]
    labels = np.concatenate([split.train.labels, split.test.labels + split.train.labels.max() + 1])
    print("pixels become one | --resize | distance to the thumbnail | Recall@1")
    for size in (256, 128, 64):
        side = (size, size)
        small = [Image.fromarray(photo).resize(side, Image.LANCZOS) for photo in photographs]
        thumbnails = features(net, [np.asarray(image) for image in small])
        shrinks = np.mean([max(photograph.shape) for photograph in photographs]) / size
        for how in RESIZES:
            found = features(net, [resize_to_square(photo, size, how) for photo in photographs])
            distance = np.linalg.norm(found - thumbnails, axis=1).mean()
            recall = recall_at_k(found, labels, ks=(1,))[1]
            print(f"{shrinks:.1f} a side | {how} | {distance:.3f} | {recall:.4f}")


if __name__ == "__main__":
    main()
