"""Convert a weights file of another library to safetensors in our format, and print how each array was mapped.

    python -m tl_jax.pretrained.convert_cli --model=resnet50 --source=keras --input=FILE --output=FILE
    python -m tl_jax.pretrained.convert_cli --model=mobilenet_v2 --source=keras --input=FILE --check=IMAGE

Load the result by ``pretrained.load(MODEL, source="tl_jax", path=FILE)`` or ``--config.init.source=tl_jax``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pooch
from absl import flags, logging
from PIL import Image, ImageOps, UnidentifiedImageError

from tl_jax import models, pretrained
from tl_jax.models.registry import MODELS, PretrainedSpec
from tl_jax.pretrained import catalog, formats
from tl_jax.pretrained.catalog import CATALOG
from tl_jax.pretrained.convert import Converted
from tl_jax.pretrained.network import Pretrained
from tl_jax.utils import command, tree
from tl_jax.utils.errors import UserError

MODEL = flags.DEFINE_string("model", None, "Model name, such as resnet50.")
SOURCE = flags.DEFINE_string("source", "keras", "Library of the weights file: keras, torchvision or timm.")
INPUT = flags.DEFINE_string("input", None, "Weights file: .h5, .keras, .pth, .safetensors or .npz.")
OUTPUT = flags.DEFINE_string("output", None, "Output file, ending in .safetensors; without it nothing is written.")
CHECK = flags.DEFINE_string("check", None, "Image to classify; prints the five most likely classes.")

CLASSES = Path(__file__).with_name("imagenet_classes.txt")


def main(_: list[str]) -> None:
    """Convert the file, print the mapping, and write the output."""
    logging.set_verbosity(logging.WARNING)
    if not MODEL.value:
        raise UserError(
            f"--model is missing; choose one of {', '.join(name for name, entry in MODELS.items() if entry.tables)}"
        )
    if not INPUT.value:
        raise UserError("--input is missing; pass the weights file")
    name, source, file = MODEL.value, SOURCE.value, Path(INPUT.value).expanduser()
    models.create(name, 0)
    if source == "tl_jax":
        raise UserError(
            "--source=tl_jax: needs no conversion; load the file with pretrained.load(..., source='tl_jax')"
        )
    catalog.conversion_table(name, source)
    if not file.is_file():
        raise UserError(f"no weights file at {file}; check --input")
    output = Path(OUTPUT.value).expanduser() if OUTPUT.value else None
    if output and output.suffix != ".safetensors":
        raise UserError(f"--output={output}: wrong suffix; it must end in .safetensors")
    variables, spec, converted = pretrained.read_foreign(name, source, file)
    print("\n".join([format_conversion(variables, converted), *converted.notes]))
    print(format_counts(variables, spec))
    if CHECK.value:
        model = models.create(name, spec.num_classes, **spec.options)
        net = Pretrained(model, jax.device_put(variables), spec, new_head=False, path=file)
        print("\n".join(classify_image(net, Path(CHECK.value).expanduser())))
    if output:
        spec = pretrained.own_facts(spec, file)
        formats.save_native(output, variables, spec, {"origin": file.name, "sha256": pooch.file_hash(str(file))})
        print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


def format_conversion(variables: Mapping[str, Any], converted: Converted) -> str:
    """Return a table of source name, our path, shape and transform, and the dropped names."""
    rows = [("in the file", "here", "shape", "transform")]
    shapes = {path: leaf.shape for path, leaf in tree.flatten(variables).items()}
    rows += [(name, path, str(shapes[path]), converted.transforms[path]) for path, name in converted.origin.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    if converted.ignored:
        lines.append(f"dropped, not needed: {', '.join(converted.ignored[:3])} ({len(converted.ignored)} in all)")
    return "\n".join(lines)


def format_counts(variables: Mapping[str, Any], spec: PretrainedSpec) -> str:
    """Return the parameter count and the published count, counted as by the publisher."""
    params, all_values = tree.count(variables["params"]), tree.count(variables)
    text = f"{params:,} parameters, {all_values:,} values with BatchNorm statistics"
    file = CATALOG[spec.model, spec.source]
    if not (published := file.parameters):
        return f"{text}; no count is published"
    count = all_values if spec.source == "keras" else params
    classes = f"; this file has {spec.num_classes} classes" if spec.num_classes != file.num_classes else ""
    match = "the same" if count == published else f"{count - published:+,}"
    return f"{text}; published: {published:,} ({match}{classes})"


def classify_image(net: Pretrained, image_path: Path) -> list[str]:
    """Return the five most likely classes of an image with their probabilities."""
    if not net.spec.num_classes:
        raise UserError(f"--check: {net.path} has no head to classify with; omit --check")
    try:
        with Image.open(image_path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError) as e:
        raise UserError(f"--check={image_path}: cannot be read as an image ({e}); pass another") from None
    logits, _ = jax.jit(net.model.apply)(net.variables, net.preprocess(pixels[None]))
    probabilities = np.asarray(jax.nn.softmax(logits[0].astype(np.float32)))
    names = CLASSES.read_text().splitlines() if net.spec.num_classes == 1000 else []
    best = np.argsort(-probabilities, kind="stable")[:5]
    return [f"{probabilities[i]:7.2%}  {i:4d}  {names[i] if names else ''}".rstrip() for i in best]


if __name__ == "__main__":
    command.run(main)
