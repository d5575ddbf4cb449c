"""What a training leaves behind: its history, checkpoints, and logs."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from explainguide.errors import OptionError
from explainguide.guidance.options import EXPLAINING
from explainguide.metrics import pareto_front
from explainguide.training.checkpoints import (
    check_entries,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    write_whole,
)
from explainguide.training.config import TrainConfig

__all__ = ["History", "RunFolder"]

# What a file of weights says of itself: how the model is built and takes its images, and which
# images it was evaluated on. No path and no time, so that equal runs make equal files.
_DESCRIBES: tuple[str, ...]
_DESCRIBES = ("name", "num_classes", "image_size", "mean", "std", "classes", "multilabel")
_DESCRIBES += ("bcos", "xdnn", "data", "data_options", "val_set")
_MEASURED = (*EXPLAINING, "region", "threshold")  # how it was evaluated
_STATE = ("model", "optimizer", "scheduler")  # what a training needs to go on
_LOCATION = ("root", "val_root", "boxes", "val_boxes", "weights")  # may move between two runs


@dataclass
class History:
    """What happened in a training.

    Attributes:
        rows: One dict an epoch: ``"epoch"``, ``"loss"`` (classification), ``"loss_loc"``, ``"lr"``,
            the scores of `explainguide.evaluation.evaluate`, ``"skipped"``, ``"seconds"``.
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    @property
    def front(self) -> list[int]:
        """Epochs, from 1, on the Pareto front of (F1 or accuracy, EPG, IoU)."""
        if not self.rows:
            return []
        score = "f1" if "f1" in self.rows[0] else "accuracy"
        points = [[row.get(k, math.nan) for k in (score, "epg", "iou")] for row in self.rows]
        # A measure that no epoch has, as EPG without annotations, plays no part.
        known = [i for i in range(3) if not all(math.isnan(p[i]) for p in points)]
        return [i + 1 for i in pareto_front([[p[k] for k in known] for p in points])]

    @property
    def last(self) -> dict[str, float]:
        """The row of the last epoch."""
        return self.rows[-1]

    @property
    def skipped(self) -> int:
        """Images that could not be read in the last epoch, training and evaluation together."""
        return int(self.rows[-1]["skipped"]) if self.rows else 0


class RunFolder:
    """The files of a training; none where the settings name no folder.

    Args:
        config: The settings.
        info: Plain values to keep in the checkpoints.
        images: Number of training images, compared when a training goes on.
        main: Whether this process writes.
    """

    def __init__(
        self, config: TrainConfig, info: dict[str, Any], *, images: int, main: bool
    ) -> None:
        self.history = History()
        self._config, self._info, self._images = config, _plain(info), images
        self._path = None if config.output_dir is None else Path(config.output_dir)
        self._writes = main and self._path is not None
        self._board: Any = None

    def open(self, *, resume: bool) -> dict[str, Any] | None:
        """Prepare the folder; the state to go on from, or None to begin.

        Raises:
            OptionError: If the folder holds a training that must not be overwritten or continued.
            DataError: If it cannot be read or written.
        """
        if self._config.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise OptionError(
                "tensorboard=True, but TensorBoard is not installed. "
                "`pip install explainguide[tensorboard]`. log.csv needs nothing."
            )
        if self._path is None:
            if resume or self._config.tensorboard:
                option = "resume" if resume else "tensorboard"
                raise OptionError(
                    f"{option}=True without output_dir. Name the folder of the training."
                )
            return None
        last = self._path / "last.pt"
        if last.exists() and not resume:
            raise OptionError(
                f"'{self._path}' holds a training already. Go on with resume=True "
                "(--resume), or choose another output_dir. Nothing is overwritten."
            )
        payload = load_checkpoint(last) if last.exists() else None
        if payload is not None:
            check_entries(last, payload, "info", "config", "images", "history", *_STATE)
            self._check(payload, last)
            self.history.rows = [dict(row) for row in payload["history"]]
        if self._writes:
            text = json.dumps({"config": self._config.to_dict(), "info": self._info}, indent=2)
            write_whole(
                self._path / "config.json",
                lambda file: file.write(f"{text}\n".encode()),
            )
            self._write_log()
            self._prune()
            if self._config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                # Whatever an interrupted epoch left in an event file is superseded.
                self._board = SummaryWriter(
                    str(self._path / "tensorboard"), purge_step=len(self.history.rows) + 1
                )
        return payload

    def _check(self, payload: dict[str, Any], last: Path) -> None:
        changes = self._config.differences(payload["config"])
        before = payload["info"]
        changes += [
            f"{name} was {before.get(name)!r}, now {self._info.get(name)!r}"
            for name in sorted({*before, *self._info} - {*_LOCATION})
            if before.get(name) != self._info.get(name)
        ]
        if payload["images"] != self._images:
            changes.append(f"there were {payload['images']} training images, now {self._images}")
        if changes:
            raise OptionError(
                f"'{last}' is of a training with other settings: {'; '.join(changes)}. "
                "Use the same settings, or another output_dir. device, log_interval and tensorboard "
                "may differ."
            )

    def finish_epoch(self, row: dict[str, float], state: dict[str, Any]) -> None:
        """Add an epoch: its checkpoint if it is on the front, ``last.pt``, the logs.

        ``last.pt`` decides: until it is in place, the epoch has not happened, and whatever else was
        written for it is written again.

        Raises:
            DataError: If a file cannot be written; the earlier ones are still there.
        """
        self.history.rows.append(row)
        if not self._writes:
            return
        assert self._path is not None
        about = {
            "info": self._info,
            "config": self._config.to_dict(),
            "images": self._images,
            "epoch": len(self.history.rows),
            "metrics": row,
        }
        if about["epoch"] in self.history.front:
            save_checkpoint(
                self._of_epoch(len(self.history.rows)), {**about, "model": state["model"]}
            )
        save_checkpoint(
            self._path / "last.pt", {**about, **state, "history": list(self.history.rows)}
        )
        self._write_log()
        self._prune()
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, len(self.history.rows))
            self._board.flush()

    def finish(self, weights: dict[str, Tensor], *, layer: str | list[str]) -> None:
        """Save the final weights, in a form that can be compared between runs.

        Args:
            weights: A state dict.
            layer: What was guided, also where the settings leave it to be found. It is kept beside
                the settings: another attribution may be at another layer.
        """
        if self._writes:
            assert self._path is not None
            config = self._config.to_dict()
            about = {
                "info": {key: self._info[key] for key in _DESCRIBES if key in self._info},
                "config": {key: config[key] for key in _MEASURED},
                "guided_layer": layer,
                "epoch": len(self.history.rows),
            }
            save_weights(self._path / "weights.safetensors", weights, about=about)

    def close(self) -> None:
        """Close the TensorBoard log."""
        if self._board is not None:
            self._board.close()

    def _of_epoch(self, epoch: int) -> Path:
        assert self._path is not None
        return self._path / f"epoch_{epoch:03d}.pt"

    def _prune(self) -> None:
        """Remove the checkpoints of epochs that have left the front."""
        front = self.history.front
        for epoch in range(1, len(self.history.rows) + 1):
            if epoch not in front:
                self._of_epoch(epoch).unlink(missing_ok=True)

    def _write_log(self) -> None:
        """The whole log, so that a run that went on holds no row twice."""
        assert self._path is not None
        if not self.history.rows:
            return
        text = io.StringIO()
        columns = list(dict.fromkeys(key for row in self.history.rows for key in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history.rows)
        content = text.getvalue().encode()
        write_whole(self._path / "log.csv", lambda file: file.write(content))


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """The values as they come back from a file."""
    try:
        return json.loads(json.dumps(info))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"info cannot be kept in a checkpoint ({error}). Use str, float and list. "
            "Values that JSON can hold are allowed."
        ) from None
