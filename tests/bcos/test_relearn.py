"""`bcos.relearn` and `xdnn.relearn`: as the examples once did it; checkpoints; mistakes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide import bcos, xdnn
from explainguide.bcos import bcosify
from explainguide.errors import (
    DataError,
    ExplainGuideError,
    ExplainGuideWarning,
    GuidanceError,
    LayerError,
    OptionError,
    ShapeError,
)
from explainguide.models import relearning
from explainguide.xdnn import remove_bias

from ..reference import relearning as reference

HALF: Any = {"mean": 0.5, "std": 0.5}
SETTINGS: Any = {**HALF, "batch_size": 16, "progress": False}
PARTS = ("1", "4", "7")


def teacher() -> nn.Sequential:
    """Three norms that have seen images, ReLU, and biases."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 8), (8, 12)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(20):
            model((pictures().float() / 255 - 0.5) / 0.5)
    return model.eval()


def pictures(count: int = 50) -> Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(2)).to(
        torch.uint8
    )


def as_bcos(model: nn.Module) -> nn.Module:
    return bcosify(model, b=1, image_size=(12, 12), **HALF)


def as_xdnn(model: nn.Module) -> nn.Module:
    return remove_bias(model, image_size=(12, 12))


@cache
def converted(convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Of the teacher, whose weights are always the same: a conversion takes longer than a copy."""
    return convert(teacher())


def copies(convert: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    return lambda model: copy.deepcopy(converted(convert))


KINDS: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[..., list[float]]]]
KINDS = {"bcos": (copies(as_bcos), bcos.relearn), "xdnn": (copies(as_xdnn), xdnn.relearn)}
both = pytest.mark.parametrize("kind", KINDS)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_bcos_gives_the_numbers_of_the_example() -> None:
    model = teacher()
    expected = as_bcos(model)
    reference.relearn("B-cos", expected, model, list(PARTS), pictures(), epochs=2, lr=1e-2)
    network = as_bcos(model)
    bcos.relearn(network, model, pictures(), epochs=2, lr=1e-2, **SETTINGS)
    assert network.state_dict().keys() == expected.state_dict().keys()
    torch.testing.assert_close(weights(network), weights(expected), rtol=0, atol=0)


def test_xdnn_gives_the_numbers_of_the_example() -> None:
    model = teacher()
    fading = copy.deepcopy(model)
    reference.relearn("X-DNN", fading, model, list(PARTS), pictures(), epochs=2, lr=1e-3)
    network = as_xdnn(model)
    xdnn.relearn(network, model, pictures(), epochs=2, lr=1e-3, **SETTINGS)
    torch.testing.assert_close(weights(network), weights(as_xdnn(fading)), rtol=0, atol=0)


@both
def test_the_features_come_back(kind: str) -> None:
    convert, relearn = KINDS[kind]
    model = teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = convert(model)
    losses = relearn(network, model, pictures(), epochs=12, **SETTINGS)
    assert len(losses) == 12
    half = max(losses[4:7])  # the biases have just gone
    assert losses[-1] < half
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    if kind == "xdnn":
        assert xdnn.is_homogeneous(network)
    else:
        units = [m for m in network.modules() if isinstance(m, bcos.BcosConv2d)]
        assert {unit.b for unit in units} == {2.0}
        assert all(unit.bias is None for unit in units)


@both
def test_it_is_better_than_biases_dropped_at_once(kind: str) -> None:
    """By the correlation of the last features with the teacher's, computed without the package."""
    convert, relearn = KINDS[kind]
    model, images = teacher(), pictures()
    learned = convert(model)
    relearn(learned, model, images, epochs=12, **SETTINGS)
    dropped = convert(model)
    if kind == "bcos":
        bcos.set_b(dropped, 2)
        bcos.scale_biases(dropped, 0)
        bcos.calibrate(dropped, encoded(kind, images))
    assert correlation(learned, model, kind) > correlation(dropped, model, kind) + 0.02


def encoded(kind: str, images: Tensor) -> Tensor:
    plain = images.float() / 255
    return torch.cat([plain, 1 - plain], 1) if kind == "bcos" else (plain - 0.5) / 0.5


def correlation(network: nn.Module, model: nn.Module, kind: str) -> float:
    network.eval()
    with torch.no_grad():
        found = features(network, encoded(kind, pictures()))
        wanted = features(model, encoded("teacher", pictures()))
    both = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(found, wanted, strict=True)]
    return float(torch.stack(both).nan_to_num().mean())


def features(model: nn.Module, inputs: Tensor) -> Tensor:
    kept = []
    hook = model.get_submodule("7").register_forward_hook(lambda _, __, out: kept.append(out))
    model(inputs)
    hook.remove()
    return kept[0].transpose(0, 1).flatten(1)


class StoppedError(Exception):
    pass


@both
def test_a_checkpoint_goes_on_to_the_same_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, relearn = KINDS[kind]
    model = teacher()
    whole = convert(model)
    losses = relearn(whole, model, pictures(), epochs=4, **SETTINGS)
    write, written = relearning._write, []

    def stop(file: Path, content: dict[str, Any]) -> None:
        write(file, content)
        written.append(content["epoch"])
        if content["epoch"] == 3:
            raise StoppedError

    monkeypatch.setattr(relearning, "_write", stop)
    file = tmp_path / "relearn.pt"
    with pytest.raises(StoppedError):
        relearn(convert(model), model, pictures(), epochs=4, checkpoint=file, **SETTINGS)
    monkeypatch.undo()
    torch.rand(5)  # other random numbers have been drawn since
    again = convert(model)
    assert relearn(again, model, pictures(), epochs=4, checkpoint=file, **SETTINGS) == losses
    assert written == [1, 2, 3]
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)
    over = convert(model)  # nothing is left to do
    assert relearn(over, model, pictures(), epochs=4, checkpoint=file, **SETTINGS) == losses
    torch.testing.assert_close(weights(over), weights(whole), rtol=0, atol=0)


@both
def test_it_leaves_the_callers_random_numbers_and_modes(kind: str) -> None:
    convert, relearn = KINDS[kind]
    model = teacher()
    network = convert(model).eval()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    relearn(network, model, pictures(), epochs=1, **SETTINGS)
    assert torch.equal(torch.rand(4), expected)
    assert not any(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in [*network.modules(), *model.modules()])


@both
def test_a_frozen_teacher_teaches(kind: str) -> None:
    convert, relearn = KINDS[kind]
    model = teacher()
    network = convert(model)
    losses = relearn(network, model.requires_grad_(False), pictures(), epochs=1, **SETTINGS)
    assert losses[0] > 0


def test_activations_in_place_do_not_change_what_is_compared() -> None:
    """ReLU6 becomes a gate, which does not work in place: both must be what the norm returned."""
    model = teacher()
    for name in ("2", "5", "8"):
        model[int(name)] = nn.ReLU6(inplace=True)
    network = as_bcos(model)  # a warning would be an error
    bcos.relearn(network, model, pictures(), epochs=1, **SETTINGS)
    with torch.no_grad(), relearning._features(network, model, ["4"]) as (_, wanted):
        model(encoded("teacher", pictures()))
        plain = model[3](model[2](model[1](model[0](encoded("teacher", pictures())))))
        torch.testing.assert_close(wanted["4"], model[4](plain))
    assert float(wanted["4"].min()) < 0


def test_tokens_are_compared_channel_by_channel() -> None:
    found, wanted = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    tokens = relearning._unlike(found, wanted)
    as_maps = relearning._unlike(
        found.transpose(1, 2).unsqueeze(-1), wanted.transpose(1, 2).unsqueeze(-1)
    )
    torch.testing.assert_close(tokens, as_maps)


def test_other_means_than_those_of_the_conversion_are_told() -> None:
    model = teacher()
    with pytest.warns(ExplainGuideWarning, match=r"^bcos\.relearn: at B = 1 the network's feat"):
        bcos.relearn(as_bcos(model), model, pictures(), epochs=1, batch_size=16, progress=False)


@both
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"epochs": 0}, OptionError, "epochs is 0. A whole number from 1 on is allowed."),
        ({"lr": -1.0}, OptionError, "lr is -1.0. A number above 0 is allowed."),
        ({"batch_size": 51}, OptionError, "there are 50 images for batches of 51. Give more"),
        ({"std": None}, OptionError, "std is missing. Give both"),
        ({"std": 0.0}, OptionError, "std is 0.0. Use that of the teacher's Normalize."),
        ({"layers": ["1", "44"]}, LayerError, "the teacher has no layer '44'. Did you mean '4'?"),
        ({"images": pictures().float()}, OptionError, "images are in [0, 255]. Leave out Normal"),
        ({"images": pictures()[0]}, ShapeError, "images are (3, 12, 12). Stack them"),
        ({"images": pictures().long()}, ShapeError, "images are torch.int64. Use bytes or floats"),
        ({"lr": 1e30}, GuidanceError, "in epoch 1. Use a lower lr than 1e+30."),
    ],
)
def test_mistakes(kind: str, change: Any, error: type[ExplainGuideError], text: str) -> None:
    convert, relearn = KINDS[kind]
    model = teacher()
    options = {**SETTINGS, "epochs": 1, "images": pictures(), **change}
    with pytest.raises(error) as raised:
        relearn(convert(model), model, **options)
    assert text in str(raised.value)
    assert str(raised.value).startswith(f"{kind}.relearn: ")


def test_networks_that_do_not_fit() -> None:
    model = teacher()
    with pytest.raises(OptionError, match=r"^bcos\.relearn: Sequential has no B-cos unit\. Conv"):
        bcos.relearn(teacher(), model, pictures(), **SETTINGS)
    with pytest.raises(
        OptionError, match=r"^xdnn\.relearn: the network is not the teacher without"
    ):
        xdnn.relearn(copy.deepcopy(model), model, pictures(), **SETTINGS)
    with pytest.raises(OptionError, match=r"^xdnn\.relearn: the teacher is the network itself\."):
        xdnn.relearn(model, model, pictures(), **SETTINGS)
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))
    with pytest.raises(LayerError, match=r"^xdnn\.relearn: Sequential has no batch norm after whi"):
        xdnn.relearn(as_xdnn(bare), bare, pictures(), **SETTINGS)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    model, file = teacher(), tmp_path / "relearn.pt"
    xdnn.relearn(as_xdnn(model), model, pictures(), epochs=1, checkpoint=file, **SETTINGS)
    with pytest.raises(OptionError, match=r"is of other settings: epochs was 1, now 2\. Use the"):
        xdnn.relearn(as_xdnn(model), model, pictures(), epochs=2, checkpoint=file, **SETTINGS)
    file.write_bytes(b"half of a file")
    with pytest.raises(DataError, match=r"is damaged or no checkpoint .* Remove it, or name an"):
        xdnn.relearn(as_xdnn(model), model, pictures(), epochs=1, checkpoint=file, **SETTINGS)
    torch.save({"model": {}}, file)
    with pytest.raises(DataError, match=r"was not written by relearn\. Name another file\."):
        xdnn.relearn(as_xdnn(model), model, pictures(), epochs=1, checkpoint=file, **SETTINGS)
    inside = tmp_path / "file"
    inside.write_text("no folder")
    with pytest.raises(DataError, match=r"could not be written .* Free some space or choose anoth"):
        xdnn.relearn(
            as_xdnn(model), model, pictures(), epochs=1, checkpoint=inside / "x.pt", **SETTINGS
        )
