"""The converter's table, its count, its check on a picture, and one line for each mistake."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pretrained.fake import keras_arrays, random_variables, torchvision_arrays, write_keras_h5
from tl_jax import models, pretrained
from tl_jax.pretrained import convert_cli, network
from tl_jax.pretrained.catalog import CATALOG

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.fast


@pytest.fixture
def keras_file(tmp_path):
    variables = random_variables(network.variable_shapes(models.create("resnet50_tiny", 6)))
    write_keras_h5(tmp_path / "resnet.h5", variables)
    return tmp_path / "resnet.h5", variables


def run(*args):
    command = [sys.executable, "-m", "tl_jax.pretrained.convert_cli", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_it_lists_writes_and_checks(keras_file, tmp_path):
    file, variables = keras_file
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(tmp_path / "p.png")
    done = run("--model=resnet50_tiny", f"--input={file}", f"--output={tmp_path / 'o.safetensors'}",
               f"--check={tmp_path / 'p.png'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith("conv1_conv/kernel")]
    assert rows == [["conv1_conv/kernel", "params/stem/conv/kernel", "(7,", "7,", "3,", "8)", "keep"]]
    assert sum(line.count("params/") or line.count("batch_stats/") for line in lines) == len(keras_arrays(variables))
    assert "no count is published" in done.stdout and sum("%" in line for line in lines) == 5
    loaded = pretrained.load("resnet50_tiny", "tl_jax", tmp_path / "o.safetensors")
    assert loaded.spec.scaling == "caffe" and loaded.spec.source == "keras"
    kernel = loaded.variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["params"]["stem"]["conv"]["kernel"])


@pytest.mark.parametrize(
    "args,message",
    [
        (["--input=x.h5"], "--model is missing"),
        (["--model=resnet50"], "--input is missing"),
        (["--model=resnet5", "--input=x.h5"], "did you mean 'resnet50'"),
        (["--model=resnet50", "--source=kears", "--input=x.h5"], "did you mean 'keras'"),
        (["--model=resnet50", "--input=x.h5"], "no weights file at x.h5; check --input"),
        (["--model=resnet50", "--input=README.md"], ".md is not a weights format"),
        (["--model=resnet50", "--input=README.md", "--output=o.h5"], "must end in .safetensors"),
    ],
)
def test_mistakes_end_in_one_line(args, message):
    done = run(*args)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_counts_stand_beside_the_published_ones():
    model = models.create("mobilenet_v2", 1000)
    shapes = network.variable_shapes(model)
    assert "published: 3,538,984 (the same)" in convert_cli.format_counts(shapes, CATALOG["mobilenet_v2", "keras"])
    other = network.variable_shapes(models.create("mobilenet_v2", 10))
    spec = CATALOG["mobilenet_v2", "keras"]
    text = convert_cli.format_counts(other, dataclasses.replace(spec, num_classes=10))
    assert "(-1,268,190; this file has 10 classes)" in text


@pytest.mark.parametrize("key", [key for key, spec in CATALOG.items() if spec.parameters], ids="-".join)
def test_every_published_count_is_ours(key):
    """The shapes that a published file must have give the count that its publisher states."""
    spec = CATALOG[key]
    options = {**spec.options, "aux": True} if key == ("inception_v3", "torchvision") else spec.options
    shapes = network.variable_shapes(models.create(spec.model, spec.num_classes, **options))
    assert "(the same)" in convert_cli.format_counts(shapes, spec)


def test_what_was_left_out_is_said(tmp_path):
    from safetensors.numpy import save_file

    variables = random_variables(network.variable_shapes(models.create("resnet50_tiny", 6, layout="torchvision")))
    arrays = {k: np.ascontiguousarray(v) for k, v in torchvision_arrays(variables).items()}
    save_file(arrays, tmp_path / "m.safetensors")
    read, _, converted = pretrained.read_foreign("resnet50_tiny", "torchvision", tmp_path / "m.safetensors")
    text = convert_cli.format_conversion(read, converted)
    assert "dropped, not needed:" in text and "num_batches_tracked" in text and "oihw_to_hwio" in text
