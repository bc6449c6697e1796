"""Labels that are numbers of classes: a cast would wrap some, and an index out of range would train to NaN."""

import numpy as np
import pytest

from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.labels import class_indices, make_label_map
from tl_jax.tasks.run_record import NEW_RUN
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
IMAGES = np.zeros((3, 2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 10**6], "set, train: example 2 has the label 1000000, but the 10 classes are 0 to 9"),
        ([0, 2**40 + 3, 1], "example 1 has the label 1099511627779"),
        (np.asarray([0, 2**63 + 3, 1], np.uint64), "example 1 has the label 9223372036854775811"),
        ([-1, 10, 1], r"example 0 has the label -1, .*\(2 of 3 labels are out of range\)"),
        ([0.0, 1.0, 2.0], "labels of type float64"),
        ([0.0, np.nan, 2.0], "labels of type float64"),
        (["0", "1", "2"], "labels of type <U1"),
        ([True, False, True], "labels of type bool"),
        ([[0, 1], [1, 0], [1, 1]], r"labels of type int64 \(3, 2\)"),
        (np.asarray([0, None, 1], object), "labels of type object"),
        (5, r"labels of type int64 \(\)"),
    ],
)
def test_numbers_that_are_no_classes(labels, said):
    with pytest.raises(UserError, match=said):
        class_indices(labels, 10, "set, train")


def test_numbers_that_are_classes():
    for kind in (np.uint8, np.int16, np.uint64, np.int64):
        found = class_indices(np.asarray([[0], [9], [3]], kind), 10, "set")
        assert found.dtype == np.int32 and found.tolist() == [0, 9, 3]
    assert class_indices([-1, 9], 10, "set", allow_missing=True).tolist() == [-1, 9]


def boxes(kind):
    return np.asarray([[[0, 0, 1, 1, kind, 0], [0, 0, 0, 0, -1, 0]]] * 3, np.float32)


def tags(last):
    found = np.empty(3, object)
    found[:] = [np.asarray([0, 1]), np.asarray([1]), np.asarray([1, 0, last])]
    return found


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("good", "wrong", "row"),
    [
        (np.asarray([0, 1, 1]), np.asarray([0, 1, 2]), 2),
        (np.asarray([0, 1, 1]), np.asarray([0, -1, 1]), 1),
        (boxes(1), boxes(7), 0),
        (tags(1), tags(9), 2),
        (tags(1), tags(-1), 2),
    ],
)
def test_every_task_refuses_a_label_that_is_no_class(part, good, wrong, row):
    def source(**changed):
        split = Split(IMAGES, good)
        return Dataset("set", split, split, ("a", "b"), validation=split)._replace(**changed)

    nothing = IMAGES[:0], good[:0]
    assert NEW_RUN.source(source, *nothing).classes == ("a", "b")
    with pytest.raises(UserError, match=f"set, {part}: example {row} has the label .*, but the 2 classes are 0 to 1"):
        NEW_RUN.source(lambda: source(**{part: Split(IMAGES, wrong)}), *nothing)


def test_names_that_are_texts_are_no_classes():
    with pytest.raises(UserError, match=r"a.csv: 2 labels have more than 1,000 characters, such as '9999.*not classes"):
        make_label_map(["1", "2", "9" * 5000, "x" * 1001], "a.csv")
    assert make_label_map(["1", "²"], "a.csv").names == ("1", "²")
    assert make_label_map(["1", "x" * 1000], "a.csv").names == ("1", "x" * 1000)
