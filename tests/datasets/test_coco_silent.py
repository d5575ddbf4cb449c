"""COCO files as people have them: nothing is lost or guessed without a word, against pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explainguide.datasets import ImageFolder
from explainguide.errors import AnnotationError, DataError, ExplainGuideWarning

mask_tools = pytest.importorskip("pycocotools.mask")

IMAGES = [
    {"id": 1, "file_name": "cat/a.png", "height": 30, "width": 40},
    {"id": 2, "file_name": "dog/c.png", "height": 30, "width": 40},
]
CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 17, "name": "dog"}]
POLYGON = [[4, 6, 14, 6, 14, 16, 4, 16]]
GOOD = {
    "id": 1,
    "image_id": 1,
    "category_id": 90,
    "bbox": [4, 6, 10, 10],
    "segmentation": POLYGON,
}
RUNS = {"size": [30, 40], "counts": [4 * 30 + 6, 10, 20, 10, 30 * 40 - 4 * 30 - 46]}


def without(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in keys}


def load(root: Path, *annotations: Any, masks: bool = False, **changes: Any) -> ImageFolder:
    content = {"images": IMAGES, "categories": CATEGORIES, "annotations": list(annotations)}
    content = {k: v for k, v in {**content, **changes}.items() if v is not None}
    (root / "boxes.json").write_text(json.dumps(content))
    return ImageFolder(root, root / "boxes.json", masks=masks)


@pytest.mark.parametrize(
    "box", [[29.65, 8.33, 1.03, 0.0], [9, 9, 0, 5], [9, 9, 0, 0], [33.0, 8, 1e-9, 5]]
)
def test_silent_boxes_without_area_are_left_out_and_told_once(photos: Path, box: Any) -> None:
    bad = [{**GOOD, "id": i, "image_id": 2, "bbox": box} for i in (918, 7, 8, 9)]
    expected = (
        r"^ImageFolder: '.*boxes\.json' has 4 boxes of no width or no height, left out: "
        r"'annotation 918', 'annotation 7', 'annotation 8' and 1 more\.$"
    )
    with pytest.warns(ExplainGuideWarning, match=expected) as caught:
        data = load(photos, *bad, GOOD)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert data.annotated.tolist() == [True, False, False]
    assert data[0][2]["boxes"].tolist() == [[4, 6, 14, 16]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools with numpy 2
@pytest.mark.parametrize("bbox", ["absent", None, []])
def test_silent_box_of_the_polygons(photos: Path, bbox: Any) -> None:
    polygons = [[4, 6, 14, 6, 14, 16], [20, 2, 22.5, 9, 21, 3]]
    entry = {**without(GOOD, "bbox"), "segmentation": polygons}
    data = load(photos, entry if bbox == "absent" else {**entry, "bbox": bbox}, masks=True)
    annotation = data[0][2]
    assert annotation["boxes"].tolist() == [[4, 2, 22.5, 16]]
    runs = mask_tools.merge(mask_tools.frPyObjects(polygons, 30, 40))
    x, y, width, height = mask_tools.toBbox(runs)  # of whole pixels
    difference = annotation["boxes"].numpy() - [[x, y, x + width, y + height]]
    assert abs(difference).max() <= 1
    assert np.array_equal(annotation["masks"][0], mask_tools.decode(runs))


@pytest.mark.parametrize("compressed", [False, True])
def test_silent_box_of_the_run_lengths(photos: Path, compressed: bool) -> None:
    runs = RUNS
    if compressed:
        encoded = mask_tools.frPyObjects(RUNS, 30, 40)
        runs = {"size": [30, 40], "counts": encoded["counts"].decode()}
    data = load(photos, {**without(GOOD, "bbox"), "segmentation": runs}, masks=True)
    painted = np.zeros((30, 40))
    painted[6:16, 4:6] = 1
    assert data[0][2]["boxes"].tolist() == [[4, 6, 6, 16]]
    assert np.array_equal(data[0][2]["masks"][0], painted)
    wrong = {**runs, "size": [60, 20]}
    with pytest.raises(DataError, match=r"given as \(60, 20\) and the image is \(30, 40\)"):
        load(photos, {**without(GOOD, "bbox"), "segmentation": wrong})


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([without(GOOD, "bbox", "segmentation")], {}, r"annotation 1: no bbox, and no segment"),
        (
            [{**without(GOOD, "bbox"), "segmentation": [[4, 6, 9, 9]]}],
            {},
            r"polygon of 4 numbers.*\)\. Give bbox as .* is allowed\.",
        ),
        ([{**without(GOOD, "bbox"), "segmentation": [["a"] * 6]}], {}, r"annotation 1: .*'a'"),
        ([{**without(GOOD, "bbox"), "segmentation": {"counts": []}}], {}, r"'size'"),
        ([{**GOOD, "bbox": [4, 6, 10]}], {}, r"annotation 1: bbox \[4, 6, 10\] is not x, y"),
        (
            [{**GOOD, "bbox": {"x": 4}}],
            {},
            r"annotation 1: bbox .* is not x, y, width, height\. Give these",
        ),
        ([without(GOOD, "category_id")], {}, r"annotation 1: no 'category_id'\. Every annotation"),
        ([without(GOOD, "image_id")], {}, r"annotation 1: no 'image_id'\."),
        ([{**GOOD, "image_id": None}], {}, r"annotation 1: no 'image_id'\."),
        (
            [{**GOOD, "image_id": [1]}],
            {},
            r"annotation 1: image_id is \[1\]\. Give the id of one entry\. A number or text is allowed",
        ),
        (
            [{**GOOD, "image_id": "1"}],
            {},
            r"annotation 1: image_id '1' is not in the file\. Did you mean 1\? The ids",
        ),
        ([GOOD, without(GOOD, "id", "image_id")], {}, r"annotations\[1\]: no 'image_id'"),
        ([GOOD, 3], {}, r"is not COCO JSON \(annotations\[1\] is 3\)"),
        ([GOOD], {"images": [without(IMAGES[0], "file_name")]}, r"image 1: no 'file_name'"),
        ([GOOD], {"images": [without(IMAGES[0], "id")]}, r"images\[0\]: no 'id'"),
        (
            [GOOD],
            {"images": [{**IMAGES[0], "file_name": 5}]},
            r"image 1: file_name is 5\. Write it as text, in quotes\. Text",
        ),
        ([GOOD], {"categories": [{"id": 90}]}, r"category 90: no 'name'\. Every category needs"),
        ([GOOD], {"images": None}, r"is not COCO JSON \(no 'images'\)\. It needs images"),
        ([GOOD], {"categories": None}, r"is not COCO JSON \(no 'categories'\)"),
        ([GOOD], {"annotations": None}, r"is not COCO JSON \(no 'annotations'\)"),
        ([GOOD], {"categories": {"90": "cat"}}, r"\('categories' is not a list\)"),
        ([GOOD], {"images": [IMAGES[0], {**IMAGES[1], "id": 1}]}, r"image 1: the id occurs twice"),
        ([GOOD], {"categories": [CATEGORIES[0], {"id": 90, "name": "dog"}]}, r"'cat' and for 'dog"),
    ],
)
def test_silent_faults_are_named(
    photos: Path, annotations: list[Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"^ImageFolder: '.*boxes\.json'.*{message}"):
        load(photos, *annotations, **changes)


def test_silent_list_of_detections(photos: Path) -> None:
    (photos / "boxes.json").write_text(json.dumps([{**GOOD, "score": 0.5}]))
    with pytest.raises(DataError, match=r"is not COCO JSON \(it is a list, not an object\)"):
        ImageFolder(photos, photos / "boxes.json")


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "latin-1"])
def test_silent_json_in_other_encodings(photos: Path, codec: str) -> None:
    content = {"info": "Bär", "images": IMAGES, "categories": CATEGORIES, "annotations": [GOOD]}
    text = json.dumps(content, ensure_ascii=False)
    (photos / "boxes.json").write_bytes(text.encode(codec))
    if codec == "latin-1":
        with pytest.raises(DataError, match=r"boxes\.json' is not a JSON file in UTF-8"):
            ImageFolder(photos, photos / "boxes.json")
    else:
        assert ImageFolder(photos, photos / "boxes.json").annotated[0]


def test_silent_harmless_repetitions(photos: Path) -> None:
    repeated = {"images": [*IMAGES, IMAGES[0]], "categories": [*CATEGORIES, CATEGORIES[1]]}
    assert load(photos, GOOD, **repeated).annotated.tolist() == [True, False, False]
    other = {**GOOD, "bbox": [0, 0, 8, 8]}
    expected = r"uses 1 annotation id more than once \('annotation 1'\); every entry is taken"
    with pytest.warns(ExplainGuideWarning, match=expected) as caught:
        data = load(photos, GOOD, other)
    assert caught[0].filename == __file__
    assert data[0][2]["boxes"].tolist() == [[4, 6, 14, 16], [0, 0, 8, 8]]
    assert len(load(photos, without(GOOD, "id"), without(other, "id"))[0][2]["boxes"]) == 2


def test_silent_names_decide_not_numbers_of_categories(photos: Path) -> None:
    data = load(
        photos, GOOD, {**GOOD, "id": 2, "category_id": 17}, {**GOOD, "id": 3, "image_id": 2.0}
    )
    assert data[0][2]["labels"].tolist() == [0, 1]  # cat is 90 in the file and stands first


@pytest.mark.parametrize("crowd", [0, "0", False, None, 1, "1", True])
def test_silent_crowds(photos: Path, crowd: Any) -> None:
    data = load(photos, {**GOOD, "iscrowd": crowd})
    assert bool(data.annotated[0]) == (crowd not in (1, "1"))


@pytest.mark.parametrize("size", [{}, {"height": 30}, {"height": 0, "width": 0}, {"height": None}])
def test_silent_masks_take_the_size_of_the_image(photos: Path, size: dict[str, Any]) -> None:
    images = [{**without(i, "height", "width"), **size} for i in IMAGES]
    data = load(photos, GOOD, {**GOOD, "id": 2, "segmentation": RUNS}, masks=True, images=images)
    painted = np.zeros((2, 30, 40), dtype=bool)
    painted[0, 6:16, 4:14] = painted[1, 6:16, 4:6] = True
    assert np.array_equal(data[0][2]["masks"], painted)


def test_silent_run_lengths_of_another_size(photos: Path) -> None:
    entry = {**GOOD, "segmentation": {"size": [60, 20], "counts": RUNS["counts"]}}
    message = (
        r"^ImageFolder: '.*boxes\.json', annotation 1: the run lengths are of size \(60, 20\) and "
        r"'cat/a\.png' is \(30, 40\) \(height, width\)\. Was it resized without its masks\? Resize both, .* are allowed\.$"
    )
    with pytest.raises(AnnotationError, match=message):
        load(photos, entry, masks=True)
    assert load(photos, entry)[0][2]["boxes"].tolist() == [[4, 6, 14, 16]]  # they are not used
    short = {**GOOD, "segmentation": {"size": [30, 40], "counts": [10, 20]}}
    with pytest.raises(AnnotationError, match=r"annotation 1 .*counts sum to 30, not to 30 x 40"):
        load(photos, short, masks=True)[0]


@pytest.mark.parametrize("polygon", [[5, 5, 15, 15], [5, 5, 15, 5, 15, 15, 5]])
def test_silent_polygon_that_is_none(photos: Path, polygon: list[int]) -> None:
    data = load(photos, {**GOOD, "segmentation": [polygon]}, masks=True)
    with pytest.raises(AnnotationError, match=rf"a polygon of {len(polygon)} numbers; it needs 6"):
        data[0]


def test_silent_masks_for_some_objects_only(photos: Path) -> None:
    bare = {**GOOD, "id": 2, "bbox": [20, 20, 9, 9], "segmentation": []}
    expected = (
        r"^ImageFolder: masks=True, but in 1 images of '.*boxes\.json' some objects have no "
        r"segmentation and others have \(first: annotation 2, 'cat/a\.png'\); these images have "
        r"boxes only\. Give every object of an image a segmentation\.$"
    )
    with pytest.warns(ExplainGuideWarning, match=expected) as caught:
        data = load(photos, GOOD, bare, {**GOOD, "id": 3, "image_id": 2}, masks=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "masks" not in data[0][2]
    assert data[2][2]["masks"].sum() == 100
    load(photos, GOOD, bare)  # nothing to say where none were asked for


def test_silent_masks_nowhere(photos: Path) -> None:
    expected = r"^ImageFolder: masks=True, but '.*' holds no segmentation, .*leave out masks=True"
    with pytest.warns(ExplainGuideWarning, match=expected):
        load(photos, without(GOOD, "segmentation"), masks=True)
    (photos / "boxes.csv").write_text("image,xmin,ymin,xmax,ymax\na.png,4,6,14,16\n")
    with pytest.warns(ExplainGuideWarning, match=expected):
        ImageFolder(photos, photos / "boxes.csv", masks=True)
    assert not load(photos, masks=True).annotated.any()  # a file without any object
