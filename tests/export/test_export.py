"""What ``--mode=export`` ships: a program that JAX runs alone, facts with hashes, a card, a source of the next run."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export

from tests.tasks import small
from tl_jax import pretrained, restore, training
from tl_jax.config import recipe, stored
from tl_jax.export import model_card, stablehlo
from tl_jax.export.bundle import export, write_run_files
from tl_jax.tasks import image_network
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import read_json

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one epoch and its export."""
    folder = tmp_path_factory.mktemp("run")
    config = small.config(("epochs", 1.0), ("data.per_class", 2))
    training.train(config, folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert export(config, folder) == folder / "export" / "model.safetensors"
    (folder / "said").write_text(said.getvalue())
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A bundle to be damaged."""
    return shutil.copytree(run / "export", tmp_path / "bundle")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def code(folder, heading):
    """Return the code that the card shows under a heading."""
    found = re.search(rf"### {heading}\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def probabilities(net, pictures):
    logits, _ = jax.jit(net.model.apply)(net.variables, net.preprocess(pictures))
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.slow
def test_jax_alone_runs_the_program_as_the_card_says(run, pictures, tmp_path):
    folder = run / "export"
    np.save(tmp_path / "images.npy", pictures)
    script = "import sys\nsys.modules['tl_jax'] = sys.modules['flax'] = None\nimport numpy as np\n"
    script += f"images = np.load({str(tmp_path / 'images.npy')!r})\n{code(folder, 'With JAX alone')}"
    script += f"np.save({str(tmp_path / 'out.npy')!r}, probabilities)\n"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    expected = probabilities(pretrained.load("resnet8", "tl_jax", folder / "model.safetensors"), pictures)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    assert expected.std() > 1e-3


def test_the_program_is_for_every_platform_and_number_of_pictures(run, pictures):
    made = jax_export.deserialize(bytearray((run / "export" / "model.stablehlo").read_bytes()))
    assert made.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(made.call(pictures[:1]), made.call(pictures)[:1], atol=1e-6)
    with pytest.raises(Exception, match="Dtype mismatch"):
        made.call(pictures.astype(np.float32))


def test_a_program_divides_by_the_temperature_or_gives_features(run, pictures):
    net = pretrained.load(source="tl_jax", path=run / "export")
    plain = probabilities(net, pictures)
    softer = jax.jit(stablehlo.image_program(net, temperature=2.0).call)(pictures)
    roots = np.sqrt(plain)
    np.testing.assert_allclose(softer, roots / roots.sum(1, keepdims=True), rtol=1e-4)
    features = jax.jit(stablehlo.image_program(net, "features").call)(pictures)
    np.testing.assert_allclose(
        features, net.model.apply(net.variables, net.preprocess(pictures))[1]["features"], rtol=1e-4, atol=1e-5
    )


def test_a_bundle_says_its_model_itself(run, pictures, monkeypatch):
    monkeypatch.chdir(run / "export")
    found = {"images": pictures}
    exec(code(run / "export", "With tl_jax"), found)
    file = pretrained.load("resnet8", "tl_jax", run / "export" / "model.safetensors")
    np.testing.assert_allclose(jax.nn.softmax(found["logits"]), probabilities(file, pictures), atol=1e-6)


def test_a_bundle_hides_paths_and_nothing_else(tmp_path):
    (tmp_path / "run").mkdir()
    config = {"data": {"dir": "/home/me/photos", "text": ["/text"]}, "init": {"path": "google-bert/bert-base-uncased"}}
    facts = {"weights": "/home/me/w.h5", "classes": ["/m/01bqk0", "~other"], "reading": {"splitter": {"marks": ["/"]}}}
    contents = {"config.json": config, "facts.json": facts, "summary.json": {"facts": facts}}
    for name, content in contents.items():
        (tmp_path / "run" / name).write_text(json.dumps(content))
    write_run_files(tmp_path / "run", tmp_path / "bundle")
    config["data"]["dir"], facts["weights"] = ".../photos", ".../w.h5"
    assert {name: read_json(tmp_path / "bundle" / name) for name in contents} == contents


def test_the_facts_are_those_of_the_run(run):
    folder = run / "export"
    facts, summary = (json.loads(path.read_text()) for path in (folder / "bundle.json", run / "summary.json"))
    assert set(facts["files"]) == {
        "model.safetensors", "model.stablehlo", "delta.safetensors", *(f"run/{name}" for name in restore.RUN_FILES)
    }  # fmt: skip
    for name, entry in facts["files"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert facts["metrics"] == summary["metrics"] and facts["examples_evaluated"] == 100 and facts["step"] == 2
    assert facts["classes"] == [str(i) for i in range(10)] and facts["task"] == "image"
    assert facts["weights"] == {
        "source": "tl_jax",
        "file": "resnet8_cifar10.safetensors",
        "sha256": summary["facts"]["weights_sha256"],
        "licence": facts["spec"]["licence"] or facts["weights"]["licence"],
    }
    assert facts["weights"]["licence"].startswith("Apache-2.0")
    assert facts["preprocessing"]["scale"] == 1 / 127.5 and facts["preprocessing"]["size"] == 8
    assert facts["program"]["inputs"] == {"images": {"shape": ["n", 8, 8, 3], "dtype": "uint8"}}
    assert facts["program"]["output"] == {"name": "probabilities", "shape": ["n", 10], "dtype": "float32"}
    assert facts["changed"]["data.per_class"] == {"here": 2, "base": 0}
    assert facts["versions"]["trained"] == summary["versions"]


def test_the_card_has_the_figures_and_no_folder_of_this_machine(run):
    text = (run / "export" / "README.md").read_text()
    accuracy = json.loads((run / "summary.json").read_text())["metrics"]["accuracy"]
    assert f"| accuracy | {accuracy:.4f} |" in text and "On 100 examples" in text and "seed 0" in text
    assert model_card.INTENDED_USE_PLACEHOLDER in text and "Keras" not in text.partition("## How to load it")[0]
    assert "torchvision and timm have no `resnet8`" in text
    assert str(run) not in text and str(run) not in (run / "export" / "bundle.json").read_text()


def test_a_delta_that_saves_nothing_says_so_with_both_sizes(run):
    delta, whole = (f"{(run / 'export' / f'{n}.safetensors').stat().st_size / 1e6:.2f} MB" for n in ("delta", "model"))
    said = f"delta.safetensors saves nothing ({delta}, model.safetensors {whole}): training changed nearly every value"
    assert said in (run / "said").read_text()


def test_what_the_author_wrote_survives_another_export(run):
    path = run / "export" / "README.md"
    path.write_text(path.read_text().replace(model_card.INTENDED_USE_PLACEHOLDER, "For digits.\n\nFor nothing else."))
    export(stored.get_config(str(run)), run)
    assert "## Intended use\n\nFor digits.\n\nFor nothing else.\n\n## Test metrics" in path.read_text()


def test_the_next_transfer_starts_from_the_folder(run):
    folder = run / "export"
    config = recipe.override(small.config(), (("init.path", str(folder)), ("init.head", "keep")))
    found = image_network.load_network(config)
    file = pretrained.load("resnet8", "tl_jax", folder / "model.safetensors")
    assert found.path == folder / "model.safetensors" and found.sha256 == file.sha256
    jax.tree.map(np.testing.assert_array_equal, tree.flatten(found.variables), tree.flatten(file.variables))


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a bundle, bundle.json is missing; export a run, and pass RUN/export"):
        pretrained.load("resnet8", "tl_jax", tmp_path)
    with pytest.raises(UserError, match="not a bundle"):
        pretrained.load(source="tl_jax", path=tmp_path / "nowhere")
    with pytest.raises(UserError, match="pass a model name"):
        pretrained.load(path=tmp_path)


@pytest.mark.parametrize("name", ["", "resnet8"])
def test_other_weights_than_were_written_are_refused(copy, name):
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for path in (copy, file):
        with pytest.raises(UserError, match=r"SHA-256 \w{12}\.\.\., but bundle.json has \w{12}.*copy the bundle again"):
            pretrained.load(name, "tl_jax", path)
    file.unlink()
    with pytest.raises(UserError, match=r"model.safetensors is missing; copy the whole bundle"):
        pretrained.load(name, "tl_jax", copy)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"version": 2}, "format version 2 is not supported, only 1; install"),
        ({"files": 3}, r"bundle.json: files is 3, not an object .*; export the run again"),
        (
            {"files": {"model.safetensors": {"sha256": 5}}},
            "the sha256 of .model.safetensors. is missing; export the run again",
        ),
        ({"model": ["resnet8"]}, "bundle.json: model is a list, not a text; export the run again"),
        ({"model": None}, "model is missing; export the run again"),
        ({"task": "policy"}, "holds a policy; start a run from it"),
    ],
)
def test_facts_that_cannot_be_read_are_refused(copy, change, message):
    facts = read_json(copy / "bundle.json")
    (copy / "bundle.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(UserError, match=message):
        pretrained.load(source="tl_jax", path=copy)
