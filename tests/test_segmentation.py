"""COCO's segmentations, polygons and run lengths, in detection-style dicts; against pycocotools."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from explainguide import Annotations, ExplanationGuidance, collate
from explainguide.errors import AnnotationError, ExplainGuideWarning

from .networks import SmallCnn, batch, boxes

mask_tools = pytest.importorskip("pycocotools.mask")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")

SQUARE = [4.0, 4, 9, 4, 9, 8, 4, 8]
TRIANGLE = [1.5, 0.5, 6.25, 2, 2, 7.75]
CORNER = [8.0, 8, 40, 8, 40, 40, 8, 40]  # reaches out of the canvas
CANVAS = (12, 12)


def drawn(polygons: list[list[float]], size: tuple[int, int] = CANVAS) -> Tensor:
    """pycocotools' own mask of one object."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        runs = mask_tools.merge(mask_tools.frPyObjects(polygons, *size))
        return torch.from_numpy(mask_tools.decode(runs).copy()).bool()


def outlined(*objects: Any, labels: tuple[int, ...] | None = None, **more: Any) -> dict[str, Any]:
    labels = tuple(range(len(objects))) if labels is None else labels
    return {"segmentation": list(objects), "labels": torch.tensor(labels), **more}


def flipped(target: dict[str, Any], image: Any = None) -> dict[str, Any]:
    image = tv_tensors.Image(torch.zeros(3, *CANVAS)) if image is None else image
    return v2.RandomHorizontalFlip(1.0)(image, target)[1]


@pytest.mark.filterwarnings("ignore:.*no pixel")  # of the small ones some have none
@pytest.mark.parametrize("seed", range(8))
def test_random_polygons_are_pycocotools_own(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = (int(generator.integers(8, 70)), int(generator.integers(8, 70)))

    def polygon() -> list[float]:
        corners = int(generator.integers(3, 12))
        return (generator.uniform(-0.2, 1.2, (corners, 2)) * size[::-1]).ravel().tolist()

    objects = [[polygon() for _ in range(generator.integers(1, 4))] for _ in range(6)]
    masks = torch.stack([drawn(polygons, size) for polygons in objects])
    found = Annotations.from_targets([outlined(*objects)], canvas=size)
    assert torch.equal(found.masks[0], masks[masks.flatten(1).any(1)])
    given = Annotations.from_targets([{"masks": masks, "labels": torch.arange(6)}])
    assert torch.equal(found.boxes, given.boxes)
    assert (found.canvas, found.labels.tolist()) == (given.canvas, given.labels.tolist())


@pytest.mark.parametrize(
    "as_given",
    [tuple, np.array, torch.tensor, lambda p: torch.tensor(p, dtype=torch.float64)],
    ids=["tuple", "numpy", "tensor", "double"],
)
def test_a_polygon_is_any_flat_row_of_numbers(as_given: Any) -> None:
    found = Annotations.from_targets([outlined((as_given(TRIANGLE),))], canvas=CANVAS)
    assert torch.equal(found.masks[0, 0], drawn([TRIANGLE]))


@pytest.mark.parametrize("counts", ["list", "bytes", "str"])
def test_run_lengths_say_their_size(counts: str) -> None:
    runs = mask_tools.encode(np.asfortranarray(drawn([SQUARE]).numpy().astype(np.uint8)))
    if counts == "str":
        runs["counts"] = runs["counts"].decode()
    if counts == "list":
        runs["counts"] = [4 * 12 + 4, *[4, 8] * 4, 4, 12 * 12 - 4 * 12 - 4 - 5 * 4 - 4 * 8]
    found = Annotations.from_targets([None, outlined(runs, [TRIANGLE])])
    assert found.canvas == CANVAS
    assert torch.equal(found.masks[1], torch.stack([drawn([SQUARE]), drawn([TRIANGLE])]))


def test_loss_loc_is_that_of_the_masks() -> None:
    guide = ExplanationGuidance(SmallCnn().eval(), "mix", target="all", reduction="none")
    polygons = [outlined([SQUARE], [TRIANGLE, CORNER]), None, outlined([CORNER], labels=(3,))]
    masks = [
        {"masks": torch.stack([drawn([SQUARE]), drawn([TRIANGLE, CORNER])]), "labels": [0, 1]},
        None,
        {"masks": drawn([CORNER])[None], "labels": [3]},
    ]
    losses = []
    for given in (polygons, masks, Annotations.from_targets(polygons, canvas=CANVAS)):
        guide(batch())
        losses.append(guide.loss_loc(given))
    assert losses[0][0] > 0
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    assert guide.check(batch(), polygons).ok
    guide.remove()


def test_collate_knows_the_canvas_and_mixes_forms() -> None:
    image = torch.zeros(3, *CANVAS)
    items = [(image, 0, outlined([SQUARE])), (image, 2, boxes((1, 2, 7, 9), labels=(2,)))]
    _, _, found = collate([*items, (image, 1, {"segmentation": [], "labels": []})])
    region = found.region(torch.tensor([0, 2, -1]), CANVAS)
    assert torch.equal(region[0].bool(), drawn([SQUARE]))
    assert region[1].sum() == 6 * 7
    assert not region[2].any()


def test_cocos_annotations_grouped_by_image_ask_for_labels() -> None:
    objects = [
        {"bbox": [4, 4, 5, 4], "category_id": 18, "iscrowd": 0, "segmentation": [SQUARE]},
        {"bbox": [1, 0, 5, 8], "category_id": 90, "iscrowd": 0, "segmentation": [TRIANGLE]},
    ]
    grouped = {key: [entry[key] for entry in objects] for key in objects[0]}
    with pytest.raises(AnnotationError) as error:
        Annotations.from_targets([grouped], canvas=CANVAS)
    assert "image 0 has segmentations but no 'labels'" in str(error.value)
    assert "'labels' for 'category_id'? COCO's ids become logits by first_label=" in str(
        error.value
    )
    ready = {**grouped, "labels": grouped["category_id"]}
    found = Annotations.from_targets([ready], canvas=CANVAS, first_label={18: 0, 90: 1})
    assert found.labels.tolist() == [[0, 1]]
    assert torch.equal(found.masks[0, 1], drawn([TRIANGLE]))


def test_an_object_outside_is_left_out_and_told() -> None:
    away = [value + 50 for value in SQUARE]
    with pytest.warns(ExplainGuideWarning, match="no pixel, and the object is left out"):
        found = Annotations.from_targets([outlined([away], [SQUARE])], canvas=CANVAS)
    assert found.labels.tolist() == [[1]]


HAS = {"boxes": torch.tensor([[4.0, 4, 9, 8]])}
REFUSED: list[tuple[Any, list[str]]] = [
    (outlined([SQUARE[:7]]), ["object 0, has a segmentation", "a polygon of 7 numbers; it needs 6, 8"]),
    (outlined([SQUARE], [SQUARE, SQUARE[:4]]), ["object 1,", "a polygon of 4 numbers"]),
    (outlined([[[4, 4], [9, 4], [9, 8]]]), ["a polygon of shape (3, 2); write points one after"]),
    (outlined(SQUARE), ["write [[x1, y1, x2, y2, ...]]"]),
    (outlined([[*SQUARE[:7], float("nan")]]), ["a coordinate of nan"]),
    (outlined([[*SQUARE[:7], float("-inf")]]), ["a coordinate of -inf"]),
    (outlined([[*SQUARE[:7], 4e8]]), ["a coordinate of 4e+08"]),
    (outlined([["a"] * 6]), ["'a'", "An object is a list of polygons"]),
    (outlined([]), ["it has no polygon"]),
    (outlined(torch.tensor(SQUARE)), ["it is a Tensor, not a list of polygons"]),
    (outlined([[value / 12 for value in SQUARE]]), ["polygons in [0, 1]", "Multiply x by 12"]),
    (outlined([SQUARE], labels=(0, 1)), ["1 segmentations but labels of shape (2,)"]),
    (outlined([SQUARE], masks=torch.ones(1, *CANVAS).bool()), ["'segmentation' and 'masks'"]),
    (outlined([SQUARE], [SQUARE], **HAS), ["1 boxes but 2 segmentations"]),
    (outlined([SQUARE], boxes=torch.zeros(0, 4), labels=()), ["0 boxes but 1 segmentations"]),
    ({**outlined([SQUARE]), "segmentation": torch.ones(1, 12, 12)}, ["Did you mean 'masks'?"]),
    ({**outlined([SQUARE]), "segmentation": {"size": [12, 12], "counts": [144]}}, ["Wrap it in []"]),
    (outlined({"counts": [144]}), ["run lengths without 'size'"]),
    (outlined({"size": [12, 12]}), ["without 'counts'"]),
    (outlined({"size": [12, 12], "counts": [3, 4]}), ["its counts sum to 7, not to 12 x 12"]),
    (outlined({"size": [24, 24], "counts": [576]}), ["run lengths of 24 x 24", "input is 12 x 12"]),
    ({**HAS, "labels": [0], "polygons": [[SQUARE]]}, ["'polygons' beside 'boxes'", "'segmentation'?"]),
    (outlined([CORNER], **HAS), ["box [4.0, 4.0, 9.0, 8.0] whose segmentation spans [8.0, 8.0, 40"]),
]  # fmt: skip


@pytest.mark.parametrize(("target", "parts"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_cannot_be_meant_is_refused(target: Any, parts: list[str]) -> None:
    with pytest.raises(AnnotationError) as error:
        Annotations.from_targets([target], canvas=CANVAS)
    assert str(error.value).startswith("Annotations.from_targets: image 0")
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_without_a_canvas_polygons_cannot_be_drawn() -> None:
    with pytest.raises(AnnotationError, match=r"not known\. Pass canvas=\(H, W\) of the model's"):
        Annotations.from_targets([outlined([SQUARE])])
    named = tv_tensors.BoundingBoxes(HAS["boxes"], format="XYXY", canvas_size=CANVAS)
    found = Annotations.from_targets([outlined([SQUARE], boxes=named)])
    assert torch.equal(found.masks[0, 0], drawn([SQUARE]))


def test_without_pycocotools_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(AnnotationError, match=r"`pip install explainguide\[coco\]`"):
        Annotations.from_targets([outlined([SQUARE])], canvas=CANVAS)


def test_transforms_do_not_move_polygons_and_boxes_beside_them_tell() -> None:
    named = tv_tensors.BoundingBoxes([[0.0, 4, 5, 8]], format="XYXY", canvas_size=CANVAS)
    at_left = [0.0, 4, 5, 4, 5, 8, 0, 8]
    alone, beside = outlined([at_left]), outlined([at_left], boxes=named)
    Annotations.from_targets([beside])
    assert flipped(alone)["segmentation"] == alone["segmentation"]  # nobody can see it afterwards
    with pytest.raises(AnnotationError, match="Transforms move boxes and masks, not polygons"):
        Annotations.from_targets([flipped(beside)])


def test_polygons_drawn_before_the_transforms_move() -> None:
    before = Annotations.from_targets([outlined([TRIANGLE])], canvas=CANVAS)
    moved = flipped({"masks": tv_tensors.Mask(before.masks[0]), "labels": torch.tensor([0])})
    assert torch.equal(Annotations.from_targets([moved]).masks[0, 0], drawn([TRIANGLE]).flip(1))
