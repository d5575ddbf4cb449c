"""One epoch: steps of the optimizer on classification loss and localization loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from explainguide.annotations import Annotations
from explainguide.datasets.batches import Batch, batches, epoch_order, seed_all, stream_seed
from explainguide.evaluation.classification import check_labels
from explainguide.guidance.guide import ExplanationGuidance
from explainguide.guidance.options import GuideOptions
from explainguide.hooks.layers import unwrap
from explainguide.hooks.logits import check_logits
from explainguide.losses import classification_loss
from explainguide.processes import Hosts, add_up_gradients, join_hosts, process, send_buffers
from explainguide.training.config import TrainConfig
from explainguide.training.epoch_means import EpochMeans
from explainguide.training.lone_images import LoneImages
from explainguide.training.run_folder import History
from explainguide.training.schedules import build_optimizer, build_scheduler

__all__ = ["TrainingRun"]


class TrainingRun:
    """A model in training: the pieces that a step needs.

    Several processes add up their gradients here rather than in DistributedDataParallel, which
    averages over processes, not over images, and waits for one that has nothing to do.

    Nothing is read from the device in a step, but for every `log_interval`-th. What the hosts of
    several processes know by themselves they tell one another beside it: how many images a step has,
    whether one of them failed, and who has a gradient of which parameter.
    """

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
        self.inner = unwrap(model, compiled_parts=True)
        self.forward = vars(self.inner).get("forward")
        self.modes = {module: module.training for module in self.inner.modules()}
        self.compiled = contextlib.ExitStack()
        self.hosts = Hosts()

    def prepare(self) -> None:
        """Make the optimizer, and the model ready for it; `close` takes back what that changes."""
        config, accelerator = self.config, self.accelerator
        self.hosts = join_hosts(accelerator.device)
        self.plain_optimizer = build_optimizer(self.inner, config)
        accelerator.prepare_model(self.inner, evaluation_mode=True)  # its device and precision
        self.optimizer = accelerator.prepare(self.plain_optimizer)
        self.parameters = [p for p in self.inner.parameters() if p.requires_grad]
        send_buffers(self.inner, parameters=True)
        self.lone = LoneImages(self.inner)
        self.batches = self.lone.count_batches(self.data, config.batch_size, accelerator.device)
        self.scheduler = build_scheduler(
            self.plain_optimizer,
            config,
            steps=config.epochs * self.steps,
        )
        if config.compile:
            # By a guide that reads nothing: those of the epochs come and go.
            guide = self.compiled.enter_context(self._options().build(self.inner))
            self.compiled.enter_context(guide.pause())
            guide.compile()

    @property
    def steps(self) -> int:
        """Steps of the optimizer in an epoch, the same in every process."""
        return -(-self.batches // self.config.grad_accumulation)

    def close(self) -> None:
        """Give the model back as it came: mixed precision sets a forward on the instance.

        Each module is in the mode that it was in, training or evaluation.
        """
        self.compiled.close()
        self.hosts.leave()
        for module, training in self.modes.items():
            module.training = training
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
        seed_all(stream_seed(config.seed, epoch, 1 + 2 * process()[0]))
        source = batches(
            self.data,
            epoch_order(len(self.data), config.seed, epoch),
            batch_size=config.batch_size,
            workers=config.workers,
            device=device,
        )
        bar = tqdm(total=self.batches, desc=f"epoch {epoch}/{config.epochs}", disable=not progress)
        epg = history.rows[-1]["epg"] if history.rows else math.nan
        means = EpochMeans(config.mixed_precision, self.hosts)
        self.inner.train()
        with bar, self.guide(epoch) as guide:
            for step, first in enumerate(range(0, self.batches, config.grad_accumulation), start=1):
                count = min(config.grad_accumulation, self.batches - first)
                # Of all epochs, so that a training that goes on keeps its rhythm.
                plain = ((epoch - 1) * self.steps + step - 1) % config.every > 0
                with guide.pause() if guide is not None and plain else contextlib.nullcontext():
                    self._step(
                        source,
                        count,
                        None if plain else guide,
                        means,
                        f"epoch {epoch}, step {step}",
                    )
                bar.update(count)
                bar.set_postfix(means.shown(epg), refresh=False)
            means.read()
            bar.set_postfix(means.shown(epg), refresh=False)
        means.reduce()
        send_buffers(self.inner)
        return {**means.compute(), "lr": float(self.scheduler.get_last_lr()[0])}

    @contextlib.contextmanager
    def guide(self, epoch: int) -> Iterator[ExplanationGuidance | None]:
        """The guide of an epoch, off the model outside of it; None without guidance."""
        config = self.config
        if config.lam == 0:
            yield None
            return
        purpose = 2 + 2 * process()[0]
        generator = torch.Generator().manual_seed(stream_seed(config.seed, epoch, purpose))
        with self._options().build(self.inner, generator=generator) as guide:
            yield guide

    def _options(self) -> GuideOptions:
        # What it is divided by is known here, of the whole step.
        return replace(self.config.options, layer=self.layer, reduction="sum")

    def _step(
        self,
        source: Iterator[Batch],
        count: int,
        guide: ExplanationGuidance | None,
        means: EpochMeans,
        where: str,
    ) -> None:
        """One step of the optimizer, from one or several batches."""
        error: Exception | None = None
        group: list[Batch] = []
        try:
            for _ in range(count):
                if (batch := next(source, None)) is not None:
                    means.skipped += batch.skipped
                    group += [batch] if self.lone.usable(batch) else []
        except Exception as caught:  # whatever it is, the others must not wait for this process
            error = caught
        own = [sum(len(b.images) for b in group), sum(b.annotated for b in group)]
        images, annotated = self.hosts.agree(error, own)
        if not images:
            return
        try:
            for batch in group:
                self._backward(batch, images, annotated, guide, means, where)
        except Exception as caught:
            error = caught
        own = [p.grad is not None for p in self.parameters]
        used = self.hosts.agree(error, own)
        self._update(used, means, where)

    def _backward(
        self,
        batch: Batch,
        images: float,
        annotated: float,
        guide: ExplanationGuidance | None,
        means: EpochMeans,
        where: str,
    ) -> None:
        """The gradients of one batch: its share of the means over all images of the step.

        Args:
            batch: With an image at least.
            images: Of the step, in all processes.
            annotated: How many of those are annotated.
            guide: None in a step without guidance.
            means: Keeps the losses.
            where: Epoch and step.
        """
        config = self.config
        # Of a pass without annotation no loss is asked for.
        unread = guide is not None and not batch.annotated
        with guide.pause() if guide is not None and unread else contextlib.nullcontext():
            output = self.inner(batch.images)
        logits = check_logits(
            output,
            reading=config.reading,
            images=len(batch.images),
        )
        check_labels(batch.labels, logits, class_loss=config.class_loss)
        class_loss = classification_loss(
            logits, batch.labels, class_loss=config.class_loss, temperature=config.temperature
        )
        loss = config.class_weight * class_loss * (len(batch.images) / images)
        losses, maps = {"loss": class_loss}, {}
        if guide is not None and batch.annotated:
            assert config.lam is not None
            total = guide.loss_loc(self._regions(batch.annotations))
            mean = config.reduction == "mean"
            loss = loss + config.lam * total / (annotated if mean else 1)
            losses["loss_loc"] = total / batch.annotated if mean else total
            maps = guide.attributions
        means.add(where, losses, batch, maps)
        self.accelerator.backward(loss)

    def _update(self, used: list[float], means: EpochMeans, where: str) -> None:
        """Move the weights by the gradients of all processes.

        The gradient of a step is zeroed where the step is not finite, which is read later: until then
        momentum and weight decay move the weights, and so do the steps that follow. A GradScaler
        leaves out a step whose gradient is not finite, and lowers its scale; it reads one value for
        that.

        Args:
            used: How many processes have a gradient of each parameter. One that none has stays
                without: momentum and weight decay must leave it alone.
            means: Keeps the gradient's norm.
            where: Epoch and step.
        """
        scaler = self.accelerator.scaler
        if process()[1] > 1:
            pairs = zip(self.parameters, used, strict=True)
            add_up_gradients([parameter for parameter, processes in pairs if processes])
        limit = self.config.clip_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        norm = None if norm is None or scaler is not None else norm.detach().float().reshape(1)
        bad = means.end_step(where, norm, self.parameters[0].device)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(bad, 0)
        if means.steps >= self.config.log_interval:
            means.read()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()

    def _regions(self, annotations: Annotations) -> Annotations:
        if self.config.region == "boxes":
            annotations = annotations.without_masks()
        return annotations.dilate(self.config.dilate) if self.config.dilate else annotations
