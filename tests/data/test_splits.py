"""Validation cuts, thinning and test examples: stratified as scikit-learn's are, groups kept whole."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from tests.tasks import small
from tl_jax.data import dataset
from tl_jax.data.dataset import Split
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def split_of(labels, groups=None) -> Split:
    """Return a split whose images are their own row numbers."""
    labels = np.asarray(labels, np.int32)
    return Split(np.arange(len(labels), dtype=np.int32)[:, None, None, None], labels, groups)


def counts(part: Split, classes: int) -> list[int]:
    return np.bincount(part.labels, minlength=classes).tolist()


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("sizes", [(72, 8), (70, 10), (300, 40, 9, 2), (5, 5, 5, 5)])
def test_validation_has_as_many_of_each_class_as_scikit_learn_draws(sizes, share: float) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    wanted = round(share * len(labels))
    for seed in range(5):
        train, validation = dataset.split_validation(split_of(labels), share, seed)
        rows = np.concatenate([train.inputs[:].ravel(), validation.inputs[:].ravel()])
        assert sorted(rows.tolist()) == list(range(len(labels))) and len(validation.labels) == wanted
        if wanted < len(sizes):  # which scikit-learn refuses
            continue
        theirs = train_test_split(np.arange(len(labels)), test_size=wanted, stratify=labels, random_state=seed)[1]
        mine, expected = counts(validation, len(sizes)), np.bincount(labels[theirs], minlength=len(sizes)).tolist()
        assert np.abs(np.subtract(mine, expected)).max() <= 1  # equal remainders: either may have the one more
        assert np.abs(np.array(mine) - share * np.array(sizes)).max() <= 1


def test_another_seed_draws_another_validation_split_and_the_same_seed_the_same() -> None:
    whole = split_of(np.arange(60) % 3)
    drawn = [dataset.split_validation(whole, 0.2, seed)[1].inputs[:].ravel().tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] == sorted(drawn[0])


def test_a_class_with_one_example_stays_in_train_and_is_named(capsys) -> None:
    whole = split_of([0] * 20 + [1] * 20 + [2])
    for seed in range(5):
        train, validation = dataset.split_validation(whole, 0.5, seed, ("cat", "dog", "yak"))
        assert counts(train, 3)[2] == 1 and counts(validation, 3)[2] == 0
    assert capsys.readouterr().err == (
        "1 of 3 classes have a single training example (yak), which stays in train, so validation does not cover them\n"
    )
    with pytest.raises(UserError, match="no class of the 4 training examples has two, so none can be held out"):
        dataset.split_validation(split_of(range(4)), 0.5, 0)


def test_groups_stay_whole_and_classes_keep_their_shares() -> None:
    """At least as near to the shares as StratifiedGroupKFold comes, over uneven groups."""
    rng = np.random.default_rng(0)
    worse = 0
    for seed in range(6):
        sizes = rng.integers(1, 9, 60)
        groups = np.repeat([f"p{i}" for i in range(60)], sizes)
        labels = np.repeat((rng.random(60) < 0.15).astype(int), sizes)
        train, validation = dataset.split_validation(split_of(labels, groups), 0.2, seed)
        assert train.groups is not None and validation.groups is not None
        assert not set(train.groups) & set(validation.groups)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        theirs = np.bincount(labels[next(iter(folds))[1]], minlength=2)
        totals = np.bincount(labels)
        mine, other = (np.abs(np.asarray(c) / totals - 0.2).max() for c in (counts(validation, 2), theirs))
        assert mine < 0.1
        worse += mine > other + 0.02
    assert worse <= 1


def test_groups_of_one_image_each_are_cut_as_without_groups() -> None:
    labels = np.repeat([0, 1], [900, 100])
    validation = dataset.split_validation(split_of(labels, np.arange(1000).astype(str)), 0.1, 0)[1]
    assert counts(validation, 2) == [90, 10]


def test_a_class_of_one_group_stays_in_train(capsys) -> None:
    groups = np.array([f"g{i // 3}" for i in range(30)] + ["odd"] * 5)
    for seed in range(5):
        train, validation = dataset.split_validation(split_of([0] * 30 + [1] * 5, groups), 0.3, seed, ("well", "ill"))
        assert counts(train, 2)[1] == 5 and counts(validation, 2) == [9, 0]
    assert "1 of 2 classes have a single training group (ill), which stays in train" in capsys.readouterr().err
    with pytest.raises(UserError, match="every group .* is the only one of some class.*data.group"):
        dataset.split_validation(split_of([0] * 4 + [1] * 4, np.array(["x"] * 4 + ["y"] * 4)), 0.5, 0)


def test_training_and_test_examples_of_a_sorted_set_have_all_classes() -> None:
    whole = split_of(np.repeat([0, 1, 2], [400, 160, 40]))
    for seed in range(3):
        assert counts(dataset.subsample_train(whole, 60, 0, 3, seed), 3) == [40, 16, 4]
    test = dataset.subsample_test(whole, 30)
    assert counts(test, 3) == [20, 8, 2] and (np.diff(test.inputs[:].ravel()) > 0).all()
    for n in (0, 600, 1000):
        assert dataset.subsample_test(whole, n) is whole


def test_examples_without_a_class_are_drawn_at_random() -> None:
    """Boxes (N, M, 6), and a tag for each word."""
    tags = np.empty(50, object)
    tags[:] = [np.zeros(3, np.int32)] * 50
    for labels in (np.zeros((50, 4, 6), np.float32), tags):
        whole = Split(np.arange(50)[:, None], labels)
        train, validation = dataset.split_validation(whole, 0.1, 0)
        assert (len(train.labels), len(validation.labels)) == (45, 5)
        assert (
            len(dataset.subsample_test(whole, 8).labels) == len(dataset.subsample_train(whole, 8, 0, 1, 0).labels) == 8
        )
        assert dataset.subsample_test(whole, 8).inputs[:].ravel().tolist() != list(range(8))


def test_a_run_on_a_sorted_file_is_validated_and_tested_on_all_classes(tmp_path) -> None:
    rng, arrays = np.random.default_rng(0), {}
    for split, each in (("train", (80, 20)), ("test", (60, 40))):
        images = rng.integers(0, 255, (100, 8, 8), np.uint8)
        arrays |= {f"{split}_images": images, f"{split}_labels": np.repeat([0, 1], each)}
    np.savez(tmp_path / "sorted.npz", **arrays)
    task = small.task(
        ("data.name", "npz"), ("data.dir", str(tmp_path / "sorted.npz")), ("data.per_class", 0),
        ("data.validation", 0.1), ("data.train_examples", 45), ("data.test_examples", 10),
    )  # fmt: skip
    seen = {
        split: np.concatenate([b["label"][b["mask"] > 0] for b in task.eval_batches(split)])
        for split in ("validation", "test")
    }
    assert {split: np.bincount(labels).tolist() for split, labels in seen.items()} == {
        "validation": [8, 2], "test": [6, 4],
    }  # fmt: skip
    assert task.sizes["train"] == 45
