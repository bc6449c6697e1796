"""Folders of people: who is in which part, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_jax.data import faces, image_folder, synthetic
from tl_jax.data.dataset import Split
from tl_jax.data.faces import FaceSet, SplitOptions
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
USUAL = SplitOptions(0.25, (), 0, 0.2, 0, 0)


def album(counts):
    """Return an album whose pictures have their own numbers as pixels."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    names = tuple(f"p{i:02d}" for i in range(len(counts)))
    files = tuple(Path(names[k]) / f"{i}.png" for i, k in enumerate(labels))
    return FaceSet("set", Split(images, labels), names, files)


def seen(part, whole):
    """Return who is on the pictures of a part, by their pixels."""
    return set(whole.examples.labels[np.asarray(part.inputs)[:, 0, 0, 0]].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_in_two_parts(seed):
    whole = album([3] * 40)
    source, rows = faces.split_identities(whole, USUAL._replace(seed=seed, validation_seed=seed))
    parts = [seen(part, whole) for part in (source.train, source.validation, source.test)]
    assert [len(part) for part in parts] == [24, 6, 10] and len(set.union(*parts)) == 40
    assert set(whole.examples.labels[rows].tolist()) == parts[2]
    # Labels count the people in training first, in the order of the names of classes.
    assert set(source.train.labels.tolist()) == set(range(24)) and min(source.test.labels) == 30
    first = whole.identities[whole.examples.labels[np.asarray(source.train.inputs)[0, 0, 0, 0]]]
    assert source.classes[source.train.labels[0]] == first and len(source.classes) == 24
    assert source.test_origin == "10 people who are not in training"


def test_the_people_tested_depend_on_their_own_seed():
    whole = album([3] * 40)

    def tested(**changes):
        return seen(faces.split_identities(whole, USUAL._replace(**changes))[0].test, whole)

    assert tested() == tested(validation_seed=5) != tested(seed=5)
    assert len(tested(test_size=7)) == 7


def test_a_person_in_two_parts_is_caught():
    faces.check_disjoint({"train": np.array([0, 0, 1]), "test": np.array([2, 3])})
    with pytest.raises(AssertionError, match="person 1 is in train and in test"):
        faces.check_disjoint({"train": np.array([0, 1]), "test": np.array([1, 2])})


def test_people_by_name_and_people_left_out():
    whole = album([1, 3, 1, 3, 3, 3, 1])
    source, _ = faces.split_identities(whole, USUAL._replace(test_names=("p00", "p03"), validation=0.0, min_images=2))
    assert seen(source.test, whole) == {0, 3} and source.classes == ("p01", "p04", "p05")
    assert source.validation is None
    with pytest.raises(UserError, match="no images of 'p98' .2 of 3 people are missing.; choose one of"):
        faces.split_identities(whole, USUAL._replace(test_names=("p98", "p00", "p99"), min_images=2))
    with pytest.raises(UserError, match="set: no images of 'p99'; choose one of p00, p01"):
        faces.split_identities(whole, USUAL._replace(test_names=("p00", "p99"), min_images=2))


@pytest.mark.parametrize(
    "counts,changes,message",
    [
        ([3, 3, 1, 3, 1, 3], {}, "a single image of 'p02' .and 1 more., and verification needs two.*min_images=2"),
        ([3] * 8, {"test_size": 20}, "test_identities=20, but set has 8 people"),
        ([3] * 8, {"test_size": 7}, "test_identities=7, but set has 8 people"),
        ([3] * 12, {"test_size": 1}, "1 people remain for the test, fewer than two"),
        ([3] * 12, {"test_size": 0.0}, "0 people remain for the test"),
        ([3] * 8, {"test_size": 0.5}, "data.validation=0.2 of 4 people is 1, but verification needs two"),
        ([3] * 6, {"test_size": 2, "validation": 0.8}, "1 people remain for training"),
    ],
)
def test_too_few(counts, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        faces.split_identities(album(counts), USUAL._replace(**changes))
    assert "\n" not in str(caught.value)


def draw(path, pictures):
    for name, count in pictures.items():
        (path / name).mkdir(parents=True)
        for i in range(1, count + 1):
            Image.fromarray(np.full((5, 4), 10 * i, np.uint8)).save(path / name / f"{name}_{i:04d}.png")
    return path


def test_folders_are_read_whole(tmp_path):
    found = faces.read_faces(draw(tmp_path / "set", {"Ann_Lee": 2, "Bo": 3}), 8)
    assert (
        found.name == "set"
        and found.identities == ("Ann_Lee", "Bo")
        and found.examples.labels.tolist() == [0] * 2 + [1] * 3
    )
    assert found.examples.inputs.shape == (5, 5, 4, 3) and found.files[2] == tmp_path / "set/Bo/Bo_0001.png"
    assert (found.examples.inputs[1] == 20).all()  # grey in three channels


def test_folders_that_hold_nobody(tmp_path):
    with pytest.raises(UserError, match=f"no folder {tmp_path}/none"):
        faces.read_faces(tmp_path / "none", 8)
    with pytest.raises(UserError, match="has fewer than two class folders .0."):
        faces.read_faces(tmp_path, 8)
    (draw(tmp_path, {"Ann": 2, "Bo": 2}) / "Cy").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/Cy has no images"):
        faces.read_faces(tmp_path, 8)


def test_pictures_of_a_folder_by_name(tmp_path):
    draw(tmp_path, {"Bo": 1, "Ann": 1, ".hidden": 1})
    (tmp_path / "notes.txt").write_text("x")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "loose.jpg")
    files = image_folder.list_images(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in files] == ["Ann/Ann_0001.png", "Bo/Bo_0001.png", "loose.jpg"]
    assert image_folder.list_images(files[2]) == [files[2]]
    with pytest.raises(UserError, match="no file or folder .*none; check the input"):
        image_folder.list_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images .*check the input"):
        image_folder.list_images(tmp_path / "empty")


def test_drawn_people_are_nearer_to_themselves_than_to_others():
    pictures, names = synthetic.draw_faces(8, 6)
    assert pictures.inputs.shape == (48, 32, 32, 3) and pictures.inputs.dtype == np.uint8 and len(names) == 8
    again, _ = synthetic.draw_faces(8, 6)
    np.testing.assert_array_equal(pictures.inputs, again.inputs)
    middle = pictures.inputs[:, 8:24, 10:22].reshape(48, -1).astype(float)
    distance = np.linalg.norm(middle[:, None] - middle[None], axis=-1)
    same = pictures.labels[:, None] == pictures.labels[None]
    assert distance[same & ~np.eye(48, dtype=bool)].mean() < 0.8 * distance[~same].mean()


def test_lfw_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    class Lfw(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("0.1.1")
        name = "lfw"

        def _info(self):
            features = {"label": tfds.features.Text(), "image": tfds.features.Image(shape=(6, 6, 3))}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, name in enumerate(("Bo", "Zoë_Ann", "Bo", "Cy", "Zoë_Ann")):
                yield i, {"label": name, "image": Image.new("RGB", (6, 6), (10 * i,) * 3)}

    Lfw(data_dir=tmp_path, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    found = faces.load_lfw(str(tmp_path), 6)
    assert found.name == "lfw:0.1.1" and found.identities == ("Bo", "Cy", "Zoë_Ann")
    by_pixel = {
        int(image[0, 0, 0]): found.identities[k]
        for image, k in zip(found.examples.inputs[:], found.examples.labels, strict=True)
    }
    assert sorted(by_pixel.values()) == ["Bo", "Bo", "Cy", "Zoë_Ann", "Zoë_Ann"] and by_pixel[30] == "Cy"


@pytest.mark.data
def test_the_real_faces(data_dir):
    if not (data_dir / "faces_orl").is_dir():
        pytest.skip("no faces_orl in the test data")
    whole = faces.read_faces(data_dir / "faces_orl", 96)
    assert len(whole.identities) == 40 and whole.examples.inputs.shape == (400, 112, 92, 3)
    source, rows = faces.split_identities(whole, USUAL._replace(test_size=10, validation=0.0))
    assert len(source.train.labels) == 300 and len(rows) == 100
    trained = {
        path.parent.name
        for path, k in zip(whole.files, whole.examples.labels, strict=True)
        if whole.identities[k] in source.classes
    }
    assert len(trained) == 30 and not trained & {whole.files[row].parent.name for row in rows}
