"""Names of vision transformers' weights in the files of Hugging Face, timm and OpenCLIP."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tl_jax.models.rules import (
    Rule,
    Split,
    Table,
    keep,
    to_token,
    to_tokens,
    torch_conv,
    torch_dense,
    torch_layer_norm,
)

Rows = Sequence[tuple[str, str, str]]  # our path, their name as a regex, kind of layer


class Names(NamedTuple):
    """Names of one layout.

    Attributes:
        single: modules outside of the layers.
        layer: regex of a layer's prefix, with "{}" for its number from 0.
        in_layer: modules of each layer.
        ignored: names that are not of the image network.
        splits: see ``rules.Table``.
    """

    single: Rows
    layer: str
    in_layer: Rows
    ignored: tuple[str, ...] = ()
    splits: tuple[Split, ...] = ()


@functools.cache  # dozens of networks share a few tables, and all are made on import
def make_table(layout: str, depth: int) -> Table:
    """Return the table of a layout for a network with ``depth`` layers."""
    names = LAYOUTS[layout]
    rules = [rule for path, name, kind in names.single for rule in _rules(kind, name, path)]
    for i in range(depth):
        prefix = names.layer.format(i)
        for path, name, kind in names.in_layer:
            rules += _rules(kind, prefix + name, f"layer{i + 1}/{path}")
    return Table(rules, names.ignored, splits=names.splits)


def _rules(kind: str, name: str, path: str) -> list[Rule]:
    if kind in _LAYERS:
        return _LAYERS[kind](name, path)
    return [Rule(name, f"params/{path}", {"value": keep, "token": to_token, "tokens": to_tokens}[kind])]


_LAYERS = {"conv": torch_conv, "dense": torch_dense, "norm": torch_layer_norm}
_QKV = tuple(("attention/" + ours, theirs, "dense") for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")))
_POOL_MLP = (("pool/mlp/up", r"{}\.mlp\.fc1", "dense"), ("pool/mlp/down", r"{}\.mlp\.fc2", "dense"))


def _attention(pattern: str, query: str, key: str, value: str, output: str) -> Rows:
    """Return the rows of the projections; ``pattern`` has "{}" for their names."""
    names = {"query": query, "key": key, "value": value}
    rows = [(f"attention/{ours}", pattern.format(theirs), "dense") for ours, theirs in names.items()]
    return (*rows, ("attention/output", output, "dense"))


_HF_PREFIX = r"(?:|deit\.|dinov2\.|dinov2_with_registers\.|vit\.)"
_HF_ATTENTION = _attention(r"attention\.attention\.{}", "query", "key", "value", r"attention\.output\.dense")
_HF_EMBEDDINGS = (
    ("embeddings/class_token", rf"{_HF_PREFIX}embeddings\.cls_token", "value"),
    ("embeddings/positions", rf"{_HF_PREFIX}embeddings\.position_embeddings", "value"),
    ("embeddings/patch", rf"{_HF_PREFIX}embeddings\.patch_embeddings\.projection", "conv"),
    ("embeddings/registers", rf"{_HF_PREFIX}embeddings\.register_tokens", "value"),
    ("norm", rf"{_HF_PREFIX}layernorm", "norm"),
    ("head", "classifier", "dense"),
)
_HF_IGNORED = (rf"{_HF_PREFIX}embeddings\.mask_token", rf"{_HF_PREFIX}pooler\..*", r"decoder\..*")
_VIT = Names(
    _HF_EMBEDDINGS,
    rf"{_HF_PREFIX}encoder\.layer\.{{}}\.",
    (
        *_HF_ATTENTION,
        ("norm1", "layernorm_before", "norm"),
        ("norm2", "layernorm_after", "norm"),
        ("mlp/up", r"intermediate\.dense", "dense"),
        ("mlp/down", r"output\.dense", "dense"),
    ),
    _HF_IGNORED,
)
_NORMS = (("norm1", "norm1", "norm"), ("norm2", "norm2", "norm"))
_HF_SCALES = (("scale1", r"layer_scale1\.lambda1", "value"), ("scale2", r"layer_scale2\.lambda1", "value"))
_DINOV2 = Names(
    _HF_EMBEDDINGS,
    rf"{_HF_PREFIX}encoder\.layer\.{{}}\.",
    (
        *_HF_ATTENTION,
        *_NORMS,
        *_HF_SCALES,
        ("mlp/up", r"mlp\.(?:fc1|up)", "dense"),
        ("mlp/gate", r"mlp\.gate", "dense"),
        ("mlp/down", r"mlp\.(?:weights_out|fc2)", "dense"),
    ),
    _HF_IGNORED,
    (Split(r"(.*\.mlp\.)weights_in(\.weight|\.bias)", (r"\1gate\2", r"\1up\2")),),
)
_DINOV3 = Names(
    (
        ("embeddings/class_token", r"embeddings\.cls_token", "value"),
        ("embeddings/registers", r"embeddings\.register_tokens", "value"),
        ("embeddings/patch", r"embeddings\.patch_embeddings", "conv"),
        ("norm", "norm", "norm"),
    ),
    r"(?:|model\.)layer\.{}\.",
    (
        *_attention(r"attention\.{}_proj", "q", "k", "v", r"attention\.o_proj"),
        *_NORMS,
        *_HF_SCALES,
        ("mlp/up", r"mlp\.up_proj", "dense"),
        ("mlp/gate", r"mlp\.gate_proj", "dense"),
        ("mlp/down", r"mlp\.down_proj", "dense"),
    ),
    (r"embeddings\.mask_token",),
)
_TOWER = r"(?:|vision_model\.)"
_TOWER_LAYER = (
    *_attention(r"self_attn\.{}_proj", "q", "k", "v", r"self_attn\.out_proj"),
    ("norm1", "layer_norm1", "norm"),
    ("norm2", "layer_norm2", "norm"),
    ("mlp/up", r"mlp\.fc1", "dense"),
    ("mlp/down", r"mlp\.fc2", "dense"),
)
_TOWER_IGNORED = (r"text_model\..*", "logit_scale", "logit_bias", r"(?:text|visual)_projection\..*", r".*position_ids")
_CLIP = Names(
    (
        ("embeddings/class_token", rf"{_TOWER}embeddings\.class_embedding", "token"),
        ("embeddings/positions", rf"{_TOWER}embeddings\.position_embedding\.weight", "tokens"),
        ("embeddings/patch", rf"{_TOWER}embeddings\.patch_embedding", "conv"),
        ("embeddings/norm", rf"{_TOWER}pre_layrnorm", "norm"),
        ("norm", rf"{_TOWER}post_layernorm", "norm"),
    ),
    rf"{_TOWER}encoder\.layers\.{{}}\.",
    _TOWER_LAYER,
    _TOWER_IGNORED,
)
_SIGLIP = Names(
    (
        ("embeddings/positions", rf"{_TOWER}embeddings\.position_embedding\.weight", "tokens"),
        ("embeddings/patch", rf"{_TOWER}embeddings\.patch_embedding", "conv"),
        ("norm", rf"{_TOWER}post_layernorm", "norm"),
        ("pool/probe", rf"{_TOWER}head\.probe", "value"),
        *((f"pool/{path}", rf"{_TOWER}head\.attention\.{name}_proj", kind) for path, name, kind in _QKV),
        ("pool/attention/output", rf"{_TOWER}head\.attention\.out_proj", "dense"),
        ("pool/norm", rf"{_TOWER}head\.layernorm", "norm"),
        *((path, name.format(rf"{_TOWER}head"), kind) for path, name, kind in _POOL_MLP),
    ),
    rf"{_TOWER}encoder\.layers\.{{}}\.",
    _TOWER_LAYER,
    _TOWER_IGNORED,
    (Split(r"(.*head\.attention\.)in_proj_(weight|bias)", (r"\1q_proj.\2", r"\1k_proj.\2", r"\1v_proj.\2")),),
)
_TIMM = Names(
    (
        ("embeddings/class_token", "cls_token", "value"),
        ("embeddings/positions", "pos_embed", "value"),
        ("embeddings/registers", "(?:register_tokens|reg_token)", "value"),
        ("embeddings/patch", r"patch_embed\.proj", "conv"),
        ("embeddings/norm", "norm_pre", "norm"),
        ("norm", "norm", "norm"),
        ("pool/probe", r"attn_pool\.latent", "value"),
        *((f"pool/{path}", rf"attn_pool\.{name}", kind) for path, name, kind in _QKV),
        ("pool/attention/output", r"attn_pool\.proj", "dense"),
        ("pool/norm", r"attn_pool\.norm", "norm"),
        *((path, name.format("attn_pool"), kind) for path, name, kind in _POOL_MLP),
        ("head", "head", "dense"),
    ),
    r"blocks\.{}\.",
    (
        *_attention(r"attn\.{}", "q", "k", "v", r"attn\.proj"),
        ("attention/query_norm", r"attn\.q_norm", "norm"),
        ("attention/key_norm", r"attn\.k_norm", "norm"),
        *_NORMS,
        ("scale1", r"ls1\.gamma", "value"),
        ("scale2", r"ls2\.gamma", "value"),
        ("mlp/up", r"mlp\.(?:up|fc1)", "dense"),
        ("mlp/gate", r"mlp\.gate", "dense"),
        ("mlp/down", r"mlp\.(?:w3|fc2)", "dense"),
    ),
    ("mask_token", r"decoder.*"),
    (
        Split(r"(.*attn\.)qkv(\.weight|\.bias)", (r"\1q\2", r"\1k\2", r"\1v\2")),
        Split(r"(.*attn_pool\.)kv(\.weight|\.bias)", (r"\1k\2", r"\1v\2")),
        Split(r"(.*\.mlp\.)w12(\.weight|\.bias)", (r"\1gate\2", r"\1up\2")),
    ),
)
_VISUAL = r"visual\."
_OPENCLIP = Names(
    (
        ("embeddings/class_token", rf"{_VISUAL}class_embedding", "token"),
        ("embeddings/positions", rf"{_VISUAL}positional_embedding", "tokens"),
        ("embeddings/patch", rf"{_VISUAL}conv1", "conv"),
        ("embeddings/norm", rf"{_VISUAL}ln_pre", "norm"),
        ("norm", rf"{_VISUAL}ln_post", "norm"),
    ),
    rf"{_VISUAL}transformer\.resblocks\.{{}}\.",
    (
        *_attention(r"attn\.{}_proj", "q", "k", "v", r"attn\.out_proj"),
        ("norm1", "ln_1", "norm"),
        ("norm2", "ln_2", "norm"),
        ("mlp/up", r"mlp\.c_fc", "dense"),
        ("mlp/down", r"mlp\.c_proj", "dense"),
    ),
    (
        rf"{_VISUAL}proj",
        "text_projection",
        "logit_scale",
        r"transformer\..*",
        r"text\..*",
        r"token_embedding\..*",
        r"ln_final\..*",
        "positional_embedding",
    ),
    (Split(r"(.*\.attn\.)in_proj_(weight|bias)", (r"\1q_proj.\2", r"\1k_proj.\2", r"\1v_proj.\2")),),
)
LAYOUTS: Mapping[str, Names] = {
    "vit": _VIT, "dinov2": _DINOV2, "dinov3": _DINOV3, "clip": _CLIP, "siglip": _SIGLIP, "timm": _TIMM,
    "openclip": _OPENCLIP,
}  # fmt: skip
