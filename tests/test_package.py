"""What ``pip install`` puts where: the package alone, with the recipes in it, whatever else lies about."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT
from tests.folders import write_boxes, write_people, write_photos, write_texts
from tl_jax.config import recipes_dir

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.mark.fast
def test_every_package_is_listed():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "tl_jax").rglob("__init__.py")}
    assert set(PROJECT["packages"]) == folders | {"tl_jax.recipes"}
    assert PROJECT["package-dir"] == {"tl_jax.recipes": "configs"} and recipes_dir() == ROOT / "configs"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what an installation is made of: building leaves files beside it."""
    copy = tmp_path_factory.mktemp("package") / "source"
    for name in ("tl_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def installed(source):
    """A folder that the wheel is unpacked in."""
    folder, copy = source.parent, source
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_works_beside_packages_of_the_same_names(installed, tmp_path):
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"tl_jax"}
    for name in ("configs", "experiments", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not the project\\'s')\n")
    code = f"""
import sys
sys.path[:] = [{str(installed)!r}, *(path for path in sys.path if path != {str(ROOT)!r})]
from tl_jax import cli, pretrained
from tl_jax.config import recipes_dir
assert str(recipes_dir()).startswith({str(installed)!r}), recipes_dir()
cli.main()
"""
    command = [sys.executable, "-c", code, "--config=digits_resnet:smoke", "--config.input.size=8", "--workdir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "run" / "report.html").is_file(), done.stderr


class Job(NamedTuple):
    """A use of the package: what writes the data, arguments of fine_tune and of load_learner, what is asked."""

    write: Callable[[Path], object]
    fine_tune: str
    ask: str
    load: str = ""


PROBABILITIES = "list(learner.predict({!r})[0].probabilities.values())"
JOBS = {
    "images": Job(
        write_photos,
        '"data", model="resnet8", weights="weights.safetensors", image_size=32',
        PROBABILITIES.format("new.png"),
    ),
    "texts": Job(write_texts, '"data/mail.csv", weights="weights", epochs=2', PROBABILITIES.format("good work")),
    "boxes": Job(
        write_boxes,
        '"data", model="resnet8", weights="random", image_size=64, epochs=1, detect__score_threshold=0.0',
        '[box["score"] for box in learner.predict("new.jpg")[0].details["boxes"]]',
    ),
    "faces": Job(
        write_people,
        '"data", task="faces", model="resnet8", image_size=32, epochs=1',
        'learner.predict("new.png", embeddings=True)[0].details["embedding"].tolist()',
        ', faces__known="known"',
    ),
    "policy": Job(
        lambda folder: (folder / "data").mkdir(),
        '"CartPole-v1", task="policy", rl__total_timesteps=4096, rl__episodes=4, rl__num_envs=8, batch_size=512',
        "list(learner.play().read_bytes())",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_run_and_its_export_answer_where_nothing_else_is_left(installed, tmp_path, name):
    """In a folder with a package configs of its own, by the wheel; then data, weights and cache are removed."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('not the project\\'s')\n")
    job = JOBS[name]
    job.write(tmp_path)
    paths = f"import sys\nsys.path[:] = [{str(installed)!r}, *(path for path in sys.path if path != {str(ROOT)!r})]\n"

    def call(*lines):
        environment = {**os.environ, "TL_JAX_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", "\n".join([paths + "import tl_jax", *lines])]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    learn = f'learner = tl_jax.fine_tune({job.fine_tune}, workdir="run")'
    call(learn, "print(learner.evaluate())", "learner.export()")
    shutil.copytree(tmp_path / "run" / "export", tmp_path / "shared")
    for path in (tmp_path / "data", tmp_path / "cache", tmp_path / "weights"):
        shutil.rmtree(path, ignore_errors=True)
    (tmp_path / "weights.safetensors").unlink(missing_ok=True)
    loads = [f'learner = tl_jax.load_learner("{folder}"{job.load})' for folder in ("run", "shared")]
    of_run, of_bundle = (ast.literal_eval(call(load, f"print({job.ask})")[-1]) for load in loads)
    assert of_run and of_run == pytest.approx(of_bundle, rel=1e-4)


@pytest.mark.slow
def test_an_editable_installation_finds_the_recipes_of_its_checkout(source, tmp_path):
    venv.create(tmp_path / "env", system_site_packages=False, with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    options = ["-q", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "-e", source], check=True)
    code = "from tl_jax.config import recipes_dir; print(recipes_dir())"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(source / "configs"), done.stderr
