"""Looks at a configuration: which learning rate suits it, what augmentation does, what its network sees or does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import base, check
from configs.fields import OF_PICTURES
from tl_jax.data.augment import Augment, augment
from tl_jax.data.box_augment import augment_boxes
from tl_jax.data.boxes import CLASS
from tl_jax.errors import UserError
from tl_jax.report import boxes, overlays, pictures, rate_curve
from tl_jax.rl import film, worlds
from tl_jax.runs import check_batches, make_task, restore
from tl_jax.task import Task
from tl_jax.tasks import policy
from tl_jax.train import rate_finder, workdir
from tl_jax.train.log import say
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.workdir import write_json
from tl_jax.transfer import phases
from tl_jax.transfer.pretext import Pretext

ROWS, COLUMNS = 6, 7  # of a preview


def find_lr(config: base.Config, folder: str | Path) -> rate_finder.Sweep:
    """Try rising learning rates on the first phase; write ``find_lr.json`` and ``find_lr.png`` to ``folder``."""
    if config.task == "policy":
        raise UserError("--mode=find_lr reads the loss of a batch; a policy has none, compare runs by their returns")
    config, task = _first(config)
    plan = phases.resolve(config, task.sizes, task.parts)
    if not plan:
        raise UserError("config.epochs=0 trains nothing; raise it to look for a learning rate")
    say(f"{task.name}, phase {plan[0].name}: up to 100 steps with rising learning rates ...")
    found = rate_finder.sweep(task, plan[0], config.seed)
    folder = Path(folder).expanduser()
    with workdir.exclusive(folder):
        write_json(folder / "find_lr.json", {k: np.asarray(v).tolist() for k, v in found._asdict().items()})
        title = f"{task.name}, phase {plan[0].name}, {plan[0].optim.name}, batches of {config.batch_size}"
        marks = {"steepest fall": found.steepest, "lowest loss": found.lowest, "suggested": found.suggested}
        path = rate_curve.draw(*found[:3], marks, title, folder / "find_lr.png")
    scale = plan[0].rate.lr / config.optim.lr if config.optim.lr else 1.0  # the phase's own factor
    say(f"steepest fall at {found.steepest:.1e}, lowest loss at {found.lowest:.1e}; picture: {path}")
    say(f"try --config.optim.lr={found.suggested / (scale or 1.0):.1e} (it was {config.optim.lr:g})")
    return found


def preview(config: base.Config, folder: str | Path) -> list[Path]:
    """Draw what training gets to see; write ``preview.png`` to ``folder``.

    Pictures, those of the first steps' batches, are drawn beside what augmentation makes of them, with their boxes
    where they have some. Texts are drawn in the pieces that the network reads, with their labels, tags, padding and
    hidden words. Of a policy it is an episode as the run starts. Where there is a pretext, ``preview_pretext.png`` has
    its views, or its hidden words.
    """
    config, task = _first(config)
    folder = Path(folder).expanduser()
    with workdir.exclusive(folder):
        kind = _preview_pictures if config.task in OF_PICTURES else PREVIEWS[config.task]
        paths = kind(task, config, folder)
    for path in paths:
        say(f"picture: {path}")
    return paths


def _preview_pictures(task: Task, config: base.Config, folder: Path) -> list[Path]:
    hows = {"preview": Augment(**config.augment.to_dict())}
    if config.pretext.name:
        hows["preview_pretext"] = Pretext.of(config.pretext.to_dict()).views
    return [_draw(task, config, how, folder / f"{name}.png") for name, how in hows.items()]


def _preview_texts(task: Task, config: base.Config, folder: Path) -> list[Path]:
    from tl_jax.tasks import text_views  # with the tokenizers, which pictures have no use for

    return text_views.draw(task, config, folder)


def _preview_policy(task: Task, config: base.Config, folder: Path) -> list[Path]:
    world = worlds.make(config.rl.world, config.rl.physics)
    variables = initial_state(task, config.seed).variables
    played = film.play(world, policy.network(config, world), variables, jax.random.key(config.seed))
    title = f"{task.name}, before training: {len(played.observations)} steps, return {played.returned:g}"
    return [film.strip(world, played, title, folder / "preview.png")]


PREVIEWS = {"text": _preview_texts, "tokens": _preview_texts, "masked": _preview_texts, "policy": _preview_policy}


def explain(config: base.Config, folder: str | Path, inputs: Sequence[str]) -> Path:
    """Show where a run's network sees the class it takes each picture for (Grad-CAM); write ``explain.png``.

    Args:
        config: of the run.
        folder: of the run, where the picture goes.
        inputs: picture files, and folders with some.
    """
    if config.task != "image":
        raise UserError(f"--mode=explain shows where in a picture a network looks; config.task={config.task} has none")
    folder = Path(folder).expanduser()
    task, _, state = restore(config, folder, data=False)
    assert task.explain
    found = task.explain(state.variables, inputs)
    pairs = zip(found.files, found.found, found.sure, strict=True)
    captions = [f"{file.parent.name}/{file.name}: {name} {share:.2f}" for file, name, share in pairs]
    path = overlays.draw(found.seen, found.maps, captions, f"{task.name}: Grad-CAM", folder / "explain.png")
    say("\n".join([*captions, f"picture: {path}"]))
    return path


def play(config: base.Config, folder: str | Path) -> Path:
    """Let the policy of a run act for one episode by its likeliest actions; write ``episode.gif`` to ``folder``."""
    if config.task != "policy":
        raise UserError(f"--mode=play shows what a policy does; config.task={config.task} has none")
    folder = Path(folder).expanduser()
    _, _, state = restore(config, folder)
    world = worlds.make(config.rl.world, config.rl.physics)
    played = film.play(world, policy.network(config, world), state.variables, jax.random.key(config.seed))
    path = film.write(world, played, folder / "episode.gif")
    say(f"{len(played.observations)} steps, return {played.returned:.1f}; picture: {path}")
    return path


def _draw(task: Task, config: base.Config, how: Augment, path: Path) -> Path:
    batch = task.train_batch(0)
    images, labels = batch["image"][:ROWS], batch["label"][:ROWS]
    keys = [jax.random.fold_in(stream_key(config.seed, "train"), step) for step in range(COLUMNS)]
    if config.task == "detection":
        change = jax.jit(augment_boxes, static_argnums=(3, 4))
        augmented = np.stack([_outlined(*change(images, labels, key, how, config.detect.visible)) for key in keys])
        images, names = _outlined(images, labels), [f"{count} boxes" for count in (labels[..., CLASS] >= 0).sum(1)]
    else:
        augmented = np.stack([jax.jit(augment, static_argnums=2)(images, key, how) for key in keys])
        names = [task.classes[label] for label in labels]
    values = {k: v for k, v in how._asdict().items() if v and (k != "magnitude" or how.randaugment)}
    on = ", ".join(k if v is True else f"{k} {v:g}" for k, v in values.items())
    title = f"{task.name}: {on or 'no augmentation'}"
    return pictures.draw_grid(images, augmented, names, title, path)


def _outlined(images: Any, labels: Any) -> np.ndarray:
    """Return pictures (N, H, W, 3) with the boxes of their labels (N, M, 6) drawn."""
    images, labels = np.asarray(images), np.asarray(labels)
    return boxes.outlined(images, labels[..., :4], labels[..., CLASS])


def _first(config: base.Config) -> tuple[base.Config, Task]:
    """Return the configuration of the first run, where there are several, and its task."""
    check.validate(config)
    _, _, config = base.members(config)[0]
    check_batches(config)
    return config, make_task(config)
