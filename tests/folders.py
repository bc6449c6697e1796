"""Folders as users bring them: ``data``, something ``new`` to predict and, of some, ``weights`` to start from."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tl_jax.data.faces import draw_faces
from tl_jax.pretrained.catalog import EMBEDDED_BERT, EMBEDDED_RESNET8


def write_photos(folder: Path) -> None:
    """Dark and light images, and weights to start from."""
    rng = np.random.default_rng(0)
    for name, value in (("dark", 60), ("light", 190)):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(rng.normal(value, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{i}.png")
    shutil.copy(folder / "data" / "light" / "0.png", folder / "new.png")
    shutil.copy(EMBEDDED_RESNET8["cifar10"], folder / "weights.safetensors")


def write_texts(folder: Path) -> None:
    """A table of good and bad, and weights to start from."""
    (folder / "data").mkdir()
    rows = [f"{'good' if i % 2 else 'bad'} work {i},{'plus' if i % 2 else 'minus'}" for i in range(40)]
    (folder / "data" / "mail.csv").write_text("\n".join(["text,label", *rows]))
    shutil.copytree(EMBEDDED_BERT, folder / "weights")


def write_boxes(folder: Path) -> None:
    """Squares, as Pascal VOC has them."""
    for name in ("JPEGImages", "Annotations"):
        (folder / "data" / name).mkdir(parents=True)
    corners = "<xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>40</ymax>"
    for i in range(16):
        pixels = np.full((64, 64, 3), i, np.uint8)
        pixels[8:40, 8:40] = 250
        Image.fromarray(pixels).save(folder / "data" / "JPEGImages" / f"{i}.jpg")
        (folder / "data" / "Annotations" / f"{i}.xml").write_text(
            f"<annotation><filename>{i}.jpg</filename><size><width>64</width><height>64</height><depth>3</depth></size>"
            f"<object><name>square</name><bndbox>{corners}</bndbox></object></annotation>"
        )
    shutil.copy(folder / "data" / "JPEGImages" / "3.jpg", folder / "new.jpg")


def write_people(folder: Path) -> None:
    """Drawn faces, and a second copy of them that stays."""
    album = draw_faces()
    for i, (image, person) in enumerate(zip(album.examples.inputs, album.examples.labels, strict=True)):
        person_folder = folder / "data" / album.identities[person]
        person_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(person_folder / f"{i}.png")
    shutil.copytree(folder / "data", folder / "known")
    shutil.copy(next((folder / "known" / "person01").iterdir()), folder / "new.png")
