"""What ``pip install`` puts where: the package alone, with the recipes in it, whatever else lies about."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.conftest import ROOT
from tl_jax.config import recipes_dir

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.mark.fast
def test_every_package_is_listed():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "tl_jax").rglob("__init__.py")}
    assert set(PROJECT["packages"]) == folders | {"tl_jax.recipes"}
    assert PROJECT["package-dir"] == {"tl_jax.recipes": "configs"} and recipes_dir() == ROOT / "configs"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the wheel is unpacked in."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("no setuptools: pip install setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
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
    code = f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]; sys.path.insert(1, {str(installed)!r}); "
    code += "import tl_jax; from tl_jax import cli, pretrained; from tl_jax.config import recipes_dir; "
    code += f"assert str(recipes_dir()).startswith({str(installed)!r}), recipes_dir(); cli.main()"
    command = [sys.executable, "-c", code, "--config=digits_resnet:smoke", "--config.input.size=8", "--workdir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "run" / "report.html").is_file(), done.stderr
