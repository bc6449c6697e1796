"""Text tasks end to end on a small network: they learn, freeze, cache, guess words, answer, and go out as folders."""

import json
import shutil

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from configs import sst2_bert
from tests.configs import change
from tests.text import network
from tl_jax import pretrained, training
from tl_jax.config import recipe, validate
from tl_jax.export import stablehlo
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.pretrained import formats, huggingface
from tl_jax.restore import RUN_FILES, make_task, restore
from tl_jax.train import loop
from tl_jax.train.state import digest
from tl_jax.train.workdir import read_json
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow

GOOD, BAD = "good acting as the film", "bad plot don t"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with a network of random weights, its vocabulary, and texts: two classes by their words."""
    where = tmp_path_factory.mktemp("text")
    huggingface.save(where / "net", network(where / "net"))
    rng = np.random.default_rng(0)

    def sentence(words):
        return " ".join(rng.choice([*words.split(), "a", "its", "world", "cafe"], rng.integers(3, 9)))

    for part, n in (("train", 96), ("dev", 16), ("test", 31)):
        rows = [f"{sentence((BAD, GOOD)[i % 2])} {('bad', 'good')[i % 2]}\t{i % 2}" for i in range(n)]
        (where / f"{part}.tsv").write_text("\n".join(rows))
        tagged = [[(w, "B-X" if w in GOOD.split() else "O") for w in sentence(GOOD).split()] for _ in range(n)]
        (where / f"{part}.conll").write_text("\n\n".join("\n".join(f"{w} {t}" for w, t in row) for row in tagged))
    return where


def configure(folder, *changes):
    common = (
        ("arms", ()), ("init.path", str(folder / "net")), ("data.dir", str(folder)), ("batch_size", 8),
        ("eval_batch_size", 16), ("optim.lr", 3e-3), ("input.max_length", 12), ("log_every", 4),
    )  # fmt: skip
    return change(sst2_bert.get_config(), *common, *changes)


TOKENS = (("task", "tokens"), ("data.name", "conll"), ("data.columns", ()), ("data.text", ("text",)))
WORDS = (("task", "masked"),)


def test_a_text_task_learns_and_a_second_run_has_the_same_bits(folder, tmp_path):
    config = configure(folder, ("epochs", 6.0))
    first, again = training.train(config, tmp_path / "a"), training.train(config, tmp_path / "b")
    assert first["metrics"]["accuracy"] > 0.9 and first["examples_evaluated"] == 31
    assert first["parameters_sha256"] == again["parameters_sha256"]
    assert set(first["per_class"]) == {"0", "1"} and first["per_class"]["0"]["examples"] == 16
    assert training.test(config, tmp_path / "a")["metrics"] == pytest.approx(first["metrics"])


def test_an_interrupted_run_ends_with_the_same_bits(folder, tmp_path):
    config = configure(folder, ("epochs", 2.0))
    task = make_task(config)
    plan = task.plan()

    def fit(where, plan):
        fitted = loop.fit(task, plan, loop.Pace(6, 4), 0, tmp_path / where, verbose=False)
        fitted.checkpoints.close()
        return fitted

    whole = fit("whole", plan)
    fit("cut", (plan[0]._replace(stop=12),))  # the schedule is that of the whole phase
    resumed = fit("cut", plan)
    assert resumed.resumed_from == 12
    assert digest(jax.device_get(resumed.state.variables)) == digest(jax.device_get(whole.state.variables))


def test_words_are_tagged(folder, tmp_path):
    summary = training.train(configure(folder, *TOKENS, ("epochs", 6.0)), tmp_path)
    assert summary["metrics"]["f1"] > 0.9 and summary["per_class"]["X"]["examples"] > 31


def test_words_are_guessed(folder, tmp_path):
    config = configure(folder, *WORDS, ("epochs", 8.0), ("pretext.mask_prob", 0.3))
    summary = training.train(config, tmp_path)
    assert summary["metrics"]["loss"] < 0.8 * np.log(117)
    again = recipe.override(config, (("eval_batch_size", 4),))  # what is hidden does not depend on the batch
    assert training.test(again, tmp_path)["metrics"]["loss"] == pytest.approx(summary["metrics"]["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", [(), TOKENS])
def test_with_the_head_alone_nothing_below_changes_or_is_dropped(folder, tmp_path, kind):
    common = (
        *kind,
        ("freeze.recipe", "head"),
        ("freeze.verify", True),
        ("epochs", 4.0),
        ("optim.schedule", "constant"),
    )
    cache = () if kind else (("cache.dir", str(tmp_path / "cache")),)  # nothing is kept for words
    cached = training.train(configure(folder, *common, *cache), tmp_path / "a")
    other = training.train(configure(folder, *common, ("cache.features", "off")), tmp_path / "b")
    assert cached["freeze"]["changed"] == 0 and cached["parameters"]["trainable"] == 34
    assert bool(list((tmp_path / "cache").glob("*.npy"))) == (not kind)
    if kind:
        assert cached["parameters_sha256"] == other["parameters_sha256"]
    else:  # other batches: those of features are not sorted by length
        assert abs(cached["metrics"]["loss"] - other["metrics"]["loss"]) < 0.1


def test_cached_features_are_those_of_the_network(folder, tmp_path):
    task, _, state = trained(folder, tmp_path, ("init.head", "logistic"), ("epochs", 0.0))
    values = training.test(configure(folder, ("init.head", "logistic"), ("epochs", 0.0)), tmp_path)["metrics"]
    parts = {}
    for part in ("train", "test"):
        rows = [(np.asarray(task.features(state.variables, b))[b["mask"] > 0], b["label"][b["mask"] > 0])
                for b in task.eval_batches(part)]  # fmt: skip
        parts[part] = [np.concatenate(side) for side in zip(*rows, strict=True)]
    peers = [LogisticRegression(C=10.0**i, max_iter=5000).fit(*parts["train"]) for i in range(-4, 3)]
    scores = [peer.score(*parts["test"]) for peer in peers]
    assert min(abs(values["accuracy"] - score) for score in scores) < 0.04


def trained(folder, where, *changes):
    config = configure(folder, *changes)
    training.train(config, where)
    return restore(config, where)


@pytest.mark.parametrize(
    "changes",
    [
        (("adapt.kind", "lora"), ("adapt.rank", 2), ("freeze.recipe", "adapters")),
        (("adapt.kind", "bottleneck"), ("adapt.rank", 2), ("freeze.recipe", "adapters")),
        (("freeze.recipe", "bias_only"),),
        (("freeze.recipe", "norm_only"),),
        (("freeze.recipe", "last_n_stages"), ("freeze.stages", 2)),
        (("optim.layer_decay", 0.8), ("regularize.l2_sp", 0.01), ("regularize.label_smoothing", 0.1)),
        (("regularize.distill", 0.1), ("regularize.bss", 1e-3), ("regularize.dropout", 0.3)),
        (("optim.sam", 0.05), ("optim.ema", 0.9)),
        (("pretext.name", "masked"), ("pretext.weight", 0.5)),
    ],
)
def test_the_words_for_pictures_are_those_for_texts(folder, tmp_path, changes):
    summary = training.train(configure(folder, *changes, ("freeze.verify", True)), tmp_path)
    assert summary["freeze"]["changed"] == 0 and summary["metrics"]["loss"] < 0.75
    assert (summary["parameters"]["frozen"] > 0) == any(c[0] == "freeze.recipe" for c in changes)


def test_words_are_guessed_first(folder, tmp_path):
    both = ({"name": "words", "objective": "pretext", "epochs": 3.0}, {"name": "labels", "epochs": 2.0})
    usual = recipe.get_config().epochs
    config = configure(
        folder, ("pretext.name", "masked"), ("epochs", usual), ("phases", both), ("data.train_examples", 32)
    )
    summary = training.train(config, tmp_path)
    assert summary["examples"]["unlabelled"] == 96 and summary["steps"] == 36 + 8
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["phase"] == "words" and row["split"] == "train"]
    assert losses[-1] < losses[0]


def test_an_export_opens_again_with_the_same_answers(folder, tmp_path, capsys):
    config = configure(folder, ("adapt.kind", "lora"), ("adapt.rank", 2))
    task, _, state = trained(folder, tmp_path, ("adapt.kind", "lora"), ("adapt.rank", 2))
    net = pretrained.load(source="tl_jax", path=export(config, tmp_path))
    assert net.classes == ("0", "1") and not net.new_head
    texts = [GOOD, BAD]
    alone = stablehlo.run_program(tmp_path / "export" / "model.stablehlo", *net.tokenize(texts).values())
    found = Learner(config, tmp_path).show_predictions(texts)
    logits, _ = net.model.apply(net.variables, **net.tokenize(texts))
    for row, entry in zip(jax.nn.softmax(logits), found, strict=True):
        np.testing.assert_allclose(row, list(entry["probabilities"].values()), atol=1e-5)
    np.testing.assert_allclose(alone, jax.nn.softmax(logits), atol=1e-5)
    files = {*huggingface.SAVED_FILES, "model.stablehlo", *(f"run/{name}" for name in RUN_FILES)}
    assert files == set(formats.read_bundle(tmp_path / "export")["files"])
    assert "█" in capsys.readouterr().out
    kept = configure(folder, ("init.path", str(tmp_path / "export")), ("init.head", "keep"), ("epochs", 0.0))
    assert training.train(kept, tmp_path / "kept")["metrics"] == pytest.approx(
        read_json(tmp_path / "summary.json")["metrics"]
    )


def test_entities_are_drawn(folder, tmp_path, capsys):
    training.train(configure(folder, *TOKENS, ("epochs", 6.0)), tmp_path)
    (found,) = Learner(configure(folder, *TOKENS, ("epochs", 6.0)), tmp_path).show_predictions(["the world, acting!"])
    assert [entity["text"] for entity in found["entities"]] == ["the", "acting"]
    assert "[the](X) world, [acting](X)!" in capsys.readouterr().out
    Learner(configure(folder, *TOKENS, ("epochs", 6.0)), tmp_path).show_predictions(["the world", "the " * 600])
    assert "1 of 2 inputs are truncated to " in capsys.readouterr().out
    with pytest.raises(UserError, match="no inputs; pass a sentence"):
        Learner(configure(folder, *TOKENS, ("epochs", 6.0)), tmp_path).show_predictions([" "])


def named_classes(folder, where):
    """Write a copy of the texts whose classes and tags have other names."""
    where.mkdir(parents=True)
    for file in (*folder.glob("*.tsv"), *folder.glob("*.conll")):
        text = file.read_text().replace("\t0", "\tbad").replace("\t1", "\tgood")
        (where / file.name).write_text(text.replace("B-X", "B-Y"))
    return where


def test_a_kept_head_is_matched_by_the_names_of_classes(folder, tmp_path, capsys):
    net = huggingface.load("bert", folder / "net", 2)
    kept = {}
    for names in (("0", "1"), ("1", "0"), ("bad", "good"), ("no", "1")):
        huggingface.save(tmp_path / names[0] / names[1], net, names)
        changes = ("init.path", str(tmp_path / names[0] / names[1])), ("init.head", "keep")
        kept[names] = make_task(configure(folder, *changes)).init(jax.random.key(0))["params"]["head"]
    plain, turned, numbered, _ = kept.values()
    np.testing.assert_array_equal(turned["kernel"], np.asarray(plain["kernel"])[:, ::-1])
    np.testing.assert_array_equal(turned["bias"], np.asarray(plain["bias"])[::-1])
    np.testing.assert_array_equal(numbered["kernel"], plain["kernel"])  # the data have numbers only
    assert capsys.readouterr().out.count("the data have no class names, so output k") == 2
    changes = ("init.head", "keep"), ("data.dir", str(named_classes(folder, tmp_path / "named")))
    make_task(configure(folder, ("init.path", str(tmp_path / "bad" / "good")), *changes))
    with pytest.raises(UserError, match="other classes than the data: 'no', '1' missing, 'bad', 'good' new; pass"):
        make_task(configure(folder, ("init.path", str(tmp_path / "no" / "1")), *changes))


@pytest.mark.parametrize("kind", [(), TOKENS], ids=["text", "tokens"])
def test_texts_are_predicted_with_the_classes_of_the_run(folder, tmp_path, kind):
    data = tmp_path / "data"
    data.mkdir()
    for file in (*folder.glob("*.tsv"), *folder.glob("*.conll")):
        shutil.copy(file, data)
    other, run = named_classes(folder, tmp_path / "other"), tmp_path / "run"
    config, elsewhere = (configure(folder, *kind, ("data.dir", str(where)), ("epochs", 6.0)) for where in (data, other))
    summary = training.train(config, run)
    before = Learner(config, run).show_predictions(["good acting"])
    assert ("X" if kind else "1") in json.dumps(before)
    assert Learner(elsewhere, run).show_predictions(["good acting"]) == before
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="are not those of the run: .* missing, .* new; restore the classes"):
        training.test(elsewhere, run)
    test = data / ("test.conll" if kind else "test.tsv")
    test.write_text(("cafe O\n" if kind else "cafe ") + test.read_text())
    with pytest.raises(
        UserError, match="the test split differs from the one that the run was started with .31 examples"
    ):
        training.test(config, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    shutil.rmtree(data)
    assert Learner(config, run).show_predictions(["good acting"]) == before
    export(config, run)
    labels = read_json(run / "export" / "config.json")["id2label"]
    assert list(labels.values()) == summary["facts"]["classes"] == (["O", "B-X"] if kind else ["0", "1"])


def test_cut_texts_are_said(folder, capsys):
    make_task(configure(folder, ("input.max_length", 6)))
    assert "texts are truncated to 6 tokens; config.input.max_length may be up to 40" in capsys.readouterr().out


def test_heads_are_drawn_from_the_key_and_the_rest_is_loaded(folder):
    task = make_task(configure(folder))
    one, two = (tree.flatten(task.init(jax.random.key(i))["params"]) for i in range(2))
    differ = [path for path in one if not np.array_equal(one[path], two[path])]
    assert set(differ) <= {"head/kernel", "head/bias"} and "head/kernel" in differ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((("augment.flip", True),), "augment.flip has no effect with config.task=text"),
        ((("regularize.mixup", 0.2),), "regularize.mixup has no effect with config.task=text"),
        ((("model.name", "resnet50"),), "model.name=resnet50 is no network for task=text; choose one of bert, distil"),
        ((("init.source", "keras"),), "init.source=keras has no weights for task=text"),
        ((("init.source", "huggingface"), ("init.path", "")), "need a folder or a hub repository"),
        ((("pretext.name", "simclr"), ("pretext.weight", 1.0)), "pretext.name=simclr is not available for task=text"),
        ((("task", "tokens"), ("init.head", "ridge")), "init.head=ridge is not for task=tokens"),
        ((("task", "masked"), ("data.per_class", 3)), "data.per_class needs a label per example"),
        ((("data.text", ()),), "data.text=.* must name one or two columns"),
        ((("freeze.recipe", "last_n_stages"), ("freeze.stages", 9)), "the network does not have 9 stages"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        validate.validate(configure(folder, *changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((("task", "tokens"),), "has one label for each text; use a recipe with task=text"),
        ((*TOKENS, ("task", "text")), "has a tag for each word; use a recipe with task=tokens"),
        ((("data.label", "stars"),), "no column 'stars'"),
        ((("model.num_classes", 5),), "num_classes=5, but .* has 2 classes"),
    ],
)
def test_data_that_do_not_fit_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        make_task(configure(folder, *changes))
