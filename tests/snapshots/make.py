"""Make the run folders that later versions must read: ``python -m tests.snapshots.make`` writes VERSION.tar.xz here.

One run and one export a task, of the smallest networks, on inputs that are written beside them; ``expected.json`` is
what that version says of each.
"""

import contextlib
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs import cartpole_ppo, detection_voc, digits_resnet, faces_verification, masked_words, ner_bert, sst2_bert
from tests.text import write_vocabulary
from tl_jax import __version__, training
from tl_jax.config import recipe as recipe_module
from tl_jax.export.bundle import export
from tl_jax.learner import Learner

SPARE = ("tensorboard", "report.html", "export/model.stablehlo", "export/delta.safetensors", "freeze.json")
COMMON = (
    ("arms", ()),
    ("seeds", ()),
    ("epochs", 1.0),
    ("min_checkpoint_interval", 0.0),
    ("optim.name", "sgd"),
    ("optim.lr", 0.01),
)
TINY = (("model.name", "vgg16_bn_tiny"), ("init.source", "random"), ("init.layout", "torchvision"), ("input.size", 32))
BERT = (
    ("init.source", "random"), ("init.path", "inputs/bert"), ("input.max_length", 16), ("batch_size", 4),
    ("eval_batch_size", 4), ("data.dir", "inputs"),
)  # fmt: skip
INPUTS = {
    "image": ["inputs/images/test/a/0.png"],
    "detection": ["inputs/images/test/a/0.png"],
    "faces": ["inputs/images/test"],
    "text": ["a good film", "bad acting"],
    "tokens": ["the film bad"],
}


def main(archive: Path) -> None:
    """Make all of them, with relative paths, and pack them."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make()
        with tarfile.open(archive, "w:xz") as packed:
            for path in sorted(Path().iterdir()):
                packed.add(path, filter=_anonymous)


def make() -> None:
    """Make all of them in the working directory."""
    write_inputs(Path("inputs"))
    expected = {}
    for name, config in configs().items():
        shutil.rmtree(name, ignore_errors=True)
        training.train(config, name)
        export(config, name)
        expected[name] = said(config, name)
        for path in (Path(name) / spare for spare in (*SPARE, "predictions", "predictions.json", "explanations")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    Path("expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def configs() -> dict[str, Any]:
    """Return the configuration of each task."""
    folder = ("data.name", "folder"), ("data.dir", "inputs/images"), ("batch_size", 4), ("eval_batch_size", 4)
    texts = {"text": sst2_bert, "tokens": ner_bert, "masked": masked_words}
    sources = {"text": "csv", "tokens": "conll", "masked": "lines"}
    made = {
        "image": recipe_module.override(digits_resnet.get_config(), (*COMMON, *TINY, *folder, ("augment.crop_pad", 0))),
        "detection": recipe_module.override(
            detection_voc.get_config("smoke"), (*COMMON, *TINY, ("detect.width", 8), ("data.train_examples", 16))
        ),
        "faces": recipe_module.override(
            faces_verification.get_config("smoke"), (*COMMON, *TINY, ("faces.embedding", 8))
        ),
        "policy": recipe_module.override(cartpole_ppo.get_config("smoke"), (("save_every", 1.0),)),
    }
    for task, recipe in texts.items():
        data = ("data.name", sources[task]), ("data.dir", f"inputs/{task}")
        made[task] = recipe_module.override(recipe.get_config(), (*COMMON, *BERT, *data))
    return made


def said(config: Any, run: str) -> dict[str, Any]:
    """Return what eval and predict say of a run."""
    found: dict[str, Any] = {"metrics": dict(training.test(config, run)["metrics"])}
    if config.task in INPUTS:
        found["predictions"] = Learner(config, run).show_predictions(INPUTS[config.task])
    return found


def write_inputs(folder: Path) -> None:
    """Write images of two classes, texts, sentences, lines, and a text network to start from."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("validation", 3), ("test", 3)):
        for number, name in enumerate("ab"):
            for i in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3)) + 100 * number
                path = folder / "images" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).resize((8, 8)).resize((32, 32), Image.Resampling.NEAREST).save(
                    path
                )
    good, bad = ("a good film", "the plot is good", "so good"), ("bad acting", "a bad film", "the plot is bad")
    for part in ("train", "validation", "test"):
        rows = [f"{text},{label}" for texts, label in ((good, "pos"), (bad, "neg")) for text in texts]
        _write(folder / "text" / f"{part}.csv", "\n".join(["text,label", *rows]))
        words = [f"{word} {'B-X' if word == 'film' else 'O'}" for word in "a good film \n the film is bad".split(" ")]
        _write(folder / "tokens" / f"{part}.txt", "\n".join("" if word.startswith("\n") else word for word in words))
        _write(folder / "masked" / f"{part}.txt", "\n".join((*good, *bad)))
    write_vocabulary(folder / "bert")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vocabulary = len((folder / "bert" / "vocab.txt").read_text().splitlines())
    config = {"model_type": "bert", "vocab_size": vocabulary, "max_position_embeddings": 40, **sizes}
    (folder / "bert" / "config.json").write_text(json.dumps(config))


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


if __name__ == "__main__":
    main(Path(__file__).parent / f"{__version__}.tar.xz")
