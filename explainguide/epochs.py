"""One epoch: steps of the optimizer on classification loss and localization loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from explainguide.annotations import Annotations, LimitedAnnotations
from explainguide.batches import Batch, batches, epoch_order, seed_all, stream_seed
from explainguide.classification import check_labels
from explainguide.errors import GuidanceError
from explainguide.guidance import ExplanationGuidance
from explainguide.layers import unwrap
from explainguide.logits import check_logits
from explainguide.losses import classification_loss
from explainguide.run_folder import History
from explainguide.schedules import build_optimizer, build_scheduler
from explainguide.staging import with_options
from explainguide.training_config import TrainConfig

__all__ = ["Run"]

_CALLER = "train"


class Run:
    """A model in training: the pieces that a step needs."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        config: TrainConfig,
        layer: str | list[str],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.layer, self.accelerator = config, layer, accelerator
        self.data = data
        if config.annotated < 1:
            self.data = LimitedAnnotations(data, config.annotated, seed=config.seed)
        self.plain_optimizer = build_optimizer(model, config)
        steps = -(-len(epoch_order(len(data), 0, 1)) // config.batch_size)
        self.batches = steps
        self.scheduler = build_scheduler(
            self.plain_optimizer,
            config,
            steps=config.epochs * -(-steps // config.grad_accumulation),
        )
        self.forward = vars(model).get("forward")
        self.model, self.optimizer = accelerator.prepare(model, self.plain_optimizer)
        self.inner = unwrap(self.model, caller=_CALLER)

    def close(self) -> None:
        """Give the model back as it came: mixed precision sets a forward on the instance."""
        attributes = vars(self.inner)
        attributes.pop("_original_forward", None)
        attributes.pop("forward", None)
        if self.forward is not None:
            attributes["forward"] = self.forward

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on."""
        scaler = self.accelerator.scaler
        return {
            "model": self.inner.state_dict(),
            "optimizer": self.plain_optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load(self, payload: dict[str, Any]) -> None:
        """Take up a state."""
        self.inner.load_state_dict(payload["model"])
        self.plain_optimizer.load_state_dict(payload["optimizer"])
        self.scheduler.load_state_dict(payload["scheduler"])
        if self.accelerator.scaler is not None and payload["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(payload["scaler"])

    def epoch(self, epoch: int, history: History, *, progress: bool) -> dict[str, float]:
        """Train for one epoch."""
        config, device = self.config, self.accelerator.device
        seed_all(stream_seed(config.seed, epoch, 1 + 2 * self.accelerator.process_index))
        source = batches(
            self.data,
            epoch_order(len(self.data), config.seed, epoch),
            batch_size=config.batch_size,
            workers=config.workers,
            device=device,
        )
        bar = tqdm(total=self.batches, desc=f"epoch {epoch}/{config.epochs}", disable=not progress)
        means = _Means()
        self.inner.train()
        with bar, self.guide(epoch) as guide:
            groups = _grouped(source, config.grad_accumulation)
            for step, group in enumerate(groups, start=1):
                self._step(group, guide, means, f"epoch {epoch}, step {step}")
                bar.update(len(group))
                epg = history.rows[-1]["epg"] if history.rows else math.nan
                bar.set_postfix(means.shown(epg), refresh=False)
        means.reduce(self.accelerator)
        return {**means.compute(), "lr": float(self.scheduler.get_last_lr()[0])}

    @contextlib.contextmanager
    def guide(self, epoch: int) -> Iterator[ExplanationGuidance | None]:
        """The guide of an epoch, off the model outside of it; None without guidance."""
        config = self.config
        if config.lam == 0:
            yield None
            return
        purpose = 2 + 2 * self.accelerator.process_index
        generator = torch.Generator().manual_seed(stream_seed(config.seed, epoch, purpose))
        with ExplanationGuidance(
            self.model,
            self.layer,
            attribution=config.attribution,
            loss=with_options(config.loss, config.loss_options, caller=_CALLER),
            target=config.target,  # type: ignore[arg-type]
            score=config.score,  # type: ignore[arg-type]
            negatives=config.negatives,
            layer_weights=config.layer_weights,
            reduction=config.reduction,  # type: ignore[arg-type]
            generator=generator,
        ) as guide:
            yield guide

    def _step(
        self, group: list[Batch], guide: ExplanationGuidance | None, means: _Means, where: str
    ) -> None:
        """One step of the optimizer, from one or several batches."""
        for batch in group:
            means.skipped += batch.skipped
        group = [batch for batch in group if len(batch.images)]
        images = sum(len(batch.images) for batch in group)
        annotated = sum(batch.annotated for batch in group)
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                logits = check_logits(self.model(batch.images), caller=_CALLER)
                if index == 0:
                    check_labels(
                        batch.labels, logits, caller=_CALLER, class_loss=self.config.class_loss
                    )
                class_loss = classification_loss(
                    logits,
                    batch.labels,
                    class_loss=self.config.class_loss,
                    temperature=self.config.temperature,
                )
                loss = self.config.class_weight * class_loss * (len(batch.images) / images)
                loss_loc = None
                if guide is not None and batch.annotated:
                    loss_loc = guide.loss_loc(self._regions(batch.annotations))
                    share = batch.annotated / annotated if self.config.reduction == "mean" else 1.0
                    loss = loss + self.config.lam * share * loss_loc
                means.add(self._finite(class_loss, loss_loc, guide, where), batch)
                self.accelerator.backward(loss)
        if not group:
            return
        limit = self.config.clip_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        # Under fp16 the scaler skips such a step and lowers its scale.
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(norm):
            raise _not_finite(where, f"the losses are finite, but their gradient is {float(norm)}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()

    def _regions(self, annotations: Annotations) -> Annotations:
        if self.config.region == "boxes":
            annotations = annotations.without_masks()
        return annotations.dilate(self.config.dilate) if self.config.dilate else annotations

    def _finite(
        self,
        class_loss: Tensor,
        loss_loc: Tensor | None,
        guide: ExplanationGuidance | None,
        where: str,
    ) -> dict[str, float]:
        """The losses as numbers; stops before one that is not finite reaches the weights."""
        parts = {"loss": class_loss}
        if loss_loc is not None:
            parts["loss_loc"] = loss_loc
        found = torch.stack([v.detach().float() for v in parts.values()]).tolist()
        values = dict(zip(parts, found, strict=True))
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not bad:
            return values
        names = {"loss": "the class loss", "loss_loc": "loss_loc"}
        said = " and ".join(f"{names[name]} is {value}" for name, value in bad.items())
        if "loss_loc" in bad and guide is not None:
            maps = [n for n, m in guide.attributions.items() if not bool(m.isfinite().all())]
            if maps:
                said += f" (the map of layer {', '.join(map(repr, maps))} is not finite)"
        raise _not_finite(where, said)


def _not_finite(where: str, said: str) -> GuidanceError:
    return GuidanceError(
        f"{_CALLER}: {where}: {said}. Lower lr or lam, set clip_grad_norm, or use "
        "mixed_precision='no'. The training stopped before this step; checkpoints of earlier "
        "epochs are unchanged."
    )


def _grouped(source: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    group: list[Batch] = []
    for batch in source:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class _Means:
    """Losses of an epoch, averaged over the images that they belong to."""

    def __init__(self) -> None:
        self.skipped = 0
        self._sums = {"loss": 0.0, "loss_loc": 0.0}
        self._counts = {"loss": 0, "loss_loc": 0}

    def add(self, values: dict[str, float], batch: Batch) -> None:
        """Add the losses of a batch."""
        for name, value in values.items():
            count = len(batch.images) if name == "loss" else batch.annotated
            self._sums[name] += value * count
            self._counts[name] += count

    def reduce(self, accelerator: Accelerator) -> None:
        """Add up what the processes of a distributed run have seen."""
        if accelerator.num_processes == 1:
            return
        own = [*self._sums.values(), *self._counts.values(), self.skipped]
        both = accelerator.reduce(torch.tensor(own, device=accelerator.device)).tolist()
        self._sums = dict(zip(self._sums, both[:2], strict=True))
        self._counts = {k: round(c) for k, c in zip(self._counts, both[2:4], strict=True)}
        self.skipped = round(both[4])

    def compute(self) -> dict[str, float]:
        """The means; NaN for a loss that never occurred."""
        means = {
            k: s / self._counts[k] if self._counts[k] else math.nan for k, s in self._sums.items()
        }
        return {**means, "skipped": self.skipped}

    def shown(self, epg: float) -> dict[str, str]:
        """For the progress bar."""
        values = {**self.compute(), "EPG": epg}
        del values["skipped"]
        return {k: f"{v:.3f}" for k, v in values.items() if not math.isnan(v)}
