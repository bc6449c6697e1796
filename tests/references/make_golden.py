"""Write ``golden.json.xz``: ``python -m tests.references.make_golden``, with keras, torch and transformers.

``python -m tests.references.make_golden huggingface`` makes the cases of one source again, and leaves the others.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tests.references import compare, golden, huggingface_models, keras_models, torch_models

# Odd sides, where paddings differ; for the rest as small as the networks take.
SIZE, INCEPTION = (33, 47), (75, 91)
# VGG's hidden layers hold 124 M values, so one depth stands for all; PyTorch averages 2x3 maps to their 7x7.
HEADS = {("keras", "vgg16"): (224, 224), ("torchvision", "vgg16"): (64, 97)}


def plan() -> Iterator[tuple[str, str, bool, tuple[int, int]]]:
    """Yield (source, name, top, size) of every case."""
    for source, names in (("keras", keras_models.MODELS), ("torchvision", torch_models.MODELS)):
        for name in sorted(set(names) - {"resnet101", "mobilenet_v2_140"}):  # more of the same
            yield source, name, not name.startswith("vgg"), INCEPTION if name == "inception_v3" else SIZE
    for (source, name), size in HEADS.items():
        yield source, name, True, size
    for name in huggingface_models.MODELS:
        yield "huggingface", name, name in huggingface_models.WITH_HEAD, SIZE


def keras_case(name: str, top: bool, size: tuple[int, int]) -> tuple[list[Any], Mapping[str, np.ndarray]]:
    """Return the variables (name, shape) in the order of files, and the reference."""
    model = keras_models.build(name, top, size, golden.SEED)
    found = [v for layer in model.layers for v in layer.trainable_variables + layer.non_trainable_variables]
    return [(v.path, v.shape) for v in found], keras_models.outputs(model, compare.images(size))


def torch_case(name: str, top: bool, size: tuple[int, int]) -> tuple[list[Any], Mapping[str, np.ndarray]]:
    """Return the variables (name, shape) in the order of files, and the reference."""
    model = torch_models.build(name, golden.SEED)
    expected = torch_models.outputs(model, compare.images(size))
    state = model.state_dict()
    if not top:
        state, expected = torch_models.headless(state), torch_models.without_head(expected)
    return [(key, tensor.shape) for key, tensor in state.items()], expected


def huggingface_case(name: str, _: bool, size: tuple[int, int]) -> tuple[list[Any], Mapping[str, np.ndarray]]:
    """Return the variables (name, shape) as they are published, and the reference."""
    model, shapes = huggingface_models.build(name, golden.SEED)
    return shapes, huggingface_models.outputs(model, compare.images(size))


CASES = {"keras": keras_case, "torchvision": torch_case, "huggingface": huggingface_case}


def main() -> None:
    """Compute and store every case, or those of one source."""
    wanted = sys.argv[1:] or list(CASES)
    cases = [case for case in golden.read() if case["source"] not in wanted]
    for source, name, top, size in (case for case in plan() if case[0] in wanted):
        variables, expected = CASES[source](name, top, size)
        values = {end: [float(f"{v:.8g}") for v in golden.entries(value)] for end, value in expected.items()}
        variables = [(key, list(shape)) for key, shape in variables]
        cases.append(dict(source=source, name=name, top=top, size=size, variables=variables, values=values))
        print(source, name, len(variables), "variables")
    golden.write(cases)
    print(golden.PATH, golden.PATH.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
