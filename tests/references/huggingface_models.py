"""transformers' image networks filled by ``draw``, under published names, and their outputs in double precision."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.references.draw import draw

_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
_TINY = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
MODELS = {  # our name -> model, configuration and its arguments
    "vit_tiny16": ("ViTForImageClassification", "ViTConfig", {**_TINY, "num_labels": 1000}),
    "dinov2_small14_reg": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {**_SMALL, "image_size": 518, "patch_size": 14},
    ),
    "dinov3_small16": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_SMALL, "num_register_tokens": 4}),
    "convnext_tiny": ("ConvNextForImageClassification", "ConvNextConfig", {"num_labels": 1000}),
}  # fmt: skip
WITH_HEAD = ("vit_tiny16", "convnext_tiny")


def build(name: str, seed: int) -> tuple[Any, list[tuple[str, tuple[int, ...]]]]:
    """Return a model in double precision, and the (name, shape) of its variables in its file."""
    model_name, config_name, arguments = MODELS[name]
    cls, config = getattr(transformers, model_name), getattr(transformers, config_name)(**arguments)
    with tempfile.TemporaryDirectory() as folder:
        cls(config).save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        shapes = [(key, value.shape) for key, value in load_file(file).items()]
        save_file({key: draw(key, shape, seed) for key, shape in shapes}, file, {"format": "pt"})
        return cls.from_pretrained(folder).eval().double(), shapes


def outputs(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return our endpoints of images (N, H, W, 3)."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    takes_any_size = type(model).__name__ != "ViTForImageClassification"
    with torch.no_grad():
        arguments = {} if takes_any_size else {"interpolate_pos_encoding": True}
        found = model(pixels, output_hidden_states=True, **arguments)
        if type(model).__name__ == "ConvNextForImageClassification":
            maps = [value.permute(0, 2, 3, 1) for value in found.hidden_states]
            stem = model.convnext.embeddings(pixels).permute(0, 2, 3, 1)
            pooled = model.convnext(pixels).pooler_output
            ends = {"stem": stem, **{f"stage{i + 1}": value for i, value in enumerate(maps[-4:])}}
            ends |= {"norm": pooled, "features": pooled}
        else:
            names = ["embeddings", *(f"layer{i + 1}" for i in range(len(found.hidden_states) - 1))]
            ends = dict(zip(names, found.hidden_states, strict=True))
            trunk = model.vit(pixels, **arguments) if hasattr(model, "vit") else found
            ends |= {"norm": trunk.last_hidden_state, "features": trunk.last_hidden_state[:, 0]}
        ends |= {"logits": found.logits} if hasattr(found, "logits") else {}
    return {name: value.numpy() for name, value in ends.items()}
