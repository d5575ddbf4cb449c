"""VOC on the published folders, where a copy lies beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explainguide.datasets import VOC, VOC_CLASSES

DATA = Path(__file__).parents[2].parent / "shared" / "data"

needs_2007 = pytest.mark.skipif(
    not (DATA / "VOC2007").is_dir(), reason="no VOC2007 test set beside the repository"
)
needs_animals = pytest.mark.skipif(
    not (DATA / "voc12_animals").is_dir(), reason="no VOC2012 animals beside the repository"
)

# Published totals of the VOC2007 test set: images of a class and its objects, difficult included.
TOTALS = {
    "aeroplane": (205, 311),
    "bicycle": (250, 389),
    "bird": (289, 576),
    "cat": (332, 370),
    "person": (2097, 5227),
    "tvmonitor": (255, 361),
}


@pytest.fixture(scope="module")
def voc2007() -> VOC:
    return VOC(DATA / "VOC2007", "test", difficult="include", masks=True)


@needs_2007
def test_published_counts(voc2007: VOC) -> None:
    assert len(voc2007) == 4952
    assert voc2007.has_mask.sum() == 210
    labels = np.concatenate([r.labels for r in voc2007._records])
    assert len(labels) == 14976
    assert sum(int(r.difficult.sum()) for r in voc2007._records) == 2944
    for name, (images, objects) in TOTALS.items():
        index = VOC_CLASSES.index(name)
        assert (labels == index).sum() == objects
        assert voc2007.labels[:, index].sum() == images


@needs_2007
def test_labels_agree_with_the_class_splits(voc2007: VOC) -> None:
    ignored = VOC(DATA / "VOC2007", "test")
    for index, name in enumerate(VOC_CLASSES):
        lines = (DATA / "VOC2007/ImageSets/Main" / f"{name}_test.txt").read_text().split()
        flags = torch.tensor([int(flag) for flag in lines[1::2]])
        assert torch.equal(ignored.labels[:, index] == 1, flags == 1)
        assert torch.equal(ignored.difficult_only[:, index], flags == 0)
    assert VOC(DATA / "VOC2007", "cat_test").labels[:, VOC_CLASSES.index("cat")].all()


@needs_2007
def test_first_image_by_hand(voc2007: VOC) -> None:
    image, labels, annotation = voc2007[0]
    assert image.shape == (3, 272, 192)
    assert [VOC_CLASSES[i] for i in labels.nonzero().flatten()] == ["dog", "person"]
    # 000001.xml: dog 26 131 106 202, person 4 7 191 271.
    assert annotation["boxes"].tolist() == [[25, 130, 106, 202], [3, 6, 191, 271]]
    assert [VOC_CLASSES[i] for i in annotation["labels"]] == ["dog", "person"]
    assert "masks" not in annotation


@needs_2007
def test_local_splits_and_masks() -> None:
    sizes = [len(VOC(DATA / "VOC2007", f"demo_{s}")) for s in ("train", "val", "test")]
    assert sizes == [3000, 500, 1452]
    masked = VOC(DATA / "VOC2007", "demo_test", masks=True, only_masked=True)
    assert len(masked) == 210
    assert masked.ids == VOC(DATA / "VOC2007", "Segmentation/test").ids
    for index in range(0, 210, 21):
        annotation = masked[index][2]
        path = DATA / "VOC2007/SegmentationClass" / f"{masked.ids[index]}.png"
        classes = torch.from_numpy(np.array(Image.open(path)))
        for box, label, mask in zip(
            annotation["boxes"], annotation["labels"], annotation["masks"], strict=True
        ):
            x1, y1, x2, y2 = box.int().tolist()
            assert torch.equal(mask[y1:y2, x1:x2], classes[y1:y2, x1:x2] == label + 1)
            assert mask.sum() == mask[y1:y2, x1:x2].sum() > 0


@needs_animals
def test_animals() -> None:
    data = VOC(DATA / "voc12_animals", "all", masks=True)
    assert len(data) == 3576
    assert data.has_mask.all()
    shown = {n: int(data.labels[:, VOC_CLASSES.index(n)].sum()) for n in ("dog", "cat", "cow")}
    assert shown == {"dog": 1304, "cat": 1120, "cow": 333}
    sizes = [len(VOC(DATA / "voc12_animals", f"single_{s}")) for s in ("train", "val", "test")]
    assert sizes == [2419, 346, 693]
    image, _, annotation = data[0]
    assert min(image.shape[1:]) == 160
    assert annotation["masks"].shape == (len(annotation["boxes"]), *image.shape[1:])
