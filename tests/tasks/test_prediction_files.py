"""Predictions on image files: damaged ones do not spoil the others, and 16-bit ones are scaled as in training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import detection_voc, faces_verification
from tl_jax import training
from tl_jax.config import recipe, stored
from tl_jax.data import synthetic
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.train.workdir import read_json
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A run on 16-bit images: a dim or a bright square on a background that varies, all of them above 32768."""
    top, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(0)
    for name, value in (("bright", 200), ("dim", 40)):
        (top / "set" / name).mkdir(parents=True)
        for i in range(20):
            image = np.full((16, 16), 32768, np.uint16) + rng.integers(0, 20, (16, 16)).astype(np.uint16)
            image[4:12, 4:12] = 32768 + value
            Image.fromarray(image).save(top / "set" / name / f"{i:02}.png")
    config = recipe.get_config()
    config.model.name, config.init.source, config.init.path = "resnet8", "tl_jax", "cifar10"
    config.init.head, config.freeze.recipe, config.epochs = "ridge", "head", 0.0
    config.data.name, config.data.dir, config.input.size = "folder", str(top / "set"), 16
    config.batch_size, config.eval_batch_size = 8, 8
    training.train(config, top / "run")
    return top, top / "run", config


def test_a_bundle_says_from_which_values_16_bit_images_are_scaled(deep):
    top, run, config = deep
    export(config, run)
    low, high = json.loads((run / "facts.json").read_text())["value_range"]
    bundle = json.loads((run / "export" / "bundle.json").read_text())
    assert bundle["preprocessing"]["value_range"] == [low, high]
    said = f"images with more than 8 bits: round(255 * clip((value - {low:g}) / {high - low:g}, 0, 1))"
    assert said in bundle["preprocessing"]["words"] and said in (run / "export" / "README.md").read_text()


def likeliest(row):
    return max(row["probabilities"], key=row["probabilities"].get)


def test_sixteen_bit_files_are_predicted_with_the_range_of_the_run(deep, tmp_path):
    top, run, config = deep
    facts = json.loads((run / "facts.json").read_text())
    assert facts["value_range"] == [32768, 32968]
    one = tmp_path / "one.png"
    one.write_bytes((top / "set" / "dim" / "03.png").read_bytes())
    alone = Learner(config, run).show_predictions([str(one)])  # by its own ends it would be as bright as the others
    among = Learner(config, run).show_predictions([str(top / "set" / "dim"), str(top / "set" / "bright")])
    assert likeliest(alone[0]) == "dim" and alone[0]["probabilities"] == pytest.approx(
        among[3]["probabilities"], abs=1e-5
    )
    assert [likeliest(row) for row in among] == ["dim"] * 20 + ["bright"] * 20


def test_other_data_that_would_change_the_range_are_refused(deep, tmp_path):
    top, run, config = deep
    shutil.copytree(top / "set", tmp_path / "set")
    Image.fromarray(np.full((16, 16), 65535, np.uint16)).save(tmp_path / "set" / "bright" / "99.png")
    with pytest.raises(UserError, match="the run"):
        training.test(recipe.override(config, (("data.dir", str(tmp_path / "set")),)), run)


def test_a_damaged_file_has_its_error_and_the_others_their_predictions(deep, tmp_path, capsys):
    top, run, config = deep
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes((top / "set" / "dim" / "03.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"nothing")
    found = Learner(config, run).show_predictions([str(tmp_path)])
    assert [Path(row["input"]).name for row in found] == ["a.png", "b.png", "c.png"]
    assert set(found[1]) == {"input", "error"} and "cannot decode" in found[1]["error"]
    assert likeliest(found[0]) == likeliest(found[2]) == "dim"
    assert json.loads((run / "predictions.json").read_text()) == found
    assert "1 of 3 inputs cannot be read: cannot decode" in capsys.readouterr().out
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match="3 of 3 inputs cannot be read: .*a.png.*b.png.*c.png"):
        Learner(config, run).show_predictions([str(tmp_path)])
    picture = Learner(config, run).explain([str(top / "set" / "dim"), str(tmp_path / "a.png")])
    assert picture.is_file() and "1 of 21 inputs cannot be read" in capsys.readouterr().out


def test_the_command_ends_with_1_if_a_file_cannot_be_read(deep, tmp_path):
    top, run, _ = deep
    (tmp_path / "bad.png").write_bytes(b"nothing")
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "--mode=predict",
        f"--workdir={run}",
        f"--input={tmp_path / 'bad.png'}",
    ]
    done = subprocess.run(
        [*command, f"--input={top / 'set' / 'dim' / '00.png'}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "1 of 2 inputs cannot be read" in done.stdout and "Traceback" not in done.stderr
    assert len(json.loads((run / "predictions.json").read_text())) == 2


def test_a_16_bit_file_is_refused_by_a_run_on_8_bits(tmp_path):
    for name, value in (("bright", 200), ("dim", 40)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((16, 16), value + i, np.uint8)).save(tmp_path / "set" / name / f"{i}.png")
    config = recipe.get_config()
    config.model.name, config.init.source, config.init.path, config.init.head = "resnet8", "tl_jax", "cifar10", "ridge"
    config.freeze.recipe, config.epochs, config.data.validation = "head", 0.0, 0.2
    config.data.name, config.data.dir, config.input.size = "folder", str(tmp_path / "set"), 16
    config.batch_size, config.eval_batch_size = 8, 8
    training.train(config, tmp_path / "run")
    assert "value_range" not in json.loads((tmp_path / "run" / "facts.json").read_text())
    Image.fromarray(np.full((16, 16), 40 * 256, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x.png has more than 8 bits \(values 10240 to 10240\)"):
        Learner(config, tmp_path / "run").show_predictions([str(tmp_path / "x.png")])


def test_boxes_are_predicted_past_a_damaged_file(tmp_path):
    small = (("model.name", "resnet8"), ("init.source", "tl_jax"), ("input.size", 32), ("eval_batch_size", 32))
    config = recipe.override(detection_voc.get_config("smoke"), small)
    training.train(config, tmp_path / "run")
    (tmp_path / "some").mkdir()
    for i in range(3):
        Image.fromarray(synthetic.draw_scenes(train=4, test=1, size=32).train.inputs[i]).save(
            tmp_path / "some" / f"{i}.png"
        )
    (tmp_path / "some" / "1.png").write_bytes(b"nothing")
    found = Learner(config, tmp_path / "run").show_predictions([str(tmp_path / "some")])
    assert ["boxes" in row for row in found] == [True, False, True] and "cannot decode" in found[1]["error"]
    drawn = sorted(path.name for path in (tmp_path / "run" / "predictions").iterdir())
    assert drawn == ["0.png", "2.png"]


def test_people_are_told_past_a_damaged_file(tmp_path):
    config = faces_verification.get_config("smoke")
    training.train(config, tmp_path / "run")
    (tmp_path / "some").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "some" / "a.png")
    (tmp_path / "some" / "b.png").write_bytes(b"nothing")
    found = Learner(stored.get_config(str(tmp_path / "run")), tmp_path / "run").show_predictions(
        [str(tmp_path / "some")]
    )
    assert "person" in found[0] and "cannot decode" in found[1]["error"]


def test_a_run_from_before_a_field_was_added_is_still_evaluated(deep):
    _, run, config = deep
    path = run / "config.json"
    content = path.read_text()
    older = read_json(path)
    del older["data"]["max_pixels"], older["data"]["range"]
    path.write_text(json.dumps(older))
    try:
        assert training.test(config, run)["metrics"]["accuracy"] == 1.0
    finally:
        path.write_text(content)
