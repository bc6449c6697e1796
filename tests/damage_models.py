"""Read damaged models of several files in a process of its own: ``python -m tests.damage_models READER FIRST COUNT``.

A model is a folder: of Hugging Face, a bundle, our own weights, or that of a run. Each seed from FIRST on damages one
of its files. Its number is printed before the model is read, so that a process that died, hung or took too much memory
has named the culprit. What is neither a value nor a ``UserError`` of one line ends the process, and so does a file that
is opened outside the folder.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from tests import text
from tests.data.damage import KINDS, Reader, attempt, number, outside, photo, retype, watching, word
from tests.pretrained.damage import guard, limit, peak
from tests.tasks import small
from tl_jax import pretrained, restore, training
from tl_jax.config import stored
from tl_jax.data import tokenize
from tl_jax.learner import Learner
from tl_jax.pretrained import delta, formats, huggingface
from tl_jax.rl import policy_transfer as policies
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.transfer.adapters import AdapterConfig
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import CHECKSUM_KEY

TOUCHED = 1 << 30  # bytes beyond what the imports need
SECONDS = 20  # of CPU time that one file may take: what has other sizes is compiled anew
NAME = "vgg16_tiny"
WEIGHTS, CONFIG, TOKENS = "model.safetensors", "config.json", "tokenizer.json"
INPUT = "input.png"
SENTENCES = ["a film whose plot is as good as its acting .", "x", "", "你好 [MASK] don't"]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


# ---- damage


def edit_header(content: bytes, rng: random.Random) -> bytes:
    """Damage the header of a safetensors file, or the JSON within its metadata, as JSON; its length is right again."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        about = header.get("__metadata__", {})
    except (ValueError, AttributeError):
        return retype(content, rng)
    kind = rng.choice((retype, retype, retype, number, word))
    if about and rng.random() < 0.7:
        key = rng.choice(list(about))
        about[key] = kind(about[key].encode(), rng).decode("utf-8", "replace")
        new = json.dumps(header).encode()
    else:
        new = kind(content[8 : 8 + size], rng)
    return len(new).to_bytes(8, "little") + new + content[8 + size :]


def damage(file: str, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return the kinds of damage, and what they made of the content of a file."""
    kinds = rng.sample(KINDS, rng.choice((1, 1, 1, 2)))
    if file.endswith(".safetensors") and rng.random() < 0.7:
        kinds = [edit_header]
    elif file.endswith(".json") and rng.random() < 0.6:
        kinds = [retype] * rng.choice((1, 1, 1, 2))
    for kind in kinds:
        content = kind(content, rng) if content else content
    return ", ".join(kind.__name__ for kind in kinds), content


def seal(folder: Path) -> None:
    """Write the right hashes into ``bundle.json``, and take its own out, so that what is damaged is looked at."""
    path = folder / formats.BUNDLE_FILE
    try:
        content = json.loads(path.read_bytes())
        content.pop(CHECKSUM_KEY, None)
        for name, entry in content["files"].items():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                return  # which the reader must see for itself
            entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        path.write_text(json.dumps(content))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return


def unseal(folder: Path) -> None:
    """Take the hashes of JSON files out of them, as somebody does who edits one: else only the hash is looked at."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.pop(CHECKSUM_KEY, None):
            path.write_text(json.dumps(content))


# ---- models


def make_bert(folder: Path) -> None:
    sizes = {"width": 8, "depth": 1, "heads": 2, "hidden": 8, "positions": 40}
    huggingface.save(folder, text.network(folder, classes=3, **sizes))
    (folder / "vocab.txt").unlink()


def make_shards(folder: Path) -> None:
    make_bert(folder)
    arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    names = list(arrays)
    for shard, some in zip(SHARDS, (names[::2], names[1::2]), strict=True):
        safetensors.numpy.save_file({name: arrays[name] for name in some}, folder / shard)
    index = {name: SHARDS[i % 2] for i, name in enumerate(names)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index, "metadata": {"total_size": 1}}))
    for name in (WEIGHTS, TOKENS):
        (folder / name).unlink()
    text.write_vocabulary(folder)


def make_text_bundle(folder: Path) -> None:
    make_bert(folder)
    files = dict.fromkeys(huggingface.SAVED_FILES, "a file")
    formats.write_bundle_json(
        folder, {"model": "bert", "task": "text", "classes": ["a", "b", "c"], "weights": {}}, files
    )


def make_own(folder: Path) -> None:
    net = pretrained.random(NAME, 3)
    formats.save_native(folder / WEIGHTS, net.variables, net.spec, {"classes": ["a", "b", "c"], "notes": ["one"]})


def make_bundle(folder: Path) -> None:
    make_own(folder)
    about = {"model": NAME, "task": "image", "classes": ["a", "b", "c"], "weights": {"licence": "MIT"}}
    formats.write_bundle_json(folder, about, {WEIGHTS: "weights"})


def make_delta(folder: Path) -> None:
    make_own(folder)
    net = pretrained.load(NAME, "tl_jax", folder / WEIGHTS)
    leaves = tree.flatten(net.variables)
    kernel = next(path for path, leaf in leaves.items() if leaf.ndim == 4)
    rows, columns = int(np.prod(leaves[kernel].shape[:3])), leaves[kernel].shape[3]
    stem = kernel.removesuffix("kernel")
    changed = {path: leaf for path, leaf in leaves.items() if "/head/" in path}
    changed |= {f"{stem}lora_a": np.ones((rows, 2), np.float32), f"{stem}lora_b": np.ones((2, columns), np.float32)}
    spec = dataclasses.replace(net.spec, source="tl_jax")
    base = {"source": "tl_jax", "sha256": net.sha256}
    delta.save_delta(folder / "delta.safetensors", changed, spec, AdapterConfig("lora", 2), base, {"classes": ["a"]})


def make_policy(folder: Path) -> None:
    params = {
        "layer1": {"actor": {"kernel": np.ones((4, 8), np.float32)}},
        "head": {"log_std": np.zeros(1, np.float32)},
    }
    stats = {"observations": {"mean": np.zeros(4, np.float32)}}
    about = {"world": "cartpole", "spaces": {"observation": [4], "actions": 2}}
    policies.save(folder / WEIGHTS, {"params": params, "batch_stats": stats}, {"widths": [8, 8]}, about)


def make_run(folder: Path) -> None:
    training.train(small.config(("epochs", 1.0), ("data.per_class", 2)), folder)
    photo(folder / INPUT)


# ---- readers


def read_bert(folder: Path) -> Any:
    net = huggingface.load("bert", folder)
    look(net.tokenize(SENTENCES), net.model.vocabulary, net.model.types)
    assert all(isinstance(name, str) for name in net.classes)


def look(made: Mapping[str, np.ndarray], vocabulary: int, types: int) -> None:
    """Raise unless the ids of tokens are rows of the embeddings."""
    assert made["input_ids"].min() >= 0 and made["input_ids"].max() < vocabulary, made["input_ids"]
    assert made["token_type_ids"].min() >= 0 and made["token_type_ids"].max() < max(types, 2), made["token_type_ids"]


def read_random(folder: Path) -> Any:
    huggingface.stage_names("bert", "random", str(folder))
    huggingface.random("bert", folder, 2)


def read_tokens(folder: Path) -> Any:
    tokenize.encode_texts(tokenize.read_tokenizer(folder), SENTENCES, 20)


def read_own(folder: Path) -> Any:
    net = pretrained.load(NAME, "tl_jax", folder / WEIGHTS, num_classes=3)
    formats.class_names(folder / WEIGHTS)
    assert jax.tree.all(jax.tree.map(lambda leaf: np.isfinite(leaf).all(), dict(net.variables)))


def read_bundle(folder: Path) -> Any:
    seal(folder)
    return pretrained.load(source="tl_jax", path=folder)


def read_text_bundle(folder: Path) -> Any:
    seal(folder)
    return pretrained.load(source="tl_jax", path=folder)


def read_delta(folder: Path) -> Any:
    return pretrained.load(NAME, "tl_jax", folder / WEIGHTS, delta=folder / "delta.safetensors")


def read_policy(folder: Path) -> Any:
    return policies.load(folder / WEIGHTS)


def read_run(folder: Path) -> Any:
    config = stored.get_config(str(folder))
    return Learner(config, folder).show_predictions([str(folder / INPUT)])


def read_unsealed(folder: Path) -> Any:
    """Read the checkpoint of a run of which nothing says how it was written."""
    (folder / "checkpoints.json").unlink(missing_ok=True)
    task, template = network_of(folder)
    checkpoints = Checkpoints(folder / "checkpoints", task, cleanup=False)
    try:
        step = checkpoints.latest()
        if step is None:
            raise UserError("no checkpoint")
        restored = checkpoints.restore(step, template, opt_state=False, for_eval=True)
    finally:
        checkpoints.close()  # its threads would add up
    restore.check_finite(restored, folder)
    return restored


@functools.cache
def network_of(folder: Path) -> Any:
    """Return the task of a run, and its state before training; made once, of the run as it was written."""
    config = stored.get_config(str(folder))
    task, state, _ = restore.restore(config, folder)
    return task, state


def read_report(folder: Path) -> Any:
    from tl_jax.config import recipe
    from tl_jax.learner import Learner

    return Learner(recipe.get_config(), folder).report()


TOKENIZER = (TOKENS, TOKENS, "tokenizer_config.json")
READERS: Mapping[str, Reader] = {
    "bert": Reader(make_bert, (CONFIG, CONFIG, CONFIG, WEIGHTS, *TOKENIZER), read_bert),
    "random": Reader(make_bert, (CONFIG, TOKENS), read_random),
    "shards": Reader(
        make_shards, (f"{WEIGHTS}.index.json",) * 3 + (*SHARDS, "vocab.txt", "tokenizer_config.json"), read_bert
    ),
    "tokenizer": Reader(make_bert, TOKENIZER, read_tokens),
    "vocabulary": Reader(make_shards, ("vocab.txt", "vocab.txt", "tokenizer_config.json"), read_tokens),
    "text_bundle": Reader(make_text_bundle, (formats.BUNDLE_FILE, CONFIG, WEIGHTS), read_text_bundle),
    "own": Reader(make_own, (WEIGHTS,), read_own),
    "bundle": Reader(make_bundle, (formats.BUNDLE_FILE, WEIGHTS), read_bundle),
    "delta": Reader(make_delta, ("delta.safetensors",), read_delta),
    "policy": Reader(make_policy, (WEIGHTS,), read_policy),
    "run": Reader(make_run, (CONFIG, "facts.json", "summary.json", "checkpoints.json", "checkpoints/*"), read_run),
    "checkpoints": Reader(make_run, ("checkpoints/*",), read_unsealed),
    "report": Reader(make_run, (CONFIG, "facts.json", "summary.json", "network.json", "metrics.jsonl"), read_report),
}


def damaged(reader: Reader, folder: Path, whole: Mapping[str, bytes], name: str, seed: int) -> str:
    """Damage a file of the folder as a seed says, and return in words what was done."""
    rng = random.Random(f"{name} {seed}")
    pattern = rng.choice(reader.files)
    file = rng.choice([file for file, content in whole.items() if content and fnmatch.fnmatch(file, pattern)])
    kind, content = damage(file, whole[file], rng)
    (folder / file).write_bytes(content)
    return f"{file}: {kind}"


def mend(folder: Path, whole: Mapping[str, bytes]) -> None:
    """Bring the files of a folder back to what they were."""
    for file, content in whole.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def main(name: str, first: int, count: int) -> None:
    reader, cache = READERS[name], Path(tempfile.mkdtemp(prefix="tl_jax_fuzz_"))
    os.environ["TL_JAX_CACHE"] = str(cache)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        reader.make(folder)
        unseal(folder)
        whole = {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }
        assert attempt(reader, folder), "the undamaged model is refused"
        for pattern in dict.fromkeys(reader.files):  # so that all is imported
            file = next(file for file, content in whole.items() if content and fnmatch.fnmatch(file, pattern))
            (folder / file).write_bytes(whole[file][: len(whole[file]) // 2])
            attempt(reader, folder)
            mend(folder, whole)
        guard()
        outside(folder, cache)
        done, used, slowest = 0, peak(), (0.0, 0)
        for seed in range(first, first + count):
            limit(SECONDS)
            what = damaged(reader, folder, whole, name, seed)
            print(f"{name}: seed {seed}, {what}; {done} read before", flush=True)
            begin = time.process_time()
            done += attempt(reader, folder)
            slowest = max(slowest, (time.process_time() - begin, seed))
            mend(folder, whole)
            if peak() - used > TOUCHED:
                raise AssertionError(f"{peak() - used} bytes")
        watching.clear()
        print(f"{name}: slowest is seed {slowest[1]} with {slowest[0]:.1f} s", flush=True)
        print(f"{name}: {count} files, {done} read, {count - done} refused", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
