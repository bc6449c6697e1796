"""Defaults of each method for data that a user names: enough steps, images cropped, and nothing contradicts itself."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tl_jax.config import schema, validate
from tl_jax.config_from_data import MIN_STEPS, SMALL_BATCH, apply_method, make_config
from tl_jax.restore import make_task
from tl_jax.tasks.image_task import usual_size
from tl_jax.transfer.methods import names_for_task

NO_CROPS = ("auto", "logistic", "ridge")  # a probe sees each image as it is


def digit_images(n):
    digits = load_digits()
    images = np.repeat(np.repeat(digits.images[:n], 2, 1), 2, 2)[..., None].repeat(3, -1) * 15
    return images.astype(np.uint8), digits.target[:n]


def configured(data, method, size=64, **fields):
    config = make_config(data, "", "resnet8" if isinstance(data, tuple) else "", None)
    if "size" in config.input:
        config.input.size = size
    for path, value in fields.items():
        schema.set_field(config, path.replace("__", "."), value)
    apply_method(config, method, None, [path.replace("__", ".") for path in fields])
    return validate.validate(config)


@pytest.mark.parametrize("method", names_for_task("image"))
def test_each_method_is_valid_and_crops_images_of_few(method):
    config = configured(digit_images(100), method)
    assert config.augment.resized_crop == (0.0 if method in NO_CROPS else 0.5)
    assert not config.augment.flip  # nobody has looked whether a mirrored image is of the same class
    assert config.batch_size == SMALL_BATCH


@pytest.mark.parametrize(
    "model, weights, size",
    [("resnet8", None, 32), ("resnet18", None, 224), ("resnet50v2", None, 224), ("inception_v3", "torchvision", 299)],
)
def test_the_usual_image_size_is_that_of_the_weights_whatever_their_source(model, weights, size):
    assert usual_size(make_config(digit_images(100), "", model, weights)) == size


@pytest.mark.parametrize(
    "model, source",
    [
        *((name, "keras") for name in ("mobilenet_v2", "mobilenet_v2_035", "resnet50", "vgg16", "inception_v3")),
        ("resnet18", "torchvision"), ("vit_base16", "timm"), ("dinov3_small16", "huggingface"), ("resnet8", "tl_jax"),
    ],
)  # fmt: skip
def test_the_default_weights_are_the_first_that_are_published(model, source):
    config = make_config(digit_images(100), "", model, None)
    assert (config.init.source, config.init.path) == (source, "")


@pytest.mark.parametrize("method", names_for_task("text"))
def test_each_method_is_valid_for_texts(method):
    labels = ["good", "bad"] * 20
    data = {"text": [f"{label} film {i}" for i, label in enumerate(labels)], "label": labels}
    config = configured(data, method)
    assert config.batch_size == SMALL_BATCH and config.optim.schedule == "cosine"
    trains = config.phases or config.epochs
    assert bool(config.min_steps) == bool(trains and not config.phases)
    if config.init.head == "new" and config.init.source != "random" and not config.pretext.name and method != "auto":
        assert config.optim.lr * config.optim.backbone_lr_scale == pytest.approx(5e-5)


def test_images_of_a_few_pixels_are_not_cropped():
    assert configured(digit_images(100), "lp_ft", size=63).augment.resized_crop == 0.0


def test_phases_have_the_steps_that_other_methods_have():
    config = configured(digit_images(100), "gradual", data__validation=0.0)
    assert MIN_STEPS <= make_task(config).plan()[-1].stop <= MIN_STEPS + 3
    assert config.phases[0].recipe == "head" and not config.min_steps
    larger = configured(digit_images(100), "gradual", data__validation=0.0, batch_size=64)
    assert MIN_STEPS <= make_task(larger).plan()[-1].stop <= MIN_STEPS + 3


def test_a_new_head_learns_faster_the_fewer_features_it_reads():
    few = configured(digit_images(100), "fine_tune")
    assert few.optim.lr == pytest.approx(1e-3 * 1280 / 128) and few.init.head == "new"
    assert few.optim.lr * few.optim.backbone_lr_scale == pytest.approx(1e-4)
    for rate in (1e-3, 3e-3):  # the former is the default, and holds as well if it is asked for
        config = configured(digit_images(100), "fine_tune", optim__lr=rate)
        assert config.optim.lr == rate and config.optim.lr * config.optim.backbone_lr_scale == pytest.approx(1e-4)
    one_rate = configured(digit_images(100), "fine_tune", optim__backbone_lr_scale=0.0)
    assert (one_rate.optim.lr, one_rate.optim.backbone_lr_scale) == (1e-3, 0.0)


def test_where_few_values_train_the_head_is_fitted_first():
    for method in ("head", "norm_only", "bias_only", "lora"):
        config = configured(digit_images(100), method)
        assert (config.init.head, config.optim.lr) == ("logistic", 1e-3)
        config = configured(digit_images(100), method, init__head="new")
        assert (config.init.head, config.init.folds) == ("new", 0)


def test_folds_choose_the_strength_of_a_probe_unless_it_is_given():
    for method in ("logistic", "lp_ft", "norm_only"):
        assert configured(digit_images(100), method).init.folds == 3
    assert configured(digit_images(100), "logistic", init__strength=0.5).init.folds == 0


def test_what_trains_below_a_fitted_head_starts_from_a_weaker_one_unless_few_values_train():
    assert [configured(digit_images(100), method).init.start_loss for method in ("lp_ft", "wise_ft")] == [0.9, 0.9]
    assert [configured(digit_images(100), method).init.start_loss for method in ("logistic", "lora")] == [0.0, 0.0]
    assert configured(digit_images(100), "lp_ft", init__start_loss=0.0).init.start_loss == 0.0
    config = configured(digit_images(100), "lp_ft")
    assert config.optim.lr > 1e-4 and config.optim.lr * config.optim.backbone_lr_scale == pytest.approx(1e-4)


def test_a_new_head_needs_no_folds():
    assert configured(digit_images(100), "fine_tune").init.folds == 0


def test_what_the_user_says_of_augmentation_holds():
    config = configured(digit_images(100), "lp_ft", augment__jitter=0.2)
    assert config.augment.jitter == 0.2 and config.augment.resized_crop == 0.0
    assert configured(digit_images(100), "lp_ft", augment__resized_crop=0.0).augment.resized_crop == 0.0
