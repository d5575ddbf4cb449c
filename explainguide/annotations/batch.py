"""Boxes, masks and labels of a batch as masks on the device, without a loop over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from explainguide.annotations.boxes import box_masks, rasterize_boxes
from explainguide.annotations.cells import ChosenBoxes
from explainguide.annotations.checks import check_target
from explainguide.annotations.labels import FirstLabel, check_first_label, warn_if_strangers
from explainguide.errors import AnnotationError, OptionError, check_option, operation
from explainguide.host import host_array, send

__all__ = ["Annotations", "collate"]


@dataclass(frozen=True)
class Annotations:
    """The boxes, labels and masks of a batch, padded to the same number of objects an image.

    Build it with `from_targets`; `collate` does so in a DataLoader. Coordinates are pixels of the
    model's input.

    Attributes:
        boxes: ``(N, M, 4)`` float, xyxy; rows without an object are zero.
        labels: ``(N, M)`` int64, indices of logits; -1 where there is no object.
        masks: ``(N, M, H, W)`` bool, one an object, or None. Where there are masks they are used
            in place of the boxes.
        canvas: (H, W) that the boxes or masks refer to, where it is known.
        most_classes: No image has more distinct classes than this.
        largest_label: The largest label, where the labels were on the host; else None.
        first_label: What has made the labels indices of logits: the option of `from_targets`. A guide
            with the same option does not apply it again.
        annotated: Which images have an object, where that is known without reading a device;
            `dataclasses.replace` forgets it.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    canvas: tuple[int, int] | None = None
    most_classes: int = 0
    largest_label: int | None = None
    first_label: FirstLabel = 0
    annotated: tuple[int, ...] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.most_classes:  # not counted: as many as there are objects
            object.__setattr__(self, "most_classes", int(self.labels.shape[1]))

    @classmethod
    @operation("Annotations.from_targets")
    def from_targets(
        cls,
        targets: Sequence[Mapping[str, Any] | None],
        *,
        canvas: tuple[int, int] | None = None,
        first_label: FirstLabel = 0,
    ) -> Annotations:
        """Pad a list of detection-style dicts.

        Values are checked where they are on the host; on another device only shapes and dtypes
        are, because a value costs a synchronisation.

        Args:
            targets: One an image: ``{"labels": (M,)}`` with ``"boxes": (M, 4)``, ``"masks": (M, H,
                W)`` or both, or COCO's ``"segmentation"`` in place of the masks; other keys beside
                them are not read. Boxes are xyxy in pixels, or
                `tv_tensors.BoundingBoxes` of any format, which are converted. Masks are bool, or
                floating point in [0, 1], where 0.5 counts; without boxes the boxes are those around
                the masks. None, or no boxes: an image without annotation. A segmentation is a list
                with one entry an object: a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, or
                run lengths ``{"size", "counts"}``; pycocotools (``explainguide[coco]``) draws them as
                masks, on the host. Transforms do not move polygons: draw them as masks before.
            canvas: (H, W) of the model's input, to check against; read from tv_tensors and masks
                where it is not given. Polygons need it.
            first_label: The label of the first logit: 1 for torchvision's detection data sets, where
                0 is the background. Or a dict from the data set's ids to logits, as COCO needs.

        Raises:
            AnnotationError: For boxes, labels or masks that cannot be meant; it names the image.
            OptionError: If `first_label` is no label and no mapping.

        Warns:
            ExplainGuideWarning: If a mask has no pixel (its object is left out), or a box lies more
                outside the canvas than in it.

        Example:
            >>> car = {"boxes": torch.tensor([[2.0, 3.0, 9.0, 8.0]]), "labels": torch.tensor([1])}
            >>> batch = Annotations.from_targets([car, None])
            >>> batch.labels
            tensor([[ 1],
                    [-1]])
        """
        if isinstance(targets, Mapping) or not isinstance(targets, Sequence):
            raise AnnotationError(
                f"targets is a {type(targets).__name__}. Pass a list with "
                "one dict an image. None stands for an image without annotation."
            )
        first_label = check_first_label(first_label)
        if not targets:
            empty = torch.zeros(0, 0, dtype=torch.int64)
            return cls(torch.zeros(0, 0, 4), empty, canvas=canvas, first_label=first_label)
        boxes, labels, masks = [], [], []
        for index, target in enumerate(targets):
            objects = check_target(target, index, canvas, first_label=first_label)
            canvas = canvas or objects.size
            boxes.append(objects.boxes)
            labels.append(objects.labels)
            masks.append(objects.masks)
        device = next((b.device for b in boxes if len(b)), torch.device("cpu"))
        padded = pad_sequence([b.to(device) for b in boxes], batch_first=True)
        padded_labels = pad_sequence(
            [label.to(device) for label in labels], batch_first=True, padding_value=-1
        )
        on_host = device.type == "cpu"
        distinct = (len(set(host_array(label).tolist())) for label in labels) if on_host else ()
        read = cls(
            padded.reshape(len(boxes), -1, 4),
            padded_labels,
            _pad_masks(masks, padded, canvas),
            canvas,
            max(distinct, default=0) if on_host else padded_labels.shape[1],
            int(host_array(padded_labels).max()) if on_host and padded_labels.numel() else None,
            first_label,
        )
        known = tuple(index for index, label in enumerate(labels) if len(label))
        object.__setattr__(read, "annotated", known)
        return read

    def same_objects(self, **changes: Any) -> Annotations:
        """With other fields, of the same objects of the same images: `annotated` stays."""
        changed = replace(self, **changes)
        object.__setattr__(changed, "annotated", self.annotated)
        return changed

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Annotations:
        """The same annotations on another device; with `non_blocking` the host does not wait for it."""
        return self._map(lambda t: send(t, device) if non_blocking else t.to(device))

    def pin_memory(self) -> Annotations:
        """The same annotations in pinned memory; a DataLoader with ``pin_memory=True`` calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Any) -> Annotations:
        masks = None if self.masks is None else move(self.masks)
        return self.same_objects(boxes=move(self.boxes), labels=move(self.labels), masks=masks)

    def without_masks(self) -> Annotations:
        """The boxes alone."""
        return self.same_objects(masks=None)

    @operation("Annotations.dilate")
    def dilate(self, fraction: float, *, per: Literal["side", "box"] = "side") -> Annotations:
        """Boxes grown by a fraction of their own width and height.

        Args:
            fraction: Non-negative. Clipping is left to the rasterizer.
            per: What grows by the fraction. ``"side"``, each of the four sides moves outwards by
                ``int(fraction * s)`` pixels, s the box's width or height, which becomes
                ``s * (1 + 2 * fraction)``: so does the program of Rao et al. ``"box"``, the size of the
                box grows by the fraction in all, to ``s * (1 + fraction)``: each side moves by
                ``int(fraction * s / 2)``, which is how their text can be read.

        Raises:
            OptionError: If the fraction is negative, or not finite, or `per` is another word.
            AnnotationError: If there are masks, which are as exact as they should be.

        References:
            Rao et al., 2023, Sec. 5.4 (R8): coarse boxes, dilated by 10, 25 and 50%.

        Example:
            >>> box = {"boxes": torch.tensor([[20.0, 30.0, 30.0, 50.0]]), "labels": torch.tensor([0])}
            >>> batch = Annotations.from_targets([box])
            >>> batch.dilate(0.5).boxes[0].tolist()  # 10 x 20 becomes 20 x 40
            [[15.0, 20.0, 35.0, 60.0]]
            >>> batch.dilate(0.5, per="box").boxes[0].tolist()  # 10 x 20 becomes 14 x 30
            [[18.0, 25.0, 32.0, 55.0]]
        """
        check_option("per", per, ("side", "box"))
        number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if not number or not 0 <= fraction < float("inf"):  # NaN neither
            raise OptionError(
                f"fraction is {fraction!r}. Use 0.25 for a quarter of the side on each side. A number "
                "from 0 on is allowed."
            )
        if self.masks is not None:
            raise AnnotationError(
                "there are masks, and only boxes grow. Call `without_masks()` "
                "first. Boxes are allowed."
            )
        x1, y1, x2, y2 = self.boxes.unbind(-1)
        margin = fraction if per == "side" else fraction / 2
        dx, dy = ((x2 - x1) * margin).trunc(), ((y2 - y1) * margin).trunc()
        return self.same_objects(boxes=torch.stack([x1 - dx, y1 - dy, x2 + dx, y2 + dy], -1))

    def presence(self, num_classes: int) -> Tensor:
        """Which classes have an object in which image, ``(N, num_classes)`` bool."""
        hot = torch.zeros(len(self), num_classes + 1, dtype=torch.bool, device=self.labels.device)
        # Padding goes to the extra column.
        known = (self.labels >= 0) & (self.labels < num_classes)
        index = torch.where(known, self.labels, num_classes)
        return hot.scatter(1, index, True)[:, :num_classes]

    def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        """The union of the objects of one class an image.

        Args:
            classes: ``(..., N)`` int64; -1 stands for the objects of every class.
            size: (H, W) of the image.

        Returns:
            ``(..., N, H, W)`` float32 in {0, 1}.
        """
        chosen = self._chosen(classes)
        if self.masks is not None:
            union = torch.einsum("...nm,nmhw->...nhw", chosen, self.masks.float())
            return (union > 0).float()
        return rasterize_boxes(self.boxes, chosen, size)

    def chosen_boxes(self, classes: Tensor) -> ChosenBoxes | None:
        """The boxes whose union is the `region` of these classes; None where there are masks."""
        # A subclass with regions of its own does not say that they are boxes.
        if self.masks is not None or type(self).region is not Annotations.region:
            return None
        return ChosenBoxes(self.boxes, self._chosen(classes))

    def _chosen(self, classes: Tensor) -> Tensor:
        """The objects of one class an image, ``(..., N, M)`` float in {0, 1}."""
        labels, wanted = self.labels, classes[..., None]
        return torch.where(wanted < 0, labels >= 0, labels == wanted).float()


def _pad_masks(
    masks: list[Tensor | None], boxes: Tensor, canvas: tuple[int, int] | None
) -> Tensor | None:
    """(N, M, H, W) bool, or None where no image has masks; images with boxes alone get theirs."""
    if all(m is None for m in masks) or canvas is None:
        return None
    padded = box_masks(boxes, canvas)
    for index, image_masks in enumerate(masks):
        if image_masks is not None:
            padded[index, : len(image_masks)] = image_masks.to(boxes.device)
    return padded


def _stack(parts: Sequence[Any], name: str, remedy: str) -> Tensor:
    """One tensor of what the items of a batch hold."""
    tensors = []
    for index, part in enumerate(parts):
        try:
            tensors.append(torch.as_tensor(part))
        except (TypeError, ValueError, RuntimeError) as error:
            shown = f"{part!r}" if isinstance(part, str) else f"a {type(part).__name__}"
            raise AnnotationError(
                f"item {index} of a batch has {name} that make no tensor: {shown}. {remedy}"
            ) from error
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise AnnotationError(
            f"the {name} of a batch have shapes {' and '.join(map(str, shapes[:3]))}. {remedy}"
        )
    return torch.stack(tensors)


@operation("collate")
def collate(batch: Sequence[Any], *, first_label: FirstLabel = 0) -> tuple[Any, ...]:
    """A DataLoader's `collate_fn` for items ``(image, labels, annotation)``, or with a group behind.

    Items that are None (files that could not be read) are left out.

    Args:
        batch: The items.
        first_label: Of the annotations, as `Annotations.from_targets` takes it; images' labels stay
            as they are. ``functools.partial(collate, first_label=1)`` is a `collate_fn`, too.

    Returns:
        Images ``(N, 3, H, W)``, labels ``(N,)`` int64 or ``(N, K)`` float32, `Annotations`; and of
        items with a group the groups, ``(N,)`` int64.

    Raises:
        AnnotationError: If no item is left, if items are none of these, if images, labels or groups
            make no batch, or for an annotation that cannot be meant.

    Warns:
        ExplainGuideWarning: If boxes in two images or more all have a label one higher than the image.
    """
    items = [item for item in batch if item is not None]
    if not items:
        raise AnnotationError(
            f"none of the {len(batch)} images of a batch could be read. See the warnings "
            "for their names. At least one must be readable."
        )
    for index, item in enumerate(items):
        check_item(item, f"item {index} of a batch", error=AnnotationError)
    lengths = {len(item) for item in items}
    if len(lengths) > 1:
        raise AnnotationError(
            "some items of a batch have a group behind the annotation, and others have none. Return a "
            "group for each image. All or none is allowed."
        )
    images, labels, targets, *groups = zip(*items, strict=True)
    stacked = _stack(
        images,
        "images",
        "Resize them to one size, and make tensors of pictures, in the data set's transforms. Tensors "
        "(3, H, W) of one size are allowed.",
    )
    of_images = _stack(
        labels,
        "labels",
        "Give the index of a class, as classes.index(name), or a row of 0 and 1. An int, or floats "
        "(K,) of one length, are allowed.",
    )
    canvas = (stacked.shape[-2], stacked.shape[-1])
    annotations = Annotations.from_targets(targets, canvas=canvas, first_label=first_label)
    warn_if_strangers(annotations.labels, of_images, sure=True)
    return stacked.as_subclass(Tensor), of_images, annotations, *map(_groups, groups)


def check_item(item: Any, name: str, *, error: type[Exception]) -> None:
    """Refuse what is neither image, labels, annotation nor image, labels, annotation, group."""
    if not isinstance(item, tuple | list) or len(item) not in (3, 4):
        length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise error(
            f"{name} is a {type(item).__name__}{length}. Return image, labels, annotation; None for an "
            "image without annotation. Three things an item are allowed, and a group as a fourth."
        )


def _groups(groups: Sequence[Any]) -> Tensor:
    stacked = _stack(
        groups, "groups", "Give the index of a group, as groups.index(name). An int is allowed."
    )
    if stacked.ndim != 1 or stacked.is_floating_point() or stacked.is_complex():
        raise AnnotationError(
            f"the groups of a batch have shape {tuple(stacked.shape)} and dtype {stacked.dtype}. Give "
            "the index of a group, as groups.index(name). An int an image is allowed."
        )
    return stacked.long()
