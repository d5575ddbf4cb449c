"""Small data sets in the layouts that are published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

DIAGNOSES = {"ISIC_0000000": (0, 0), "ISIC_0000001": (1, 0), "ISIC_0000002": (0, 1)}
BIRDS = (  # id, file, y, split, place
    (1, "001.Albatross/Albatross_0001.jpg", 1, 0, 1),
    (2, "001.Albatross/Albatross_0002.jpg", 1, 0, 0),
    (3, "002.Wren/Wren_0001.jpg", 0, 0, 0),
    (4, "002.Wren/Wren_0002.jpg", 0, 0, 1),
    (5, "001.Albatross/Albatross_0003.jpg", 1, 1, 1),
    (6, "002.Wren/Wren_0003.jpg", 0, 1, 1),
    (7, "001.Albatross/Albatross_0004.jpg", 1, 2, 0),
    (8, "002.Wren/Wren_0004.jpg", 0, 2, 1),
)
PETS = (  # name, class, species, breed
    ("Abyssinian_1", 1, 1, 1),
    ("Abyssinian_2", 1, 1, 1),
    ("american_bulldog_10", 2, 2, 1),
    ("american_bulldog_11", 2, 2, 1),
    ("Birman_3", 5, 1, 3),
)
THING = (8, 4, 24, 16)  # where a white thing is, x1 y1 x2 y2, in pictures of 40 x 30


def picture(
    path: Path,
    size: tuple[int, int] = (40, 30),
    thing: tuple[int, int, int, int] | None = THING,
    grey: int = 0,
) -> None:
    """A grey picture with a white thing; `size` is (width, height)."""
    pixels = np.full((size[1], size[0], 3), grey, dtype=np.uint8)
    if thing is not None:
        x1, y1, x2, y2 = thing
        pixels[y1:y2, x1:x2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def filled(value: int = 255, elsewhere: int = 0, size: tuple[int, int] = (40, 30)) -> np.ndarray:
    """A mask of the white thing."""
    x1, y1, x2, y2 = THING
    pixels = np.full((size[1], size[0]), elsewhere, dtype=np.uint8)
    pixels[y1:y2, x1:x2] = value
    return pixels


def mask(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def waterbirds(root: Path) -> Path:
    """WILDS's folder, with CUB's boxes and segmentations beside it."""
    folder = root / "waterbirds_v1.0"
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    boxes = []
    for number, name, y, split, place in BIRDS:
        picture(folder / name)
        lines.append(f"{number},{name},{y},{split},{place},/o/ocean/{number}.jpg")
        boxes.append(f"{number} 7.0 3.0 18.0 14.0")
        marked = filled(204)
        marked[4, 8:24] = 51  # one of five
        mask(root / "CUB/segmentations" / Path(name).with_suffix(".png"), marked)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    (root / "CUB/bounding_boxes.txt").write_text("\n".join(boxes) + "\n")
    return folder


def coco(root: Path) -> Path:
    """Five images: two things; a thing and a crowd; a crowd; nothing; run lengths."""
    folder = root / "coco"
    runs = {"size": [30, 40], "counts": [8 * 30 + 4, 12, 30 * 40 - 8 * 30 - 16]}
    polygon = [[8, 4, 24, 4, 24, 16, 8, 16]]
    crowd = {"segmentation": {**runs}, "bbox": [0, 0, 40, 30], "iscrowd": 1}
    annotations = [
        {"image_id": 9, "category_id": 90, "bbox": [8, 4, 16, 12], "segmentation": polygon},
        {
            "image_id": 9,
            "category_id": 1,
            "bbox": [0, 0, 4, 30],
            "segmentation": [[0, 0, 4, 0, 4, 30]],
        },
        {"image_id": 7, "category_id": 13, "bbox": [8, 4, 16, 12], "segmentation": polygon},
        {"image_id": 7, "category_id": 1, **crowd},
        {"image_id": 5, "category_id": 1, **crowd},
        {"image_id": 3, "category_id": 13, "bbox": [8, 4, 1, 12], "segmentation": runs},
    ]
    numbers = {9: "9.jpg", 7: "7.jpg", 5: "5.jpg", 4: "4.jpg", 3: "3.jpg"}
    content = {
        "images": [
            {"id": n, "file_name": name, "height": 30, "width": 40} for n, name in numbers.items()
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 1, "name": "person"},
            {"id": 13, "name": "stop sign"},
        ],
        "annotations": [{"id": i, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
    }
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2014", "val2014"):
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        for name in numbers.values():
            picture(folder / split / name)
    return folder


def imagenet9(root: Path) -> Path:
    """The benchmark's variants, with the masks of the original images."""
    folder = root / "bg_challenge"
    for name in ("00_dog", "01_bird"):
        for variant in ("original", "only_fg", "only_bg_b"):
            for split in ("train", "val"):
                picture(folder / variant / split / name / "n02_1.JPEG", (20, 20), (4, 6, 12, 14))
        picture(
            folder / "mixed_rand/val" / name / "fg_n02_1_bg_n09_7.JPEG", (20, 20), (4, 6, 12, 14)
        )
        picture(folder / "mixed_rand/val" / name / "fg_n02_2_bg_n09_7.JPEG", (20, 20), None)
        pixels = np.zeros((20, 20), dtype=bool)
        pixels[6:14, 4:12] = True
        (folder / "fg_mask/val" / name).mkdir(parents=True)
        np.save(folder / "fg_mask/val" / name / "n02_1.npy", pixels)
    return folder


def imagenet_s(root: Path, classes: int = 300) -> Path:
    """As many classes as ids need two bytes for; three have images."""
    folder = root / "ImageNetS300"
    tags = [f"n{10_000_000 + n}" for n in range(classes)]
    for split in ("train-semi", "validation", "train"):
        for tag in tags:
            (folder / split / tag).mkdir(parents=True)
        for place in (0, 1, classes - 1):
            picture(folder / split / tags[place] / "a.JPEG")
            if split != "train":
                number = place + 1
                pixels = np.zeros((30, 40, 3), dtype=np.uint8)
                pixels[4:16, 8:24] = (number % 256, number // 256, 0)
                pixels[20:, :] = (1000 % 256, 1000 // 256, 0)
                mask(folder / f"{split}-segmentation" / tags[place] / "a.png", pixels)
    picture(folder / "train" / tags[0] / "b.JPEG")
    return folder


def pets(root: Path) -> Path:
    folder = root / "oxford-iiit-pet"
    lines = [" ".join(map(str, pet)) for pet in PETS]
    texts = {"list": ["#Image CLASS-ID SPECIES BREED ID", *lines], "trainval": lines[:4]}
    texts["test"] = lines[4:]
    (folder / "annotations").mkdir(parents=True)
    for name, content in texts.items():
        (folder / f"annotations/{name}.txt").write_text("\n".join(content) + "\n")
    for name, *_ in PETS:
        picture(folder / f"images/{name}.jpg")
        trimap = filled(1, 2)
        trimap[4, 8:24] = 3
        mask(folder / f"annotations/trimaps/{name}.png", trimap)
    return folder


def isic2017(root: Path) -> Path:
    folder = root / "isic"
    for name in ("Training", "Validation", "Test_v2"):
        stem = folder / f"ISIC-2017_{name}"
        lines = ["image_id,melanoma,seborrheic_keratosis"]
        for image, (melanoma, keratosis) in DIAGNOSES.items():
            lines.append(f"{image},{melanoma}.0,{keratosis}.0")
            picture(Path(f"{stem}_Data") / f"{image}.jpg")
            mask(Path(f"{stem}_Data") / f"{image}_superpixels.png", filled())
            mask(Path(f"{stem}_Part1_GroundTruth") / f"{image}_segmentation.png", filled())
        Path(f"{stem}_Part3_GroundTruth.csv").write_text("\n".join(lines) + "\n")
    return folder


def idx(numbers: np.ndarray) -> bytes:
    """MNIST's form: a kind, sizes, bytes."""
    head = np.array([0x800 + numbers.ndim, *numbers.shape], dtype=">u4")
    return head.tobytes() + numbers.astype(np.uint8).tobytes()


def digits(root: Path, count: int = 40, *, packed: bool = True) -> Path:
    """MNIST's files: every digit is a bar in another column."""
    folder = root / "mnist"
    folder.mkdir(parents=True)
    labels = np.arange(count) % 10
    ink = np.zeros((count, 28, 28), dtype=np.uint8)
    for image, label in zip(ink, labels, strict=True):
        image[4:24, 2 + 2 * label : 6 + 2 * label] = 255
    for stem in ("train", "t10k"):
        for name, numbers in (("images-idx3", ink), ("labels-idx1", labels)):
            raw, end = idx(numbers), ".gz" if packed else ""
            path = folder / f"{stem}-{name}-ubyte{end}"
            path.write_bytes(gzip.compress(raw) if packed else raw)
    return folder


def textures(root: Path, count: int = 20, pictures: int = 5) -> Path:
    """DTD's folder: texture n is all of one grey, 10 + 10 n."""
    folder = root / "dtd"
    for n in range(count):
        for place in range(pictures):
            path = folder / "images" / f"texture{n:02}" / f"texture{n:02}_{place:04}.png"
            picture(path, (50, 44), None, grey=10 + 10 * n)
    return folder


def animals(root: Path) -> Path:
    """A VOC year folder with masks: cats are grey 100, dogs grey 200, and their surroundings white."""
    folder = root / "VOC2012"
    (folder / "ImageSets").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for split, count in (("train", 20), ("val", 4), ("test", 8)):
        listed = []
        for n in range(count):
            for name, value in (("cat", 8), ("dog", 12)):
                image = f"{split}_{name}{n:02}"
                listed.append(f"{image} {name}")
                pixels = np.full((30, 40, 3), 255, dtype=np.uint8)
                pixels[4:16, 8:24] = 100 if name == "cat" else 200
                path = folder / "JPEGImages" / f"{image}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(pixels).save(path)
                mask(folder / "SegmentationClass" / f"{image}.png", filled(value))
                (folder / "Annotations" / f"{image}.xml").write_text(
                    f"<annotation><object><name>{name}</name><bndbox><xmin>9</xmin><ymin>5</ymin>"
                    "<xmax>24</xmax><ymax>16</ymax></bndbox></object></annotation>"
                )
        (folder / f"ImageSets/single_{split}.txt").write_text("\n".join(listed) + "\n")
    return folder


def scenes(root: Path) -> Path:
    """Forests are grey 20, streets grey 60."""
    folder = root / "scenes"
    for split, count in (("train", 20), ("test", 6)):
        for scene, grey in (("forest", 20), ("street", 60), ("sea", 90)):
            for n in range(count):
                picture(folder / split / scene / f"{n:02}.png", (36, 32), None, grey=grey)
    return folder
