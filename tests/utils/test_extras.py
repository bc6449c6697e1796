"""Optional dependencies: where they are imported, what the package asks for, and what an installation lacks without."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT
from tl_jax.utils.extras import EXTRAS, MissingExtra, require_extra

pytestmark = pytest.mark.fast

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_LIBRARY = {library: extra for extra, libraries in EXTRAS.items() for library in libraries}
# What recipes say in an installation without extras; the others do without.
MISSING = {
    "agnews_bert": "tokenizers", "cartpole_ppo": "gymnax", "docs_bert": "tokenizers", "masked_words": "tokenizers",
    "minatar_ppo": "gymnax", "ner_bert": "tokenizers", "sst2_bert": "tokenizers", "trec_bert": "tokenizers",
    "detection_voc": "pycocotools", "digits_resnet": "", "cifar_resnet": "", "faces_verification": "",
}  # fmt: skip
BARE = f"""
import importlib.abc, pkgutil, sys, tempfile

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(OF_LIBRARY)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
import tl_jax
from tl_jax import training
from tl_jax.config import recipe
from tl_jax.utils.extras import MissingExtra

for module in pkgutil.walk_packages(tl_jax.__path__, "tl_jax."):
    if not module.name.startswith("tl_jax.recipes"):
        importlib.import_module(module.name)
for name in {sorted(MISSING)}:
    config = recipe.load(name).get_config("smoke")
    try:
        training.train(config, tempfile.mkdtemp())
        print("RESULT", name)
    except MissingExtra as error:
        print("RESULT", name, error)
"""


def test_requirements_are_the_base_and_the_extras_but_sweeps():
    listed = (ROOT / "requirements.txt").read_text().split()
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    names = sorted(set(extras) - {"all", "sweeps"})
    assert everything == f"tl-jax[{','.join(names)}]" and set(EXTRAS) == set(extras) - {"all"}
    assert sorted(listed) == sorted([*PROJECT["dependencies"], *(line for name in names for line in extras[name])])
    assert listed == sorted(listed, key=str.lower) and all(re.search(r">=[\d.]+,<[\d.]+$", line) for line in listed)


def test_the_oldest_versions_are_the_lower_bounds():
    lines = [line for line in (ROOT / "requirements-oldest.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == [re.sub(">=([^,]+),.*", r"==\1", line) for line in (ROOT / "requirements.txt").read_text().split()]


def _imports(tree: ast.AST, inside: str = ""):
    """Yield (line, library, extra) of the imports, with the extra of the ``with require_extra(...)`` around."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        within = inside
        if isinstance(node, ast.With) and isinstance(call := node.items[0].context_expr, ast.Call):
            within = call.args[0].value if ast.unparse(call.func) == "require_extra" else inside  # pyright: ignore
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        yield from ((node.lineno, name.partition(".")[0], within) for name in names)
        yield from _imports(node, within)


def test_libraries_of_extras_are_imported_where_a_line_names_the_extra():
    wrong, seen = [], set()
    for path in [*(ROOT / "tl_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        for line, library, extra in _imports(ast.parse(path.read_text())):
            seen |= {library} & set(OF_LIBRARY)
            if OF_LIBRARY.get(library, extra) != extra:
                wrong.append(f"{path.relative_to(ROOT)}:{line} {library}")
    assert not wrong and seen == set(OF_LIBRARY)


def test_a_missing_library_is_one_line_that_names_the_extra():
    with pytest.raises(MissingExtra, match=r"gymnax_x is not installed.*extra 'rl'.*pip install 'tl-jax\[rl\]'"):
        with pytest.MonkeyPatch.context() as patch, require_extra("rl"):
            patch.setitem(EXTRAS, "rl", ("gymnax_x",))
            import gymnax_x  # pyright: ignore[reportMissingImports]  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="another_library"), require_extra("rl"):
        import another_library  # pyright: ignore[reportMissingImports]  # noqa: F401


@pytest.mark.slow
def test_without_extras_images_are_trained_and_other_tasks_name_theirs(tmp_path):
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    said = dict(re.findall(r"RESULT (\w+) ?(.*)", done.stdout))
    assert set(said) == set(MISSING)
    for name, library in MISSING.items():
        assert said[name].startswith(f"{library} is not installed" if library else ""), said[name]
        assert bool(said[name]) == bool(library), said[name]
