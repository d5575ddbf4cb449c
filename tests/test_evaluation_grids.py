"""Grids of confident images of distinct classes, and the game on them, against slow loops."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.attr import Gradient, InputXGradient
from explainguide.errors import (
    DataError,
    ExplainGuideError,
    OptionError,
    ShapeError,
)
from explainguide.evaluation import (
    DiFull,
    confident_images,
    cut_cells,
    grid_game,
    join_cells,
    make_grids,
)
from explainguide.evaluation.grids import choose_grids
from explainguide.metrics import aggregate_maps, grid_pointing_game

SIDE, CLASSES = 8, 6


class Colours(nn.Module):
    """Knows class k by how much of the image is of the k-th colour; the surer, the stronger."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.colours = nn.Parameter(torch.randn(classes, 3, generator=generator))
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.drop(images).mean((2, 3)), self.colours)


def items(count: int = 30, classes: int = CLASSES, *, missing: bool = True) -> list[Any]:
    """Images of a colour each, of rising strength, some of them of the wrong class or unreadable."""
    model = Colours(classes)
    generator = torch.Generator().manual_seed(1)
    data: list[Any] = []
    for i in range(count):
        label = i % classes
        colour = model.colours[label].detach() * (0.2 + 3 * i / count)
        image = colour[:, None, None] + 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
        wrong = i % 11 == 7
        data.append((image, (label + 1) % classes if wrong else label, None))
        if missing and i % 13 == 5:
            data[-1] = None
    return data


def test_cells_are_joined_down_the_columns():
    cells = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 2, 4, 5)
    joined = join_cells(cells)
    assert joined.shape == (2, 12, 15)
    assert joined[0, ::4, ::5].tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert torch.equal(cut_cells(joined, 3), cells)
    by_rows = join_cells(cells, order="row")
    assert by_rows[0, ::4, ::5].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert torch.equal(cut_cells(by_rows, 3, order="row"), cells)
    several = torch.randn(2, 3, 4, 2, 5, 6)
    assert torch.equal(cut_cells(join_cells(several), 2), several)


@pytest.mark.parametrize("by", ["softmax", "sigmoid"])
@pytest.mark.parametrize("form", ["classes", "multi-hot"])
def test_confident_images_equal_a_slow_loop(by, form):
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(50, 4, generator=generator)
    labels = torch.randint(0, 4, (50,), generator=generator)
    given = labels
    several = torch.zeros(50, dtype=torch.bool)
    if form == "multi-hot":
        given = F.one_hot(labels, 4).float()
        several[::5] = True
        given[several] = torch.tensor([1.0, 0.0, 1.0, 0.0])
        given[1] = 0
        several[1] = True
    found = confident_images(logits, given, by=by, confidence=0.6)
    expected = []
    for i in range(50):
        chance = logits[i].softmax(0) if by == "softmax" else logits[i].sigmoid()
        right = int(chance.argmax()) == int(labels[i])
        if right and chance[labels[i]] > 0.6 and not several[i]:
            expected.append((float(chance[labels[i]]), i))
    expected.sort(key=lambda pair: (-pair[0], pair[1]))
    assert expected
    assert found.source.tolist() == [i for _, i in expected]
    assert torch.equal(found.label, labels[found.source])
    assert found.confidence.tolist() == pytest.approx([c for c, _ in expected])


def test_confidence_of_a_single_logit():
    logits = torch.tensor([[2.0], [-2.0], [0.2], [2.0]])
    found = confident_images(logits, torch.tensor([1, 0, 1, 0]), confidence=0.6)
    assert found.source.tolist() == [0, 1]
    assert found.confidence.tolist() == pytest.approx([torch.tensor(2.0).sigmoid().item()] * 2)


def most_grids(labels: list[int], cells: int) -> int:
    """As many as can be, by the condition of Hall: each class once in a grid."""
    counts = [labels.count(k) for k in set(labels)]
    return max(g for g in range(len(labels) + 1) if sum(min(c, g) for c in counts) >= g * cells)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_as_many_grids_as_there_can_be(n, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(12, generator=generator) ** 3 + 0.02
    labels = torch.multinomial(weights, 70, replacement=True, generator=generator)
    labels = torch.cat([torch.arange(12), labels])
    grids = choose_grids(labels, n=n, seed=seed)
    assert len(grids) == most_grids(labels.tolist(), n * n)
    used = grids.flatten().tolist()
    assert len(used) == len(set(used))
    for row in labels[grids]:
        assert len(set(row.tolist())) == n * n


def test_the_first_images_of_a_class_are_used_first():
    labels = torch.arange(5).repeat(20)
    grids = choose_grids(labels, n=2, count=6, seed=3)
    assert len(grids) == 6
    assert int(grids.max()) < 6 * 5  # of each class six images at most
    for k in range(5):
        used = sorted(i for i in grids.flatten().tolist() if labels[i] == k)
        assert used == list(range(k, k + 5 * len(used), 5))


def test_a_seed_decides_the_grids():
    labels = torch.arange(9).repeat(5)
    first = choose_grids(labels, n=2, seed=1)
    assert torch.equal(first, choose_grids(labels, n=2, seed=1))
    assert not torch.equal(first, choose_grids(labels, n=2, seed=2))


def test_make_grids_puts_each_image_into_its_cell():
    images = torch.randn(20, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = [i % 5 for i in range(20)]
    grids = make_grids(images, labels, n=2, count=3)
    assert grids.images.shape == (3, 3, 8, 10)
    for image, names, sources in zip(*grids, strict=True):
        for cell, (name, source) in enumerate(zip(names.tolist(), sources.tolist(), strict=True)):
            row, column = cell % 2, cell // 2
            shown = image[:, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
            assert torch.equal(shown, images[source])
            assert labels[source] == name


def test_no_more_grids_than_the_images_make():
    assert len(make_grids(torch.rand(10, 3, 2, 2), [0, 1, 2, 3, 4] * 2, n=2, count=9).images) == 2


def explained(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, target: InputXGradient(model).attribute(images, target)


def slow_game(data: list[Any], model: nn.Module, source: Tensor, *, n: int) -> Tensor:
    """One map at a time."""
    scores = torch.zeros(source.shape)
    for g, row in enumerate(source.tolist()):
        width = SIDE * n
        image = torch.zeros(1, 3, width, width)
        for cell, i in enumerate(row):
            y, x = SIDE * (cell % n), SIDE * (cell // n)
            image[0, :, y : y + SIDE, x : x + SIDE] = data[i][0]
        for cell, i in enumerate(row):
            image.requires_grad_()
            (gradient,) = torch.autograd.grad(model(image)[0, data[i][1]], image)
            positive = (image * gradient).sum(1)[0].detach().clamp(min=0)
            y, x = SIDE * (cell % n), SIDE * (cell // n)
            total = positive.sum()
            scores[g, cell] = (
                positive[y : y + SIDE, x : x + SIDE].sum() / total if total else torch.nan
            )
            image = image.detach()
    return scores


@pytest.mark.parametrize("batch_size", [3, 32])
def test_the_game_equals_a_slow_loop(batch_size):
    data, model = items(), Colours()
    model.train()
    game = grid_game(
        model, explained(model), data, n=2, grids=None, confidence=0.3, batch_size=batch_size
    )
    assert model.training
    assert model.drop.training
    model.eval()
    logits = model(torch.stack([item[0] for item in data if item is not None]))
    labels = torch.tensor([item[1] for item in data if item is not None])
    numbers = [i for i, item in enumerate(data) if item is not None]
    found = confident_images(logits, labels, confidence=0.3)
    assert game.numbers["confident"] == len(found.source)
    assert game.numbers["classes"] == found.label.unique().numel()
    assert game.numbers["images"] == len(numbers) == len(data) - game.numbers["skipped"]
    confident = {numbers[i] for i in found.source.tolist()}
    assert set(game.source.flatten().tolist()) <= confident
    assert len(game.source) == game.numbers["grids"] > 1
    for row, names in zip(game.source.tolist(), game.labels.tolist(), strict=True):
        assert [data[i][1] for i in row] == names
        assert len(set(names)) == 4
    expected = slow_game(data, model, game.source, n=2)
    torch.testing.assert_close(game.scores, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert game.numbers["gridpg"] == pytest.approx(float(expected.nanmean()), rel=1e-4)
    assert game.numbers["gridpg_undefined"] == int(expected.isnan().sum())


def test_examples_and_kept_maps_are_those_of_the_grids():
    data, model = items(), Colours().eval()
    game = grid_game(
        model, explained(model), data, n=2, confidence=0.3, examples=2, keep_cell=1, grids=None
    )
    assert len(game.examples) == 2
    for g, example in enumerate(game.examples):
        pictures = torch.stack([data[i][0] for i in game.source[g].tolist()])
        assert torch.equal(example.image, join_cells(pictures))
        assert torch.equal(example.labels, game.labels[g])
        maps = InputXGradient(model).attribute(example.image.expand(4, -1, -1, -1), example.labels)
        torch.testing.assert_close(example.maps, maps[:, 0])
        again = grid_pointing_game(example.maps, torch.arange(4), n=2)
        torch.testing.assert_close(again, example.scores, equal_nan=True)
        assert game.kept is not None
        torch.testing.assert_close(game.kept[g], example.maps[1])
    assert game.kept is not None
    assert game.kept_scores is not None
    assert torch.equal(game.kept_scores, game.scores[:, 1])
    assert int(aggregate_maps(game.kept, game.kept_scores).counts.sum()) > 0
    nothing = grid_game(model, explained(model), data, n=2, confidence=0.3, examples=0)
    assert (nothing.examples, nothing.kept, nothing.kept_scores) == ((), None, None)


@pytest.mark.parametrize("layer", [None, "joined"])
def test_heads_of_their_own_score_one(layer):
    torch.manual_seed(0)
    data = items()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Colours()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3)[:, :, None, None])
        model[0].bias.zero_()
    heads = DiFull(model, n=2, layer=layer and "0", cell_size=SIDE)
    method = Gradient(heads, layer)
    game = grid_game(heads, lambda x, k: method.attribute(x, k), data, n=2, confidence=0.3)
    assert game.numbers["gridpg"] == 1
    assert game.numbers["gridpg_undefined"] == 0
    # One head for all cells answers to each of them.
    plain = Gradient(model)
    shared = grid_game(model, lambda x, k: plain.attribute(x, k), data, n=2, confidence=0.3)
    assert shared.numbers["gridpg"] == pytest.approx(0.25)


def test_coarse_maps_stay_in_their_cell_or_flow_over_as_asked():
    data, model = items(), Colours().eval()

    def coarse(images: Tensor, target: Tensor) -> Tensor:
        maps = torch.zeros(len(images), 2, 2)
        maps[:, 0, 0] = 1
        return maps

    options: dict[str, Any] = {"n": 2, "confidence": 0.3, "grids": None}
    nearest = grid_game(model, coarse, data, **options)
    assert nearest.scores.tolist() == [[1.0, 0.0, 0.0, 0.0]] * len(nearest.scores)
    bilinear = grid_game(model, coarse, data, resize="bilinear", **options)
    assert 0.5 < float(bilinear.scores[0, 0]) < 1
    by_rows = grid_game(model, coarse, data, order="row", **options)
    assert torch.equal(by_rows.scores, nearest.scores)


def test_the_options_of_the_metric_are_handed_on():
    data, model = items(), Colours().eval()

    def negative(images: Tensor, target: Tensor) -> Tensor:
        return -torch.ones(len(images), *images.shape[2:])

    options: dict[str, Any] = {"n": 2, "confidence": 0.3}
    left_out = grid_game(model, negative, data, **options)
    assert left_out.numbers["gridpg"] != left_out.numbers["gridpg"]
    assert left_out.numbers["gridpg_undefined"] == left_out.scores.numel()
    assert left_out.scores.isnan().all()
    assert grid_game(model, negative, data, undefined="zero", **options).numbers["gridpg"] == 0
    smooth = grid_game(model, explained(model), data, smoothing=5, **options)
    assert (
        smooth.numbers["gridpg"]
        != grid_game(model, explained(model), data, **options).numbers["gridpg"]
    )


def test_cells_are_resized_to_what_the_model_takes():
    data, model = items(), Colours().eval()
    sizes = set()

    def look(images: Tensor, target: Tensor) -> Tensor:
        sizes.add(tuple(images.shape[2:]))
        return images.sum(1)

    grid_game(model, look, data, n=2, confidence=0.3, cell_size=(SIDE // 2, SIDE // 4))
    assert sizes == {(SIDE, SIDE // 2)}


def test_multi_hot_labels_of_one_class_are_taken():
    data, model = items(missing=False), Colours().eval()
    hot = [(image, F.one_hot(torch.tensor(k), CLASSES).float(), None) for image, k, _ in data]
    several = [(image, labels.clone(), None) for image, labels, _ in hot]
    for _, labels, _ in several[::4]:
        labels[:2] = 1
    options: dict[str, Any] = {"n": 2, "confidence": 0.6, "by": "sigmoid", "grids": None}
    plain = grid_game(model, explained(model), data, **options)
    torch.testing.assert_close(
        grid_game(model, explained(model), hot, **options).scores, plain.scores, equal_nan=True
    )
    fewer = grid_game(model, explained(model), several[1:] + several[:1], **options)
    assert fewer.numbers["confident"] < plain.numbers["confident"]


def broken(shape: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, target: torch.zeros(len(images), *shape)


def lose(data: list[Any], lost: int) -> Any:
    """Each item from one on can be read once."""

    class Losing(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.reads: set[int] = set()

        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> Any:
            again = index in self.reads
            self.reads.add(index)
            return None if again and index >= lost else data[index]

    return Losing()


MODEL = Colours().eval()
PLAYED: dict[str, Any] = {"n": 2, "confidence": 0.3}
MISTAKES: dict[str, tuple[Callable[[], object], type[ExplainGuideError], str]] = {
    "too few classes": (
        lambda: grid_game(MODEL, broken((4, 4)), items(), n=3),
        DataError,
        r"^grid_game: only \d classes have images that are classified right with a confidence above 0\.5 "
        r"\(\d+ of 28 images\), but a grid of 3 x 3 needs 9\. Say n=2, or give more images\. 9 classes or",
    ),
    "too little confidence": (
        lambda: grid_game(MODEL, broken((4, 4)), items(), n=2, confidence=0.99),
        DataError,
        r"above 0\.99 .* needs 4\. Say confidence=0\.\d+, or give more images\. 4 classes or more",
    ),
    "no class at all": (
        lambda: make_grids(torch.rand(3, 3, 2, 2), [0, 0, 1], n=2),
        DataError,
        r"^make_grids: the images show only 2 classes, but a grid of 2 x 2 needs 4\. Give more images\.",
    ),
    "nothing readable": (
        lambda: grid_game(MODEL, broken((4, 4)), [None, None]),
        DataError,
        r"^grid_game: none of the 2 images could be read\. See the warnings for their names\.",
    ),
    "empty": (
        lambda: grid_game(MODEL, broken((4, 4)), []),
        DataError,
        r"data is empty\. Check its split",
    ),
    "unreadable later": (
        lambda: grid_game(MODEL, broken((4, 4)), lose(items(missing=False), 28), **PLAYED),
        DataError,
        r"item 28 was read at first and cannot be read again\.",
    ),
    "nothing readable later": (
        lambda: grid_game(MODEL, broken((4, 4)), lose(items(missing=False), 0), **PLAYED),
        DataError,
        r"item \d+ was read at first and cannot be read again\.",
    ),
    "labels": (
        lambda: grid_game(MODEL, broken((4, 4)), [(torch.rand(3, 4, 4), 9, None)]),
        DataError,
        r"an image has class 9, but the model has 6 logits",
    ),
    "channels": (
        lambda: grid_game(MODEL, broken((3, 16, 16)), items(), **PLAYED),
        ShapeError,
        r"explain returned \(\d+, 3, 16, 16\) for \d+ images\. Sum over the channels: maps\.sum\(1\)\. "
        r"\(N, h, w\) is allowed\.",
    ),
    "no map": (
        lambda: grid_game(MODEL, lambda images, target: None, items(), **PLAYED),
        ShapeError,
        r"explain returned NoneType for \d+ images\. Return one map an image\.",
    ),
    "explain": (
        lambda: grid_game(MODEL, "ixg", items()),
        OptionError,
        r"explain is a str\. Give a function of images and target, such as lambda",
    ),
    "heads of another grid": (
        lambda: grid_game(DiFull(MODEL, n=2), broken((4, 4)), items()),
        OptionError,
        r"n is 3 and order 'column', but the DiFull has n=2 and order='column'\. Say n=2, order='column'",
    ),
    "by": (
        lambda: grid_game(MODEL, broken((4, 4)), items(), by="sofmax"),
        OptionError,
        r"unknown by 'sofmax'\. Did you mean 'softmax'\?",
    ),
    "confidence": (
        lambda: grid_game(MODEL, broken((4, 4)), items(), confidence=50),
        OptionError,
        r"confidence is 50\. Did you mean 0\.5\? A number from 0 to 1 is allowed\.",
    ),
    "resize": (
        lambda: grid_game(MODEL, broken((4, 4)), items(), resize="bicubic"),
        OptionError,
        r"unknown resize 'bicubic'",
    ),
    "keep_cell": (
        lambda: grid_game(MODEL, broken((4, 4)), items(), n=2, keep_cell=4),
        OptionError,
        r"keep_cell is 4, but a grid of 2 x 2 has 4 cells\. Use 0, the top left\. 0 to 3 are allowed\.",
    ),
    "images": (
        lambda: make_grids(torch.rand(3, 3, 2, 2), [0, 1]),
        ShapeError,
        r"images are \(3, 3, 2, 2\) and labels \(2,\)\. Give one class an image\.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(mistake):
    call, kind, words = mistake
    with pytest.raises(kind) as caught:
        call()
    assert re.search(words, str(caught.value)), str(caught.value)


def test_what_is_advised_is_enough():
    with pytest.raises(DataError) as caught:
        grid_game(MODEL, broken((4, 4)), items(), n=2, confidence=0.99)
    found = re.search(r"confidence=([\d.]+),", str(caught.value))
    assert found is not None
    game = grid_game(MODEL, broken((4, 4)), items(), n=2, confidence=float(found[1]), grids=1)
    assert game.numbers["classes"] == 4


def play(count: int | None = None) -> tuple[Any, ...]:
    model = Colours().eval()
    game = grid_game(
        model, explained(model), items(60), n=2, confidence=0.3, grids=count, batch_size=5
    )
    return game.numbers, game.scores, game.labels, game.source


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    wait = timedelta(seconds=90)  # so that a process that died fails the test instead of hanging it
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        # With one grid the second process has none.
        torch.save([play(), play(1)], Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    expected = [play(), play(1)]
    for rank in range(2):
        for got, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert got[0] == pytest.approx(wanted[0], rel=1e-6)
            torch.testing.assert_close(got[1:], wanted[1:], equal_nan=True)
