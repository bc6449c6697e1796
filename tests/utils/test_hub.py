"""Published files from servers on 127.0.0.1: an address with and without a hash, and the Hugging Face hub."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained.fake import random_variables, torchvision_arrays, write_keras_h5
from tests.pretrained.published import replace_spec
from tests.text import network as text_network
from tl_jax import models, pretrained
from tl_jax.pretrained import catalog, huggingface, network
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]
COMMIT = "0" * 40


class Handler(BaseHTTPRequestHandler):
    """Serves the files of ``server.files`` by path, as the hub does: with the commit and the SHA-256 in the headers."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        content = self.server.files.get(self.path)
        self.server.asked.append((self.command, self.path))
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """Publish a tiny Keras file with and without its head, under a name of the catalogue."""
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    variables = random_variables(network.variable_shapes(models.create("resnet50_tiny", 6)))
    trunk = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "head"}}
    digests = {}
    for name, stored in (("top.h5", variables), ("notop.h5", trunk)):
        write_keras_h5(tmp_path / name, stored)
        server.files[f"/{name}"] = (tmp_path / name).read_bytes()
        digests[name] = f"md5:{hashlib.md5(server.files[f'/{name}']).hexdigest()}"
    key = ("resnet50_tiny", "keras")
    spec = dataclasses.replace(
        catalog.CATALOG[key], url=f"{server.url}/top.h5", digest=digests["top.h5"],
        headless_url=f"{server.url}/notop.h5", headless_digest=digests["notop.h5"],
    )  # fmt: skip

    def publish(**changes):
        replace_spec(dataclasses.replace(spec, **changes), monkeypatch)

    publish()
    return publish, variables


def test_a_published_file_is_downloaded_and_converted_once(published, server, tmp_path):
    _, variables = published
    net = pretrained.load("resnet50_tiny")
    jax.tree.map(np.testing.assert_array_equal, net.variables, variables)
    assert server.asked == [("GET", "/top.h5")] and str(net.path) == "top.h5"
    assert net.sha256 == hashlib.sha256(server.files["/top.h5"]).hexdigest()
    (tmp_path / "cache" / "weights" / "top.h5").unlink()  # nothing needs the original any more
    pretrained.load("resnet50_tiny")
    assert len(server.asked) == 1
    assert pretrained.load("resnet50_tiny", num_classes=0).spec.num_classes == 0
    assert server.asked[1:] == [("GET", "/notop.h5")]  # the smaller file is enough for a new head


def test_hidden_layers_need_the_whole_file(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    names = {"fc1": "fc1", "fc2": "fc2", "head": "predictions"}
    whole = {}
    for path, leaf in tree.flatten(
        random_variables(network.variable_shapes(models.create("vgg16_tiny", 6)))["params"]
    ).items():
        layer, *rest = path.split("/")
        whole[f"{names.get(layer) or f'block{layer[5:]}_{rest[0]}'}/{rest[-1]}"] = leaf
    for name, arrays in (("top.npz", whole), ("no.npz", {k: v for k, v in whole.items() if k.startswith("block")})):
        np.savez(tmp_path / name, **arrays)
        server.files[f"/{name}"] = (tmp_path / name).read_bytes()
    key = ("vgg16_tiny", "keras")
    urls = {"url": f"{server.url}/top.npz", "headless_url": f"{server.url}/no.npz"}
    replace_spec(dataclasses.replace(catalog.CATALOG[key], **urls), monkeypatch)
    assert pretrained.load("vgg16_tiny", num_classes=3, head="new", fc=True).model.fc
    assert not pretrained.load("vgg16_tiny", num_classes=3, head="new").model.fc
    assert [path for _, path in server.asked] == ["/top.npz", "/no.npz"]


def test_a_file_with_another_hash_is_refused(published, server):
    server.files["/top.h5"] = server.files["/notop.h5"]
    with pytest.raises(UserError, match="top.h5: hash md5:.*, not md5:"):
        pretrained.load("resnet50_tiny")


def test_a_file_without_a_published_hash_is_taken(published, server):
    publish, variables = published
    publish(digest="")
    net = pretrained.load("resnet50_tiny")
    jax.tree.map(np.testing.assert_array_equal, net.variables, variables)
    assert net.sha256 == hashlib.sha256(server.files["/top.h5"]).hexdigest()


CODE = """
import dataclasses, sys
from tl_jax import pretrained
from tl_jax.utils.errors import UserError
from tests.pretrained.published import replace_spec
from tl_jax.pretrained import catalog
key = ("resnet50_tiny", "timm")
replace_spec(dataclasses.replace(catalog.CATALOG[key], hub="timm/tiny", digest=sys.argv[1]))
try:
    net = pretrained.load(*key)
    print(net.sha256, net.path, net.spec.num_classes)
except UserError as e:
    print("error:", e)
"""


TEXT = """
import sys
from tl_jax import pretrained
from tl_jax.utils.errors import UserError
try:
    net = pretrained.load("bert", "huggingface", "owner/tiny")
    print(net.path.name, net.model.depth, net.tokenize(["a film"])["input_ids"].tolist())
except UserError as e:
    print("error:", e)
"""


def hub(server, tmp_path, digest="", code=CODE, **env):
    """Load in a process of its own: the hub's library reads its address when it is imported."""
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "TL_JAX_CACHE": str(tmp_path / "cache")}
    own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **env}
    command = [sys.executable, "-c", code, digest]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_file_on_the_hub(server, tmp_path):
    variables = random_variables(network.variable_shapes(models.create("resnet50_tiny", 6, layout="torchvision")))
    arrays = {k: np.ascontiguousarray(v) for k, v in torchvision_arrays(variables).items()}
    save_file(arrays, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    server.files["/timm/tiny/resolve/main/model.safetensors"] = content
    assert "expected sha256:11111111" in hub(server, tmp_path, f"sha256:{'1' * 64}")
    assert hub(server, tmp_path, f"sha256:{sha256}") == f"{sha256} timm/tiny 6"
    asked = len(server.asked)
    assert hub(server, tmp_path, f"sha256:{sha256}", HF_HUB_OFFLINE="1") == f"{sha256} timm/tiny 6"  # from our cache
    assert len(server.asked) == asked


def test_what_the_hub_does_not_have_is_one_line(server, tmp_path):
    message = hub(server, tmp_path)
    assert message.startswith("error: cannot download model.safetensors of timm/tiny") and "\n" not in message
    offline = hub(server, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in offline and "pass a local copy with config.init.path=FILE" in offline


def test_a_text_network_on_the_hub(server, tmp_path):
    net = text_network(tmp_path / "tiny")
    huggingface.save(tmp_path / "tiny", net)
    ids = net.tokenize(["a film"])["input_ids"].tolist()
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        server.files[f"/owner/tiny/resolve/main/{name}"] = (tmp_path / "tiny" / name).read_bytes()
    assert hub(server, tmp_path, code=TEXT) == f"model.safetensors 2 {ids}"
    asked = [path for _, path in server.asked]
    assert not any(path.endswith("pytorch_model.bin") for path in asked)  # one file of weights is enough
    assert hub(server, tmp_path, code=TEXT, HF_HUB_OFFLINE="1") == f"model.safetensors 2 {ids}"
    del server.files["/owner/tiny/resolve/main/config.json"]
    message = hub(server, tmp_path, code=TEXT, HF_HOME=str(tmp_path / "other"))
    assert message.startswith("error: cannot download config.json of owner/tiny") and "\n" not in message


def test_a_network_on_the_hub_that_was_trained_on_means(server, tmp_path):
    huggingface.save(tmp_path / "tiny", text_network(tmp_path / "tiny"))
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        server.files[f"/owner/tiny/resolve/main/{name}"] = (tmp_path / "tiny" / name).read_bytes()
    code = TEXT.replace("print(", "print(net.model.pooling,")
    assert hub(server, tmp_path, code=code, HF_HOME=str(tmp_path / "a")).startswith("pooler")
    server.files["/owner/tiny/resolve/main/1_Pooling/config.json"] = b'{"pooling_mode_mean_tokens": true}'
    assert hub(server, tmp_path, code=code, HF_HOME=str(tmp_path / "b")).startswith("mean")
