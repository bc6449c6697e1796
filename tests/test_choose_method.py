"""The method that is chosen by validation: folds, errors, what is tried, and runs that it leaves."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

import tl_jax
from tl_jax import choose_method, method_trials
from tl_jax.config import recipe, schema, validate
from tl_jax.config_from_data import make_config
from tl_jax.data.dataset import Split, select_rows
from tl_jax.tasks.probe_strength import ProbeScore, make_folds
from tl_jax.train.workdir import read_json, write_json
from tl_jax.utils.errors import Diverged, UserError

SHORT = {"model": "resnet8", "image_size": 16, "epochs": 3.0}


def make_split(labels, groups=None):
    labels = np.asarray(labels, np.int32)
    return Split(np.zeros((len(labels), 4, 4, 3), np.uint8), labels, None if groups is None else np.asarray(groups))


def test_each_example_is_held_out_once_and_classes_keep_their_shares():
    labels = np.repeat([0, 1], [60, 30])
    folds = make_folds(make_split(labels), 2, seed=0)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(90))
    for train, held in folds:
        assert not set(train) & set(held) and np.bincount(labels[held]).tolist() == [20, 10]


def test_groups_stay_together():
    labels, groups = np.repeat([0, 1], 24), np.repeat(np.arange(12), 4)
    for train, held in make_folds(make_split(labels, groups), 2, seed=1):
        assert not set(groups[train]) & set(groups[held])


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 0, 1, 1, 2, 3, 4]])
def test_a_class_that_cannot_be_in_each_fold_gives_none(groups):
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 1] if groups else [0] * 7 + [1, 1]
    assert make_folds(make_split(labels, groups), 2, seed=0) == []


def test_of_many_examples_two_folds_say_enough():
    split = make_split(np.arange(1600) % 4)
    assert len(make_folds(split, 4, seed=2**40)) == 2
    assert len(make_folds(select_rows(split, np.arange(1500)), 4, seed=0)) == 3
    few_patients = make_split(np.arange(1600) % 4, np.arange(1600) // 4 % 9)
    assert len(make_folds(few_patients, 4, seed=0)) == 3


def test_a_part_of_many_examples_keeps_small_classes():
    part = choose_method._subsample(make_split(np.repeat([0, 1, 2], [9985, 8, 7])), 3, seed=0)
    assert np.bincount(part.labels)[1:].tolist() == [8, 7] and 2900 < len(part.labels) < 3100
    assert len(make_folds(part, 3, seed=0)) == 2


def test_the_standard_error_is_that_of_a_mean_and_grows_with_groups():
    values = np.random.default_rng(0).integers(-1, 2, 5000).astype(float)
    alone = method_trials.standard_error(values, np.arange(5000))
    np.testing.assert_allclose(alone, stats.sem(values), rtol=1e-3)  # but for the example that is added
    repeated = method_trials.standard_error(np.repeat(values, 4), np.repeat(np.arange(5000), 4))
    np.testing.assert_allclose(repeated, alone, rtol=1e-3)  # copies say nothing new
    assert method_trials.standard_error(np.zeros(10), np.arange(10)) == pytest.approx(0.1)
    assert method_trials.standard_error(values, np.zeros(5000)) == np.inf  # one patient says nothing of others


def test_gains_are_differences_of_scikit_learns_log_loss_at_the_best_temperatures():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 200, 3)), rng.integers(0, 3, 200)
    logits[:, np.arange(200), labels] += 1
    logits[1] *= 4  # surer than it should be, by no fault of its own
    answers = method_trials.Answers({0.0: softmax(logits[0], axis=1), 1.0: softmax(logits[1], axis=1)}, labels)
    grid = [[log_loss(labels, softmax(each / t, axis=1)) for t in np.geomspace(0.1, 10, 400)] for each in logits]
    assert answers.best_gains.mean() == pytest.approx(min(grid[0]) - min(grid[1]), abs=1e-4)
    assert list(answers.gains) == [answers.best_share] == [1.0]
    assert answers.accuracy(1.0) == (logits[1].argmax(1) == labels).mean()


def test_answers_about_folds_are_joined_in_their_order():
    parts = [
        method_trials.Answers({0.0: np.full((n, 2), n / 10), 1.0: np.full((n, 2), n / 5)}, np.arange(n)) for n in (2, 3)
    ]
    joined = method_trials.join(parts)
    assert (
        joined.labels.tolist() == [0, 1, 0, 1, 2] and joined.probabilities[1.0][:, 0].tolist() == [0.4] * 2 + [0.6] * 3
    )


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), ("", np.inf)])
def test_budgets(text, seconds):
    assert choose_method.parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["10", "min", "-1min", "nan s", "infx", "0s", "ten min"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="write 90s, 10min or 2h"):
        choose_method.parse_budget(text)


def candidates_with(*changes):
    config = recipe.override(recipe.get_config(), (("model.name", "resnet8"), ("method", "auto"), *changes))
    return method_trials.candidates(schema.freeze(config), 4)


def test_what_the_user_has_set_is_not_searched():
    assert [candidate.name for candidate in candidates_with()] == [
        "last 2 of 4 stages at 0.0001",
        "last 2 of 4 stages at 0.0003",
        "all stages at 0.0001",
    ]
    assert len(candidates_with(("optim.lr", 5e-4))) == 2  # the two depths
    (only,) = candidates_with(("freeze.recipe", "bias_only"), ("optim.lr", 5e-4))
    assert only.name == "what config.freeze lets train at 0.0005"
    assert candidates_with(("optim.name", "sgd"))[0].name.endswith("at 0.01")


@pytest.mark.parametrize(("model", "head"), [("resnet8", 10e-4), ("mobilenet_v2", 1e-4)])  # 128 and 1280 features
def test_the_head_learns_faster_the_fewer_features_it_reads(model, head):
    changes = dict(candidates_with(("model.name", model))[0].changes)
    assert changes["optim.lr"] == pytest.approx(head)
    assert changes["optim.lr"] * changes.get("optim.backbone_lr_scale", 1.0) == pytest.approx(1e-4)
    given = dict(candidates_with(("model.name", model), ("optim.lr", 5e-4))[0].changes)
    assert given["optim.lr"] == 5e-4 and "optim.backbone_lr_scale" not in given


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        ({"model.name": "resnet8"}, True),
        ({"model.name": "vgg16"}, False),  # which has no BatchNorm
        ({"model.name": "resnet8", "regularize.stochastic_norm": 0.5}, False),
        ({"model.name": "resnet8", "freeze.batch_stats": "train"}, False),
    ],
)
def test_norms_are_kept_where_there_are_some_and_nothing_else_is_said(changes, keeps):
    config = schema.freeze(recipe.override(recipe.get_config(), (("method", "auto"), *changes.items())))
    frozen = [("freeze.batch_stats", "frozen") in found.changes for found in method_trials.candidates(config, 4)]
    assert frozen == [keeps] * 3


def test_images_are_cropped_and_mirrored_only_where_they_keep_their_class():
    config = schema.freeze(recipe.override(recipe.get_config(), (("model.name", "resnet8"), ("method", "auto"))))
    crops = ("augment.resized_crop", 0.5), ("cache.views", 8)
    assert method_trials.augmentation(config, mirrored=False, examples=100) == crops
    assert method_trials.augmentation(config, True, 100) == (crops[0], ("augment.flip", True), crops[1])
    few_passes = schema.freeze(recipe.override(config, (("epochs", 3.0),)))
    assert method_trials.augmentation(few_passes, False, 100) == (crops[0], ("cache.views", 2))
    small = schema.freeze(recipe.override(config, (("input.size", 32),)))
    assert method_trials.augmentation(small, False, 100) == ()
    assert method_trials.augmentation(small, True, 100) == (("augment.flip", True), crops[1])
    two_passes = schema.freeze(recipe.override(config, (("epochs", 2.0),)))
    assert method_trials.augmentation(two_passes, False, 100) == crops[:1]  # one view would be met again and again


@pytest.mark.parametrize(
    ("changes", "augmented"),
    [
        ((("augment.rotate", 5.0),), ()),  # the user has said what is to be done
        ((("test_views", 2),), ("augment.resized_crop",)),  # which does not go with views that are drawn once
        ((("regularize.mixup", 0.2),), ("augment.resized_crop",)),
        ((("cache.features", "off"),), ("augment.resized_crop",)),
        ((("regularize.label_smoothing", 0.1),), ("augment.resized_crop", "cache.views")),
    ],
)
def test_what_is_said_of_augmentation_holds(changes, augmented):
    config = schema.freeze(recipe.override(recipe.get_config(), (("method", "auto"), *changes)))
    assert tuple(name for name, _ in method_trials.augmentation(config, False, 100)) == augmented


def test_texts_are_not_augmented():
    config = schema.freeze(recipe.override(recipe.get_config("text"), (("method", "auto"),)))
    assert method_trials.augmentation(config, True, 100) == ()


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("detection", {"method": "auto"}, "one class per example"),
        ("image", {"method": "auto", "init.source": "random"}, "pretrained weights"),
        ("image", {"method": "auto", "init.head": "logistic"}, "leave config.init.head=new"),
        ("image", {"method": "auto", "epochs": 0.0}, "config.epochs=0"),
        ("image", {"method": "auto", "wise_ft": True, "init.head": "logistic"}, "config.wise_ft"),
        ("image", {"method": "auto", "phases": ({"name": "a", "epochs": 1.0},)}, "config.phases"),
        ("image", {"budget": "10min"}, "config.method=auto only"),
        ("image", {"wise_ft_share": 0.5}, "config.wise_ft only"),
    ],
)
def test_contradictions_are_refused(task, changes, words):
    with pytest.raises(UserError, match=words):
        validate.validate(recipe.override(recipe.get_config(task), tuple(changes.items())))


def digit_images(n):
    """Return digits as images uint8 (N, 16, 16, 3), and their labels."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8)[:n] * 15.9).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    return np.repeat(pixels[..., None], 3, 3), labels[:n]


@pytest.fixture(scope="module")
def chosen_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / "run"
    data = digit_images(300)
    return data, tl_jax.fine_tune((data, digit_images(360)), workdir=folder, **SHORT)


@pytest.mark.slow
def test_a_choice_becomes_a_configuration_like_any_other(chosen_run):
    _, learner = chosen_run
    choice = json.loads((learner.workdir / choose_method.FILE).read_text())
    stored = json.loads((learner.workdir / "config.json").read_text())
    assert learner.config.method == "" and stored["method"] == ""
    fields = dict(choice["changes"])
    assert fields["init.head"] == "logistic" and learner.config.init.strength == fields["init.strength"] > 0
    names = [row["name"] for row in choice["tried"]]
    assert names[0] == "linear probe" and any(name.startswith("last 2 of 4 stages") for name in names)
    assert "against the probe" in choice["reason"]
    assert learner.config.epochs == fields.get("epochs", 3.0)  # 0 if the probe has stayed
    assert learner.summary["choice"] == {"reason": choice["reason"], "tried": choice["tried"]}
    assert "Choice of the method" in learner.report().read_text()


@pytest.mark.slow
def test_what_folds_have_judged_is_trained_on_all_examples(chosen_run):
    _, learner = chosen_run
    assert learner.config.data.validation == 0 and learner.summary["examples"]["train"] == 300


@pytest.mark.parametrize(
    ("changes", "may"),
    [({}, True), ({"data.validation": 0.2}, False), ({"patience": 2}, False), ({"calibrate": True}, False)],
)
def test_a_validation_part_is_kept_where_it_is_asked_for(changes, may):
    config = recipe.override(recipe.get_config(), (("method", "auto"), *changes.items()))
    split = make_split(np.arange(30) % 2)
    examples = choose_method.Examples(split, make_folds(split, 2, seed=0), False, True)
    assert choose_method._trains_on_all(schema.freeze(config), examples) == may
    assert not choose_method._trains_on_all(schema.freeze(config), examples._replace(are_part=True))


def test_a_mixture_is_that_of_the_trials_but_for_a_part_of_the_examples():
    config = schema.freeze(recipe.override(recipe.get_config(), (("method", "auto"),)))
    assert choose_method._mixture(0.5, config, are_part=False) == (("wise_ft", True), ("wise_ft_share", 0.5))
    assert choose_method._mixture(0.5, config, are_part=True) == (("wise_ft", True),)
    assert choose_method._mixture(1.0, config, are_part=True) == ()


@pytest.mark.slow
def test_the_same_call_does_not_choose_again(chosen_run, monkeypatch):
    data, learner = chosen_run
    monkeypatch.setattr(choose_method, "choose", lambda config: pytest.fail("it has been chosen"))
    again = tl_jax.fine_tune((data, digit_images(360)), workdir=learner.workdir, **SHORT)
    assert again.config == learner.config and again.summary == learner.summary


@pytest.mark.slow
def test_the_probes_strength_is_one_that_scikit_learn_finds_as_good(chosen_run):
    """The accuracy of the probe is that of scikit-learn's regression on the same features and folds."""
    from sklearn.linear_model import LogisticRegression

    (images, labels), learner = chosen_run
    choice = json.loads((learner.workdir / choose_method.FILE).read_text())
    features = np.stack([row.details["embedding"] for row in untrained_predictions(learner, images)])
    folds = make_folds(make_split(labels), 10, seed=0)
    right = []
    for train, held in folds:
        model = LogisticRegression(C=choice["tried"][0]["strength"], max_iter=2000).fit(features[train], labels[train])
        right.append(model.predict(features[held]) == labels[held])
    assert abs(np.concatenate(right).mean() - choice["tried"][0]["accuracy"]) < 0.01


def untrained_predictions(learner, images):
    probe = tl_jax.fine_tune(
        (images, np.arange(len(images)) % 10), method="logistic", workdir=learner.workdir.with_name("p"), **SHORT
    )
    return probe.predict(images, embeddings=True)


@pytest.mark.slow
def test_no_time_leaves_the_probe_and_what_trains_is_switched_off(tmp_path):
    options = {"budget": "1s", "patience": 3, "optim__ema": 0.9}
    learner = tl_jax.fine_tune(digit_images(100), workdir=tmp_path / "run", **options, **SHORT)
    choice = json.loads((tmp_path / "run" / choose_method.FILE).read_text())
    assert "no time" in choice["reason"] and learner.config.epochs == 0 and learner.config.init.head == "logistic"
    assert tl_jax.load_learner(tmp_path / "run").predict(digit_images(1)[0])[0].probability > 0
    with pytest.raises(UserError, match=r"with another config.epochs \(3.0 there, 5.0 here\); pass another workdir"):
        tl_jax.fine_tune(digit_images(100), workdir=tmp_path / "run", **options, **{**SHORT, "epochs": 5.0})
    (tmp_path / "run" / choose_method.FILE).write_text('{"request": {}}')
    with pytest.raises(UserError, match=r"choice.json has no changes; delete choice.json"):
        tl_jax.fine_tune(digit_images(100), workdir=tmp_path / "run", **options, **SHORT)


def test_a_choice_for_another_configuration_that_was_not_trained_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(choose_method, "choose", lambda config: {"changes": (), "tried": [], "reason": "none"})
    config = schema.freeze(recipe.override(recipe.get_config(), (("method", "auto"), ("model.name", "resnet8"))))
    first = choose_method.resolve(config, tmp_path)
    assert choose_method.chosen(config, tmp_path) == first and choose_method.record(first, tmp_path)
    other = schema.freeze(recipe.override(config, (("seed", 3),)))
    assert choose_method.chosen(other, tmp_path) is other


@pytest.mark.slow
@pytest.mark.parametrize("fold", [1, 2])
def test_what_diverges_is_no_candidate(fold, tmp_path, monkeypatch):
    took, real = [], method_trials.train

    def train(*arguments):
        took.append(arguments)
        if len(took) > 2 * (fold - 1):  # two candidates race
            raise Diverged("the loss is nan after 3 steps")
        return real(*arguments)

    monkeypatch.setattr(method_trials, "train", train)
    learner = tl_jax.fine_tune(digit_images(100), workdir=tmp_path / "run", **SHORT)
    choice = learner.summary["choice"]
    failed = [row["name"] for row in choice["tried"] if "the loss is nan after 3 steps" in row.get("error", "")]
    if fold == 1:
        assert learner.config.epochs == 0 and "the loss is nan after 3 steps" in choice["reason"] and len(failed) == 2
    else:  # the one that was behind on the first fold is judged by what it did there
        assert len(failed) == 1 and choice["reason"].startswith("last 2 of 4") and failed[0] not in choice["reason"]


@pytest.mark.slow
def test_too_few_of_a_class_leave_a_probe(tmp_path):
    images, _ = digit_images(12)
    data = images, np.repeat([0, 1], [10, 2])
    learner = tl_jax.fine_tune((data, data), data__validation=0.0, workdir=tmp_path / "run", **SHORT)
    assert learner.config.init.head == "logistic" and learner.config.epochs == 0


@pytest.mark.slow
def test_a_mixture_answers_without_data_and_weights(tmp_path):
    """What wise_ft has mixed is kept, so that a run is portable."""
    folder = tmp_path / "data"
    images, labels = digit_images(120)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"d{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"d{label}" / f"{i}.png")
    options = {"wise_ft": True, "wise_ft_share": 0.5, "init__head": "logistic", "method": "fine_tune"}
    learner = tl_jax.fine_tune(folder, workdir=tmp_path / "run", **SHORT, **options)
    before = [row.probabilities for row in learner.predict(images[:5])]
    shutil.rmtree(folder)
    again = tl_jax.load_learner(tmp_path / "run")
    assert [row.probabilities for row in again.predict(images[:5])] == before
    assert learner.summary["wise_ft"] == {"share": 0.5, "validation": {}}


@pytest.mark.slow
def test_a_flipped_bit_of_a_choice_is_noticed(chosen_run, tmp_path):
    _, learner = chosen_run
    intact = (learner.workdir / choose_method.FILE).read_bytes()
    for position in np.random.default_rng(0).integers(0, 8 * len(intact), 300):
        content = bytearray(intact)
        content[position // 8] ^= 1 << position % 8
        (tmp_path / choose_method.FILE).write_bytes(content)
        try:
            found = choose_method._read_choice(tmp_path)  # a flip in white space, or in the name of the hash
            assert {name: found[name] for name in choose_method.STATED}.items() <= json.loads(intact).items()
        except UserError as error:
            assert choose_method.FILE in str(error)


def test_the_task_of_a_fold_is_augmented_as_the_chosen_run(tmp_path):
    images, labels = digit_images(100)
    config = make_config((images, labels), "image", "resnet8", None)
    config.method, config.input.size = "auto", 64
    config = schema.freeze(config)
    pool, folds = choose_method._examples(config)[:2]
    trials = method_trials.Trials(config, pool, folds, 1.0, np.inf, mirrored=True)
    task = trials._load_fold(0)[0]
    chosen = schema.freeze(recipe.override(config, trials.common))
    assert task.feature_cache.augment == chosen.augment and chosen.augment.flip and chosen.augment.resized_crop == 0.5


@pytest.mark.parametrize(
    ("shares", "known", "of_mirrored", "may"),
    [
        ([0.5, 0.5], 0.9, 0.89, True),
        ([0.5, 0.5], 0.9, 0.6, False),
        ([0.99, 0.01], 0.99, 0.985, False),  # the shares of the classes alone say as much
        ([0.5, 0.5], 0.51, 0.51, False),  # who knows nothing says nothing
    ],
)
def test_images_are_mirrored_where_probes_know_them_as_well(shares, known, of_mirrored, may, monkeypatch):
    labels = np.repeat([0, 1], (np.asarray(shares) * 200).astype(int))
    split = make_split(labels)
    cache = SimpleNamespace(splits={"train": split}, features=lambda variables, part: np.zeros((len(part.labels), 4)))
    scores = [ProbeScore(-float(np.log(share)), share) for share in (known, of_mirrored)]
    monkeypatch.setattr(choose_method, "cross_validate", lambda *_: scores)
    folds = [(np.arange(200), np.arange(200))]
    assert choose_method._may_mirror(cache, {}, np.zeros((200, 4)), folds, 1.0, 0) == may


def test_a_mirrored_image_is_one():
    images, labels = digit_images(5)
    mirrored = choose_method._mirror(Split(images, labels), np.array([3, 1]))
    np.testing.assert_array_equal(mirrored.inputs, images[[3, 1], :, ::-1])


def test_penalties_of_training_are_left_out_of_a_probe():
    changes = (("method", "auto"), ("regularize.label_smoothing", 0.1), ("regularize.dropout", 0.2))
    config = schema.freeze(recipe.override(recipe.get_config(), changes))
    probe = choose_method._apply(config, choose_method._without_training(config))
    assert probe.epochs == 0 and probe.regularize.label_smoothing == 0 and probe.regularize.dropout == 0


def test_a_field_that_a_later_version_has_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(choose_method, "choose", lambda config: {"changes": (), "tried": [], "reason": "none"})
    config = schema.freeze(recipe.override(recipe.get_config(), (("method", "auto"), ("model.name", "resnet8"))))
    first, file = choose_method.resolve(config, tmp_path), tmp_path / choose_method.FILE
    choice = read_json(file)
    del choice["request"]["config.regularize.mixup"]
    choice["request"]["config.regularize.of_a_user"] = 0.0
    write_json(file, choice)
    (tmp_path / "checkpoints").mkdir()
    assert choose_method.chosen(config, tmp_path) == first
    with pytest.raises(UserError, match=r"with another config.seed \(0 there, 3 here\); pass another workdir"):
        choose_method.chosen(schema.freeze(recipe.override(config, (("seed", 3),))), tmp_path)


class FakeTrials(method_trials.Trials):
    """Candidates that are as sure of the labels as ``margins`` says, by the start of their names: (probe, share 1)."""

    def __init__(self, margins, lasts=100, n=600):
        config = schema.freeze(recipe.override(recipe.get_config(), (("model.name", "resnet8"), ("method", "auto"))))
        pool = make_split(np.arange(n) % 4)
        super().__init__(config, pool, make_folds(pool, 4, seed=0), 1.0, np.inf)
        self.margins, self.lasts, self.ran = margins, lasts, []

    def _load_fold(self, index):
        return type("Task", (), {"stages": ("a", "b", "c", "d")}), None, None

    def _run(self, candidate, index):
        self.ran.append((candidate.name, index))
        if len(self.ran) > self.lasts:
            return None  # the time is up
        labels = self.pool.labels[self.folds[index][1]]
        margin = next(margin for name, margin in self.margins.items() if candidate.name.startswith(name))
        if margin is None:
            raise Diverged("the loss is nan after 3 steps")
        noise = np.random.default_rng(index).normal(size=(len(labels), 4))
        hot = np.eye(4)[labels]
        at = {share: (1 - share) * 1.0 + share * margin for share in (0.0, *self.shares)}
        return method_trials.Answers({share: softmax(noise + m * hot, axis=1) for share, m in at.items()}, labels)


def test_the_better_half_goes_on_and_what_would_go_further_goes_deeper():
    trials = FakeTrials({"last 2 of 4 stages at 0.0001": 3.0, "last 2 of 4 stages at 0.0003": 2.9, "all": 2.0})
    best = trials.best()
    assert (best.candidate.name, best.share, best.is_ahead) == ("last 2 of 4 stages at 0.0001", 1.0, True)
    assert [index for name, index in trials.ran if name.endswith("0.0003")] == [0]
    assert [index for name, index in trials.ran if name.startswith("all")] == [0]  # it races against the best so far
    assert best.accuracies[1] > best.accuracies[0]
    deeper = FakeTrials({"last 2 of 4 stages at 0.0001": 2.0, "last 2 of 4 stages at 0.0003": 1.2, "all": 3.0})
    assert deeper.best().candidate.name == "all stages at 0.0001"
    by_chance = FakeTrials({"last": 1.02, "all": 3.0}, n=60)
    best = by_chance.best()
    assert best.share == 1.0 and 0 < best.gain < best.error
    assert not any(name.startswith("all") for name, _ in by_chance.ran)


def test_nothing_goes_deeper_where_the_probe_is_better():
    trials = FakeTrials({"last 2 of 4 stages at 0.0001": 0.5, "last 2 of 4 stages at 0.0003": 0.8, "all": 2.0})
    best = trials.best()
    assert best.candidate.name.endswith("0.0003") and best.share == 0.25 and not best.is_ahead and best.gain < 0
    assert not any(name.startswith("all") for name, _ in trials.ran)


def test_of_the_time_that_is_left_the_best_is_made():
    margins = {"last": 2.0, "all": 2.0}
    assert FakeTrials(margins, lasts=0).best() is None
    one = FakeTrials(margins, lasts=1).best()  # of one candidate on one fold
    assert one.candidate.name.endswith("0.0001") and one.is_ahead
    assert FakeTrials(margins, lasts=3).best().candidate.name.endswith("0.0001")  # the second fold says nothing yet


def test_a_gain_is_measured_on_folds_that_did_not_choose():
    """Of ten candidates that are no better than the probe the best one seems to be, on the folds that chose it."""
    trials = FakeTrials({})
    trials.shares = (1.0,)
    rng, seeming, cross_fitted = np.random.default_rng(0), [], []
    for _ in range(20):
        trained = {}
        for name in range(10):
            parts = []
            for index, (_, held) in enumerate(trials.folds):
                labels = trials.pool.labels[held]
                noise = np.random.default_rng(index).normal(size=(len(labels), 4)) + np.eye(4)[labels]
                probabilities = {0.0: softmax(noise, 1), 1.0: softmax(noise + rng.normal(size=noise.shape) / 3, 1)}
                parts.append(method_trials.Answers(probabilities, labels))
            trained[method_trials.Candidate(str(name), (), 1)] = parts
        comparison = trials._compare(trained)
        seeming.append(max(method_trials.join(parts).best_gains.mean() for parts in trained.values()))
        cross_fitted.append(comparison.gain)
    others = [method_trials.join(parts).best_gains.mean() for parts in trained.values()]
    assert np.mean(cross_fitted) < np.mean(seeming) - 0.003 and abs(np.mean(cross_fitted) - np.mean(others)) < 0.01


def test_what_is_not_finite_is_no_candidate(tmp_path, monkeypatch):
    images, labels = digit_images(100)
    config = make_config((images, labels), "image", "resnet8", None)
    config.method, config.input.size, config.epochs = "auto", 16, 1.0
    pool, folds = choose_method._examples(config := schema.freeze(config))[:2]
    monkeypatch.setattr(method_trials, "predict", lambda task, variables: np.full((len(folds[0][1]), 10), np.nan))
    trials = method_trials.Trials(config, pool, folds, 1.0, np.inf)
    assert trials.best() is None and "not finite" in trials.why_none()


def test_where_the_better_one_diverges_later_the_other_is_judged_by_what_it_did():
    trials = FakeTrials({"last 2 of 4 stages at 0.0001": 2.0, "last 2 of 4 stages at 0.0003": 3.0, "all": None})
    run = trials._run

    def diverge_on_the_second_fold(candidate, index):
        if index == 1 and candidate.name.endswith("0.0003"):
            raise Diverged("the loss is nan after 3 steps")
        return run(candidate, index)

    trials._run = diverge_on_the_second_fold
    best = trials.best()
    assert best.candidate.name.endswith("0.0001") and best.share == 1.0


def test_a_candidate_that_diverges_leaves_the_others():
    trials = FakeTrials({"last 2 of 4 stages at 0.0001": None, "last 2 of 4 stages at 0.0003": 2.0, "all": None})
    assert trials.best().candidate.name.endswith("0.0003")
    nothing = FakeTrials({"last": None, "all": None})
    assert nothing.best() is None and "nan after 3 steps" in nothing.why_none()
