"""Logging: ``metrics.jsonl``, TensorBoard events, console lines and a progress bar."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl_jax.train import sharding
from tl_jax.train.workdir import finite
from tl_jax.utils import disk, log
from tl_jax.utils.command import auto_refresh
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import MissingExtra, require_extra
from tl_jax.utils.json_files import format_row, parse_row
from tl_jax.utils.progress import progress_bar


def say(text: str = "") -> None:
    """Print a line about the run's progress, from the first process only."""
    if sharding.is_first_process():
        log.LOGGER.info("%s", text)


def warn(text: str) -> None:
    """Print a warning about the run's results, from the first process only."""
    if sharding.is_first_process():
        log.warn(text)


def say_written(path: Path) -> None:
    """Print the path and size of a file that was written."""
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


class Log:
    """Metrics of one run. Rows after ``step``, left by an interrupted run, are dropped."""

    def __init__(self, workdir: Path, step: int, total: int, verbose: bool):
        self._bar, self._open_bars = None, contextlib.ExitStack()
        self._total, self._verbose, self._writer = total, verbose and sharding.is_first_process(), None
        if not sharding.is_first_process():
            return
        self._path = workdir / "metrics.jsonl"
        rows = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []
        # Written atomically, so a kill does not lose the history.
        disk.write_bytes(self._path, b"".join(_rows_until(step, rows, self._path)))
        try:
            writer = _summary_writer()
        except MissingExtra:  # the curves are in metrics.jsonl and in the report
            return
        self._writer = writer(str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=30)

    def row(self, step: int, split: str, values: Mapping[str, float], **where: Any) -> None:
        """Append one row of metrics."""
        if not sharding.is_first_process():
            return
        with self._path.open("a") as f:
            f.write(format_row(finite({"step": step, "split": split, **where, **values})))
        for name, value in values.items():
            if self._writer:
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def say(self, text: str) -> None:
        """Print a line, unless the run is one of many."""
        if self._verbose:
            say(text)

    def start_bar(self, step: int) -> None:
        """Show the progress bar from ``step`` on. Call it after compilation, which its clock must not include."""
        if self._bar is None and sharding.is_first_process():
            bar = progress_bar(total=self._total, initial=step, unit="step", smoothing=0)
            self._bar = self._open_bars.enter_context(bar)
            if not self._bar.disable:
                self._open_bars.enter_context(auto_refresh(self._bar))

    def exclude_time(self, seconds: float) -> None:
        """Exclude ``seconds`` without steps, such as compilation, from the bar's clock and ETA."""
        if self._bar is not None and not self._bar.disable:
            self._bar.start_t += seconds
            self._bar.last_print_t += seconds

    def progress(self, step: int, **values: float) -> None:
        """Advance the progress bar to ``step``."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            self._bar.update(step - self._bar.n)

    def eta(self, step: int, steps: int, seconds: float) -> str:
        """Return "12 steps/s, 1:05 left" at ``step``, if the last ``steps`` steps took ``seconds``."""
        if not steps:
            return "nothing to train"
        rate = steps / max(seconds, 1e-9)
        seconds_left = round((self._total - step) / rate)
        return f"{rate:.3g} steps/s, {seconds_left // 60}:{seconds_left % 60:02d} left"

    def close(self) -> None:
        """Flush and close."""
        self._open_bars.close()
        if self._writer:
            self._writer.close()


def _summary_writer() -> Any:
    """Return tensorboardX' writer. Raises MissingExtra if it is not installed."""
    with require_extra("tracking"):
        from tensorboardX import SummaryWriter
    return SummaryWriter


def _rows_until(step: int, rows: list[bytes], path: Path) -> Iterator[bytes]:
    """Yield the rows of metrics up to ``step``; an incomplete last row, as a full disk leaves, is dropped."""
    for number, row in enumerate(rows, start=1):
        try:
            row_step = parse_row(row.decode(), f"{path}, line {number},", needs_checksum=True)["step"]
        except (UserError, ValueError, KeyError) as error:
            if number == len(rows) and b"}" not in row and b"\n" not in row:  # incomplete
                continue
            # Errors about invalid UTF-8 or a row without a step do not name the file.
            problem = error if isinstance(error, UserError) else f"{path}, line {number}, is damaged ({error!r})"
            warn(f"WARNING: {problem}; the line is skipped")
            continue
        if row_step <= step:
            yield row.rstrip(b"\n") + b"\n"
