"""What ``pip install`` puts where: the package alone, with the recipes in it, whatever else lies about."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tl_jax.config import recipes_dir
from tl_jax.pretrained.catalog import EMBEDDED_RESNET8

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


LINES = """
import tl_jax
learner = tl_jax.fine_tune("photos", model="resnet8", weights="own.safetensors", image_size=32, workdir="run")
print(learner.evaluate())
print(learner.predict("new.png"))
learner.export()
"""
AGAIN = """
import tl_jax
for folder in ("run", "shared"):
    print(tl_jax.load_learner(folder).predict("new.png")[0].probabilities)
"""


@pytest.mark.slow
def test_a_run_and_its_export_answer_where_nothing_else_is_left(installed, tmp_path):
    """In a folder with a package configs of its own, by the wheel; then data, weights and cache are removed."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('not the project\\'s')\n")
    rng = np.random.default_rng(0)
    for name, value in (("dark", 60), ("light", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(rng.normal(value, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    shutil.copy(tmp_path / "photos" / "light" / "0.png", tmp_path / "new.png")
    shutil.copy(EMBEDDED_RESNET8["cifar10"], tmp_path / "own.safetensors")
    paths = f"import sys\nsys.path[:] = [{str(installed)!r}, *(path for path in sys.path if path != {str(ROOT)!r})]\n"

    def call(code):
        environment = {**os.environ, "TL_JAX_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", paths + code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    said = call(LINES)
    assert said[-1].startswith("new.png: light ")
    shutil.copytree(tmp_path / "run" / "export", tmp_path / "shared")
    shutil.rmtree(tmp_path / "photos")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "own.safetensors").unlink()
    of_run, of_bundle = map(ast.literal_eval, call(AGAIN))
    assert of_run == pytest.approx(of_bundle, abs=1e-6) and of_run["light"] > 0.9
    assert f"{of_run['light']:.3f}" == said[-1].rpartition(" ")[2]


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
