"""Readers of data sets, each registered under a name for ``config.data.name``."""

from tl_jax.data import (  # noqa: F401  # registers the readers
    coco,
    faces,
    image_folder,
    image_list,
    medmnist,
    synthetic,
    text_datasets,
    tfds,
    voc,
)
from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.registry import DATASETS, DatasetOptions, register_dataset

__all__ = ["DATASETS", "Dataset", "DatasetOptions", "Split", "register_dataset"]
