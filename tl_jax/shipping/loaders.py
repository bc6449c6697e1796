"""The code by which others load a bundle, as its card shows it; tests run it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_HEADS = {"text": "SequenceClassification", "tokens": "TokenClassification", "masked": "MaskedLM"}

NAMES = """
import json
from pathlib import Path
classes = json.loads(Path("bundle.json").read_text())["classes"]  # names of the outputs, in their order"""


class Loader(NamedTuple):
    """Code, to be run in the bundle's folder, and what must be said of it."""

    code: str
    words: str = ""


def jax_alone(file: str, io: Mapping[str, Any]) -> dict[str, Loader]:
    """Return what runs the program; ``io`` is its entry in ``bundle.json``."""
    output, call = io["output"], ", ".join(io["inputs"])
    needs = "; ".join(f"`{name}`: {each['dtype']} {_shape(each)}" for name, each in io["inputs"].items())
    code = f"""from pathlib import Path
from jax import export
program = export.deserialize(bytearray(Path("{file}").read_bytes()))
{output["name"]} = program.call({call})"""
    words = f"Needs `pip install jax flatbuffers` alone. {needs} -> `{output['name']}`: float32 {_shape(output)}"
    words += f"; {', '.join(io['limits'])}. " if io["limits"] else ". "
    words += "It runs on CPU, CUDA and TPU, with a jaxlib up to six months newer, or three weeks older, than the one "
    words += "that wrote it; for longer keep the weights."
    return {"With JAX alone": Loader(code, words)}


def _shape(entry: Mapping[str, Any]) -> str:
    return "(" + ", ".join(map(str, entry["shape"])) + ")"


def pictures(model: str, size: int) -> dict[str, Loader]:
    """Return what loads a network of pictures with tl_jax."""
    code = """from tl_jax import pretrained
net = pretrained.load(source="tl_jax", path=".")
logits, endpoints = net.model.apply(net.variables, net.preprocess(images), train=False)"""
    words = f"`images`: uint8 (n, H, W, C) of any size, resized to {size} pixels. " + _start(
        "--config.model.name=MODEL "
    )
    return {"With tl_jax": Loader(code, words)}


def texts(output: str, pooling: str, length: int) -> dict[str, Loader]:
    """Return what loads a text network, with tl_jax and with transformers; ``output``, ``pooling`` as of ``Bert``."""
    ours = f"""from tl_jax import pretrained
net = pretrained.load(source="tl_jax", path=".")
tokens = net.tokenize(texts, max_length={length})
logits, endpoints = net.model.apply(net.variables, **tokens, train=False)"""
    if (output, pooling) == ("text", "mean"):
        theirs = f"""from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModel.from_pretrained(".")
weights = load_file("model.safetensors")
tokens = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
seen = tokens["attention_mask"][..., None]
mean = (model(**tokens).last_hidden_state * seen).sum(1) / seen.sum(1)
logits = mean @ weights["classifier.weight"].T + weights["classifier.bias"]"""
        words = "The head reads the mean of tokens, for which transformers has no class; its warning of a new pooler "
        words += "does not matter, since that is not used."
        return {"With tl_jax": Loader(ours, _start()), "With transformers": Loader(theirs, words)}
    head = _HEADS[output]
    theirs = f"""from transformers import AutoModelFor{head}, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelFor{head}.from_pretrained(".")
tokens = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
logits = model(**tokens).logits"""
    return {"With tl_jax": Loader(ours, _start()), "With transformers": Loader(theirs)}


def policies() -> dict[str, Loader]:
    """Return what loads a policy with tl_jax."""
    code = """from tl_jax.rl import source
policy = source.load(".")  # policy.leaves, policy.options, policy.world"""
    return {"With tl_jax": Loader(code, _start())}


def _start(more: str = "") -> str:
    return f"The next transfer starts from it with `{more}--config.init.source=tl_jax --config.init.path=THIS_FOLDER`."
