"""Conversion tables of the ResNet family."""

from tl_jax.weights.rules import Rule, Table, oihw_to_hwio, transpose

# (name in the file, path of ours) of the leaves of one BatchNorm.
_KERAS_NORM = (
    ("gamma", "params/{}/scale"),
    ("beta", "params/{}/bias"),
    ("moving_mean", "batch_stats/{}/mean"),
    ("moving_variance", "batch_stats/{}/var"),
)
_TORCH_NORM = (
    ("weight", "params/{}/scale"),
    ("bias", "params/{}/bias"),
    ("running_mean", "batch_stats/{}/mean"),
    ("running_var", "batch_stats/{}/var"),
)


def _keras() -> Table:
    """keras.applications: ``conv2_block1_1_conv/kernel``; block convolutions count from 1, the shortcut is 0."""
    rules = [Rule(f"conv1_conv/{leaf}", f"params/stem/conv/{leaf}") for leaf in ("kernel", "bias")]
    rules += [Rule(f"conv1_bn/{leaf}", path.format("stem/bn")) for leaf, path in _KERAS_NORM]
    for stage in (1, 2, 3, 4):
        block = rf"conv{stage + 1}_block(\d+)"
        for leaf in ("kernel", "bias"):
            rules.append(Rule(rf"{block}_([123])_conv/{leaf}", rf"params/stage{stage}/block\1/conv\2/{leaf}"))
            rules.append(Rule(rf"{block}_0_conv/{leaf}", rf"params/stage{stage}/block\1/shortcut_conv/{leaf}"))
        for leaf, path in _KERAS_NORM:
            rules.append(Rule(rf"{block}_([123])_bn/{leaf}", path.format(rf"stage{stage}/block\1/bn\2")))
            rules.append(Rule(rf"{block}_0_bn/{leaf}", path.format(rf"stage{stage}/block\1/shortcut_bn")))
    # The published file calls its top "probs" (Keras 2), files saved by later versions "predictions".
    rules += [Rule(f"(?:probs|predictions)/{leaf}", f"params/head/{leaf}") for leaf in ("kernel", "bias")]
    return Table(rules)


def _torchvision() -> Table:
    """torchvision: ``layer1.0.conv1.weight``; blocks count from 0 and ours from 1, so each has its own rules."""
    rules = [Rule(r"conv1\.weight", "params/stem/conv/kernel", oihw_to_hwio)]
    rules += [Rule(rf"bn1\.{leaf}", path.format("stem/bn")) for leaf, path in _TORCH_NORM]
    for index in range(36):  # ResNet-152's longest stage
        theirs, ours = rf"layer(\d)\.{index}", rf"stage\1/block{index + 1}"
        rules.append(Rule(rf"{theirs}\.conv(\d)\.weight", rf"params/{ours}/conv\2/kernel", oihw_to_hwio))
        rules.append(Rule(rf"{theirs}\.downsample\.0\.weight", rf"params/{ours}/shortcut_conv/kernel", oihw_to_hwio))
        for leaf, path in _TORCH_NORM:
            rules.append(Rule(rf"{theirs}\.bn(\d)\.{leaf}", path.format(rf"{ours}/bn\2")))
            rules.append(Rule(rf"{theirs}\.downsample\.1\.{leaf}", path.format(rf"{ours}/shortcut_bn")))
    rules += [Rule(r"fc\.weight", "params/head/kernel", transpose), Rule(r"fc\.bias", "params/head/bias")]
    return Table(rules, ignored=(r".*\.num_batches_tracked",))


TABLES = {"keras": _keras(), "torchvision": _torchvision()}
