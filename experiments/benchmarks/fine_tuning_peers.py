"""One run of another library by its own defaults: accuracy, seconds and test examples as a line of JSON.

    python -m experiments.benchmarks.fine_tuning_peers --peer=fastai --folder=FOLDER --weights=FILE --seed=0

``raw`` and ``tfidf`` are logistic regressions of scikit-learn whose strength five folds choose. ``keras_guide`` is
Keras' guide to transfer learning: the head, then all of the network with its BatchNorms in inference mode, 10 epochs
each at 1e-3 and 1e-5, with its flips, rotations and dropout. ``fastai`` is ``vision_learner(...).fine_tune(10)`` with
``aug_transforms``, at the rates that are its defaults. ``trainer`` is transformers' ``Trainer`` with the values of its
own example of text classification: AdamW at 2e-5, three epochs, batches of 32.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

PEER = flags.DEFINE_enum("peer", None, ["raw", "tfidf", "keras_guide", "fastai", "trainer"], "Which.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Of examples, see targets.draw_examples.", required=True)
WEIGHTS = flags.DEFINE_string("weights", "", "File or folder that the network starts from.")
SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")
SIZE = flags.DEFINE_integer("size", 96, "Side of the network's input.")
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of each of the phases on images.")
Texts = tuple[list[str], np.ndarray]


def main(_: list[str]) -> None:
    """Train, test and print the line."""
    start = time.monotonic()
    accuracy, examples = PEERS[PEER.value](Path(FOLDER.value))
    print(json.dumps({"accuracy": accuracy, "examples": examples, "seconds": time.monotonic() - start}))


def read_images(folder: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 (N, side, side, 3) and labels (N,) of one part."""
    from PIL import Image

    files = sorted(folder.glob("*/*.png"))
    names = sorted({file.parent.name for file in files})
    images = [np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in files]
    return np.stack(images), np.array([names.index(file.parent.name) for file in files])


def read_texts(file: Path) -> Texts:
    """Return texts and labels (N,)."""
    rows = [line.rpartition("\t") for line in file.read_text().splitlines()[1:]]
    names = sorted({label for _, _, label in rows})
    return [text for text, _, _ in rows], np.array([names.index(label) for _, _, label in rows])


def fit_logistic(train: Any, labels: np.ndarray) -> Any:
    """Return a logistic regression whose strength folds have chosen."""
    from sklearn.linear_model import LogisticRegressionCV

    folds = min(5, np.bincount(labels).min())
    strengths: Any = np.logspace(-4, 2, 7)
    return LogisticRegressionCV(cv=folds, Cs=strengths, max_iter=1000).fit(train, labels)


def raw(folder: Path) -> tuple[float, int]:
    """Logistic regression on pixels, reduced to 32 a side."""
    (x, y), (x_test, y_test) = (read_images(folder / split, 32) for split in ("train", "test"))
    flat = [images.reshape(len(images), -1) / 255.0 for images in (x, x_test)]
    return float((fit_logistic(flat[0], y).predict(flat[1]) == y_test).mean()), len(y_test)


def tfidf(folder: Path) -> tuple[float, int]:
    """Logistic regression on weighted counts of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    (x, y), (x_test, y_test) = (read_texts(folder / f"{split}.tsv") for split in ("train", "test"))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = fit_logistic(words.fit_transform(x), y)
    return float((model.predict(words.transform(x_test)) == y_test).mean()), len(y_test)


def keras_guide(folder: Path) -> tuple[float, int]:
    """Keras' guide "Transfer learning & fine-tuning"."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    keras.utils.set_random_seed(SEED.value)
    applications: Any = keras.applications
    (x, y), (x_test, y_test) = (read_images(folder / split, SIZE.value) for split in ("train", "test"))
    shape = (SIZE.value, SIZE.value, 3)
    whole = applications.MobileNetV2(weights=None, input_shape=shape)
    whole.load_weights(WEIGHTS.value)
    base = keras.Model(whole.input, whole.get_layer("out_relu").output)
    base.trainable = False
    inputs = keras.Input(shape)
    images = keras.layers.RandomRotation(0.1)(keras.layers.RandomFlip("horizontal")(inputs))
    maps: Any = base(keras.layers.Rescaling(1 / 127.5, -1)(images), training=False)
    features = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(maps))
    model: Any = keras.Model(inputs, keras.layers.Dense(int(y.max()) + 1)(features))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for rate, is_trainable in ((1e-3, False), (1e-5, True)):
        base.trainable = is_trainable
        model.compile(optimizer=keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])
        model.fit(x.astype(np.float32), y, batch_size=32, epochs=EPOCHS.value, verbose=0)
    return float(model.evaluate(x_test.astype(np.float32), y_test, verbose=0)[1]), len(y_test)


def fastai(folder: Path) -> tuple[float, int]:
    """The fine_tune method of fastai's vision_learner, on the network and weights of ours."""
    register_missing_operators()
    from fastai.vision.all import (  # pyright: ignore[reportMissingImports]
        ImageDataLoaders,
        Resize,
        accuracy,
        aug_transforms,
        default_split,
        get_image_files,
        imagenet_stats,
        model_meta,
        set_seed,
        vision_learner,
    )
    from torchvision.models import mobilenet_v2  # pyright: ignore[reportMissingImports]

    set_seed(SEED.value, reproducible=True)
    weights = torchvision_weights(Path(WEIGHTS.value))

    def network(weights_name: Any = None, **_: Any) -> Any:
        net = mobilenet_v2()
        net.load_state_dict({**net.state_dict(), **weights}, strict=True)
        return net

    loaders = ImageDataLoaders.from_folder(
        folder, train="train", valid="test", item_tfms=Resize(SIZE.value), batch_tfms=aug_transforms(), bs=32,
        num_workers=0,
    )  # fmt: skip
    model_meta[network] = {"cut": -1, "split": default_split, "stats": imagenet_stats}  # as of its torchvision networks
    learner = vision_learner(loaders, network, pretrained=True, metrics=accuracy)
    tests = loaders.valid
    loaders.loaders[1] = loaders.test_dl(get_image_files(folder / "test")[:32], with_labels=True)  # for each epoch
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS.value)
        result = learner.validate(dl=tests)
    return float(result[1]), len(tests.dataset)


def register_missing_operators() -> None:
    """Name the operators of torchvision that a build for another kind of torch leaves out; nothing here calls them."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARIES.append(library)  # what it defines ends with it


LIBRARIES: list[Any] = []


def torchvision_weights(file: Path) -> dict[str, Any]:
    """Return the weights of a file as torchvision names them."""
    import torch

    from tl_jax import pretrained
    from tl_jax.export.frameworks import named_arrays
    from tl_jax.pretrained import catalog

    net = pretrained.load("mobilenet_v2", "torchvision", file, num_classes=0)
    table = catalog.conversion_table("mobilenet_v2", "torchvision")
    return {entry.name: torch.from_numpy(np.array(entry.array)) for entry in named_arrays(net.variables, table)}


def trainer(folder: Path) -> tuple[float, int]:
    """The Trainer of transformers on its own BERT."""
    import torch

    register_missing_operators()
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(SEED.value)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS.value)
    parts, y_test = [], np.zeros(0)
    for split in ("train", "test"):
        texts, labels = read_texts(folder / f"{split}.tsv")
        encoded = tokenizer(texts, truncation=True, max_length=128)
        parts.append([{**{k: v[i] for k, v in encoded.items()}, "labels": int(labels[i])} for i in range(len(texts))])
        y_test = labels
    model = AutoModelForSequenceClassification.from_pretrained(WEIGHTS.value, num_labels=int(y_test.max()) + 1)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), learning_rate=2e-5, num_train_epochs=3, per_device_train_batch_size=32,
        per_device_eval_batch_size=64, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=True, seed=SEED.value,
    )  # fmt: skip
    run = Trainer(model, arguments, train_dataset=parts[0], data_collator=DataCollatorWithPadding(tokenizer))
    run.train()
    with torch.inference_mode():
        logits = run.predict(parts[1]).predictions
    return float((np.asarray(logits).argmax(1) == y_test).mean()), len(y_test)


PEERS = {"raw": raw, "tfidf": tfidf, "keras_guide": keras_guide, "fastai": fastai, "trainer": trainer}

if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    app.run(main)
