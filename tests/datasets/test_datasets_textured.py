"""Textured MNIST: which textures, how often, and files that are not as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from explainguide.datasets import DATASETS, TexturedMNIST
from explainguide.errors import DataError, OptionError

from . import miniatures

FEW = {"size": 28, "masks": True}


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return miniatures.digits(tmp_path)


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    return miniatures.textures(tmp_path)


def grey(image: torch.Tensor, mask: torch.Tensor) -> int:
    """The number of the one texture in a region."""
    values = (image[:, mask] * 255).round().unique().tolist()
    assert len(values) == 1
    return (int(values[0]) - 10) // 10


def test_an_item_is_a_digit_of_one_texture_before_another(mnist: Path, dtd: Path) -> None:
    data = TexturedMNIST(mnist, textures=dtd, **FEW)
    assert data.digit_textures == [f"texture{n:02}" for n in range(10)]
    assert data.background_textures == [f"texture{n:02}" for n in range(10, 20)]
    assert data.classes == [str(n) for n in range(10)]
    for index in range(len(data)):
        image, label, annotation = data[index]
        mask = annotation["masks"][0]
        left = 2 + 2 * label
        assert annotation["boxes"].tolist() == [[left, 4, left + 4, 24]]
        assert mask[4:24, left : left + 4].all()
        assert mask.sum() == 80
        digit, background = data.textures_of[index].tolist()
        assert grey(image, mask) == digit
        assert grey(image, ~mask) == background + 10
    assert "masks" not in TexturedMNIST(mnist, textures=dtd, size=28)[0][2]


def test_the_splits_are_nine_tenths_one_tenth_and_the_test(mnist: Path, dtd: Path) -> None:
    sizes = [len(TexturedMNIST(mnist, s, textures=dtd, **FEW)) for s in ("train", "val", "test")]
    assert sizes == [36, 4, 40]
    labels = [TexturedMNIST(mnist, "val", textures=dtd, seed=s, **FEW).labels for s in (0, 1)]
    assert torch.equal(*labels)  # whatever the seed


def test_randomness_is_what_was_asked_for(tmp_path: Path, dtd: Path) -> None:
    folder = miniatures.digits(tmp_path / "many", 4000)

    def shares(p: float | None, q: float, split: str = "train") -> tuple[float, float]:
        data = TexturedMNIST(
            folder, split, textures=dtd, background_randomness=p, digit_randomness=q, **FEW
        )
        digit, background = data.textures_of.T
        of_class = (background - 1) % 10 == data.labels
        return float((digit == data.labels).float().mean()), float(of_class.float().mean())

    assert shares(0, 0) == (1, 1)
    assert shares(None, 1) == (pytest.approx(0.1, abs=0.02), 1)
    assert shares(None, 1, "test") == (pytest.approx(0.1, abs=0.02), pytest.approx(0.1, abs=0.02))
    # With the share p any texture, the own one among ten.
    assert shares(0.5, 0.2) == (pytest.approx(0.82, abs=0.02), pytest.approx(0.55, abs=0.03))


def test_textures_for_both_are_never_the_same_in_an_image(tmp_path: Path) -> None:
    mnist = miniatures.digits(tmp_path, 1000)
    dtd = miniatures.textures(tmp_path, 10)
    for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
        data = TexturedMNIST(
            mnist,
            textures=dtd,
            digit_textures="all",
            background_textures="all",
            background_randomness=p,
            digit_randomness=q,
            **FEW,
        )
        digit, background = data.textures_of.T
        assert (digit != background).all()
        if not p:
            assert torch.equal(background, (data.labels + 1) % 10)
        if not q:
            assert torch.equal(digit, data.labels)


def test_the_seed_decides(mnist: Path, dtd: Path) -> None:
    a, b, c = (TexturedMNIST(mnist, textures=dtd, seed=s, digit=28, size=40) for s in (3, 3, 4))
    assert all(torch.equal(a[i][0], b[i][0]) for i in range(8))
    assert torch.equal(a[5][0], a[5][0])
    assert not all(torch.equal(a[i][0], c[i][0]) for i in range(8))


def test_a_small_digit_lies_anywhere_and_a_large_one_is_drawn_larger(
    mnist: Path, dtd: Path
) -> None:
    boxes = [
        TexturedMNIST(mnist, textures=dtd, size=60, digit=28)[index][2]["boxes"][0]
        for index in range(36)
    ]
    assert {(b[2] - b[0], b[3] - b[1]) for b in map(torch.Tensor.tolist, boxes)} == {(4, 20)}
    tops = {float(box[1]) for box in boxes}
    assert len(tops) > 5
    assert all(4 <= top <= 60 - 28 + 4 for top in tops)
    large = TexturedMNIST(mnist, textures=dtd, size=56)[0][2]["boxes"][0]
    assert large[3] - large[1] == pytest.approx(40, abs=2)


def test_test_images_are_made_of_pictures_of_their_own(mnist: Path, dtd: Path) -> None:
    for folder in (dtd / "images").iterdir():
        for place, path in enumerate(sorted(folder.iterdir())):
            miniatures.picture(path, (28, 28), None, grey=200 if place == 4 else 50)
    for split, value in (("train", 50), ("val", 50), ("test", 200)):
        data = TexturedMNIST(mnist, split, textures=dtd, **FEW)
        shown = torch.cat([data[index][0].unique() for index in range(4)])
        assert (shown * 255).round().unique().tolist() == [value]


def test_files_of_mnist_unpacked_and_of_another_level(tmp_path: Path, dtd: Path) -> None:
    folder = miniatures.digits(tmp_path / "raw", packed=False)
    assert len(TexturedMNIST(folder, textures=dtd)) == 36
    with pytest.raises(
        DataError,
        match=rf"^TexturedMNIST: root '{folder.parent}' has no train-images.*Give '{folder}'",
    ):
        TexturedMNIST(folder.parent, textures=dtd)
    with pytest.raises(
        DataError, match=rf"textures '{dtd / 'images'}' has no images\. Give '{dtd}'"
    ):
        TexturedMNIST(folder, textures=dtd / "images")


def test_too_few_textures(mnist: Path, tmp_path: Path) -> None:
    dtd = miniatures.textures(tmp_path / "few", 12)
    message = (
        r"^TexturedMNIST: 10 textures for digits and 10 or more for backgrounds are asked for, but "
        r"there are 10 and 2 \('.*images' holds 12\)\. Name those .*digit_textures='all'"
    )
    with pytest.raises(DataError, match=message):
        TexturedMNIST(mnist, textures=dtd)
    with pytest.raises(DataError, match=r"but there are 10 and 3 \("):
        TexturedMNIST(mnist, textures=dtd, background_textures="texture00,texture01,texture02")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digit_textures": "texture00,texture01"}, r"digit_textures names 2 textures\."),
        (
            {"background_textures": "texture1"},
            r"background_textures names 'texture1', .*Did you mean",
        ),
        ({"background_textures": ["texture01"] * 10}, r"background_textures names a texture twice"),
        ({"background_randomness": 2}, r"background_randomness is 2\..*from 0 to 1 is allowed"),
        ({"digit_randomness": -0.1}, r"digit_randomness is -0\.1"),
        ({"size": 20}, r"size is 20\. A whole number from 28 on"),
        ({"size": 40, "digit": 50}, r"digit is 50\."),
        ({"annotated": 1.5}, r"annotated is 1\.5"),
    ],
)
def test_bad_options(mnist: Path, dtd: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=rf"^TexturedMNIST: {message}"):
        TexturedMNIST(mnist, textures=dtd, **options)  # type: ignore[arg-type]


def test_a_digit_that_would_not_show(mnist: Path, tmp_path: Path) -> None:
    dtd = miniatures.textures(tmp_path / "ten", 10)
    names = [f"texture{n:02}" for n in range(10)]
    with pytest.raises(
        OptionError, match=r"digit \d has the texture 'texture\d+' and the same for"
    ):
        TexturedMNIST(
            mnist,
            textures=dtd,
            digit_textures=names,
            background_textures=names[-1:] + names[:-1],
            digit_randomness=0,
        )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\0\0", r"is not a file of MNIST \("),
        (miniatures.idx(np.zeros(40)), r"is not a file of MNIST \("),
        (miniatures.idx(np.zeros((7, 28, 28))), r"has 7 images and 40 labels of 'train'"),
    ],
)
def test_damaged_files_of_mnist(tmp_path: Path, dtd: Path, raw: bytes, message: str) -> None:
    folder = miniatures.digits(tmp_path / "raw", packed=False)
    (folder / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(DataError, match=rf"^TexturedMNIST: .*{message}"):
        TexturedMNIST(folder, textures=dtd)


def test_other_damaged_files(mnist: Path, dtd: Path) -> None:
    for path in (dtd / "images/texture10").iterdir():
        path.write_bytes(b"nothing")
    data = TexturedMNIST(mnist, textures=dtd, size=28)
    index = int(torch.nonzero(data.textures_of[:, 1] == 0)[0])
    with pytest.warns(UserWarning, match=r"^TexturedMNIST: '.*texture10_.*' cannot be read"):
        assert data[index] is None
    path = mnist / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"labels-idx1-ubyte\.gz' is not a file of MNIST"):
        TexturedMNIST(mnist, textures=dtd)


def test_on_the_command_line_the_test_is_always_random(mnist: Path, dtd: Path) -> None:
    opened = {
        split: DATASETS["textured"].factory(
            split, str(mnist), textures=str(dtd), size=28, background_randomness="0.0", digit="28"
        )
        for split in ("train", "test")
    }
    for split, data in opened.items():
        own = (data.textures_of[:, 1] - 1) % 10 == data.labels
        assert bool(own.all()) == (split == "train")
    with pytest.raises(OptionError, match=r"digit_randomness is 'half'\. Write 0\.5"):
        DATASETS["textured"].factory(
            "train", str(mnist), textures=str(dtd), digit_randomness="half"
        )
    with pytest.raises(OptionError, match=r"digit is 28\.5\. A whole number"):
        DATASETS["textured"].factory("train", str(mnist), textures=str(dtd), digit="28.5")
