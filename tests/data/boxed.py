"""Folders of Pascal VOC with a few small pictures, for these tests."""

from PIL import Image

XML = "<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size>{objects}</annotation>"
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)
CAT, DOG = ("cat", 0, 10, 10, 30, 20), ("dog", 1, 0, 0, 64, 32)


def write_voc(folder, pictures, parts=None, size=(64, 32)):
    """Write pictures (width, height) with objects ``pictures`` {name: [(class, difficult, corners ...)]}."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for name, objects in pictures.items():
        Image.new("RGB", size, "red").save(folder / "JPEGImages" / f"{name}.png")
        text = XML.format(w=size[0], h=size[1], objects="".join(OBJECT.format(*each) for each in objects))
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    for part, names in (parts or {}).items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return folder


def some(folder, **parts):
    return write_voc(folder, {"a": [CAT, DOG], "b": [], "c": [CAT]}, parts or {"train": "ab", "test": "c"})
