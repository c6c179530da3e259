"""What does `--resize area` change in the features of large images?

    python -m tests.benchmarks.resizing FOLDER/cub_fullres FOLDER/squeezenet1.1.params

The images of a camera have eight times as many pixels a side as a network sees. These images are
smaller. So they are shrunk to fewer pixels, and then enlarged to the 256 that the network was
trained with: only the number of pixels that become one matters. The network is SqueezeNet 1.1 with
ImageNet weights. Prints how far its features of an image are from those of a thumbnail that Pillow
made, and the Recall@1 of the features.
"""

from __future__ import annotations

import argparse

import cv2
from PIL import Image

from embedding_learning import recall_at_k
from embedding_learning.config import RESIZES
from embedding_learning.data.datasets import load_dataset
from embedding_learning.data.preprocessing import read_full_image, resize_to_square
from embedding_learning.model.net import ImageNormalization

# isort: split
import mxnet as mx
import numpy as np
from mxnet.gluon.model_zoo import vision

SIZE, CROP = 256, 224


def features(net: vision.SqueezeNet, squares: list[np.ndarray]) -> np.ndarray:
    """Returns features of unit length (n, d) of square RGB images."""
    edge, normalize, batches = (SIZE - CROP) // 2, ImageNormalization(), []
    for start in range(0, len(squares), 64):
        large = [
            cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
            for square in squares[start : start + 64]
        ]
        pixels = np.stack(large)[:, edge : edge + CROP, edge : edge + CROP].transpose(0, 3, 1, 2)
        maps = net.features(normalize(mx.nd.array(pixels, dtype=np.uint8)))
        batches.append(maps.mean(axis=(2, 3)).asnumpy())
    rows = np.concatenate(batches)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_path", help="images in the layout of CUB-200-2011")
    parser.add_argument("parameters", help="ImageNet weights of Gluon's SqueezeNet 1.1")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every Nth image")
    args = parser.parse_args()
    net = vision.squeezenet1_1()
    net.load_parameters(args.parameters)
    split = load_dataset(args.data_path, "", use_boxes=False)
    paths = [path for part in split.parts for path in part.paths][:: args.every]
    images = [cv2.cvtColor(read_full_image(path, False), cv2.COLOR_BGR2RGB) for path in paths]
    labels = np.concatenate([split.train.labels, split.test.labels + split.train.labels.max() + 1])
    labels = labels[:: args.every]
    print("pixels of a side that become one | --resize | distance to the thumbnail | Recall@1")
    for size in (256, 128, 64):
        side = (size, size)
        small = [Image.fromarray(image).resize(side, Image.LANCZOS) for image in images]
        thumbnails = features(net, [np.asarray(image) for image in small])
        factor = np.mean([max(image.shape) for image in images]) / size
        for resize in RESIZES:
            rows = features(net, [resize_to_square(image, size, resize) for image in images])
            distance = np.linalg.norm(rows - thumbnails, axis=1).mean()
            recall = recall_at_k(rows, labels, ks=(1,))[1]
            print(f"{factor:.1f} | {resize} | {distance:.3f} | {recall:.4f}")


if __name__ == "__main__":
    main()
