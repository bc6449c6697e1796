"""Files that other libraries write, fetched from the addresses in the catalogue, equal the same files read here."""

import pytest

from tests.models.test_vit import import_timm
from tests.utils.test_hub import hub, server  # noqa: F401  # a fixture
from tl_jax.pretrained.catalog import CATALOG

pytestmark = pytest.mark.slow

CODE = """
import sys
import jax, numpy as np
from tl_jax import pretrained
name, source, file = sys.argv[1].split()
fetched, local = pretrained.load(name, source), pretrained.load(name, source, file)
jax.tree.map(np.testing.assert_array_equal, fetched.variables, local.variables)
print(fetched.path, fetched.spec.num_classes, local.spec.num_classes, fetched.model == local.model)
"""
TRANSFORMERS = {  # our name -> class, and attributes of its configuration
    "dinov3_small16": ("DINOv3ViTModel", {"num_register_tokens": 4}),
    "dinov3_convnext_tiny": ("DINOv3ConvNextModel", {}),
}
TIMM = ("vit_tiny16", "deit_tiny16", "dino_small16", "dinov2_small14_reg", "convnext_atto", "convnextv2_atto")


def fetch(server, tmp_path, name, source, file):  # noqa: F811
    spec = CATALOG[name, source]
    server.files[f"/{spec.hub}/resolve/main/model.safetensors"] = file.read_bytes()
    says = hub(server, tmp_path, f"{name} {source} {file}", CODE)
    assert says == f"{spec.hub} {spec.num_classes} {spec.num_classes} True"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_files_of_transformers(name, server, tmp_path):  # noqa: F811
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    class_name, attributes = TRANSFORMERS[name]
    cls = getattr(transformers, class_name)
    cls(cls.config_class(**attributes)).save_pretrained(tmp_path / "own")
    fetch(server, tmp_path, name, "huggingface", tmp_path / "own" / "model.safetensors")


@pytest.mark.parametrize("name", TIMM)
def test_files_of_timm(name, server, tmp_path):  # noqa: F811
    torch, timm = import_timm()
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = timm.create_model(CATALOG[name, "timm"].hub.removeprefix("timm/"), pretrained=False)
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    fetch(server, tmp_path, name, "timm", tmp_path / "own.safetensors")
