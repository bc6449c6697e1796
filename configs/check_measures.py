"""Refuse what is measured of pictures, and how they are grouped and windowed, where it cannot mean what it says."""

from collections.abc import Callable
from typing import Any

from configs.fields import METRICS, OF_PICTURES
from tl_jax.data import dicom, medmnist, sources, value_range

LISTED = ("folder", "flowers", "index")  # data of image files, DICOM too, that may have an index.csv beside them
OUTSIDE = (*LISTED, "coco")  # data of image files that a file names, or that lie in folders of classes


def measures(config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
    """Return what is wrong with a configuration, and whether it is.

    Raises:
        UserError: a window or a range of values that is none.
    """
    dicom.levels(config.data.windows)
    value_range.parse(config.data.range)
    unknown = [name for name in config.metrics if name not in METRICS]
    return {
        f"metrics has {(unknown or [''])[0]!r}, which is none of {', '.join(METRICS)}": unknown,
        "score=auc needs auc among config.metrics": config.score == "auc" and "auc" not in config.metrics,
        "specificity has an effect with sensitivity among config.metrics only": (
            changed("specificity") and "sensitivity" not in config.metrics
        ),
        "positive has an effect with auc or sensitivity among config.metrics only": (
            config.positive and not {"auc", "sensitivity"} & set(config.metrics)
        ),
        "calibrate needs a validation part; raise config.data.validation": (
            config.calibrate and not config.data.validation
        ),
        f"data.group has an effect with config.data.name={', '.join(LISTED)} only": (
            config.data.group and config.data.name not in LISTED
        ),
        f"data.dir={config.data.dir!r} has no effect with config.data.name={config.data.name}, which reads no folder; "
        "set --config.data.name=folder for class folders with pictures": (
            config.task in OF_PICTURES and config.data.dir and config.data.name in (*sources.EMBEDDED, *medmnist.SETS)
        ),
        f"data.range has no effect with config.data.name={config.data.name}, whose images have 8 bits": (
            changed("data.range") and config.data.name in (*sources.EMBEDDED, *medmnist.SETS)
        ),
        f"data.max_pixels has no effect with config.data.name={config.data.name}, which reads no image files": (
            config.data.max_pixels and config.data.name in (*sources.EMBEDDED, *medmnist.SETS, "npz")
        ),
        f"data.outside has an effect with config.data.name={', '.join(OUTSIDE)} only": (
            config.data.outside and config.data.name not in OUTSIDE
        ),
        "data.label is for texts and for config.data.name=index": (
            config.task in OF_PICTURES and changed("data.label") and config.data.name != "index"
        ),
    }
