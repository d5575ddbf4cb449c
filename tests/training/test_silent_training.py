"""What a training must not do without a word: lone images, nothing to guide with, one logit."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from explainguide import ExplanationGuidance
from explainguide.annotations import LimitedAnnotations
from explainguide.datasets import DecoyDigits
from explainguide.datasets.batches import count_annotated, epoch_order
from explainguide.errors import DataError, ExplainGuideWarning, OptionError, ShapeError
from explainguide.evaluation import evaluate
from explainguide.evaluation.classification import ClassificationScores, check_labels
from explainguide.losses import classification_loss, confidence_boosting
from explainguide.training import TrainConfig, train
from explainguide.training.lone_images import LoneImages

from .small_runs import QUICK, Noisy, Plain


def headed(head: nn.Module, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, stride=2), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), head, nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def norm_1d() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8))


ONCE = replace(QUICK, epochs=2, batch_size=4, layer="2")
NORMS = {"BatchNorm1d": norm_1d, "BatchNorm2d at 1 x 1": lambda: nn.BatchNorm2d(8)}


@pytest.mark.parametrize("name", NORMS)
def test_a_last_batch_of_one_is_left_out_and_said_once(digits: Any, name: str) -> None:
    model, data = headed(NORMS[name]()), Subset(digits[0], range(9))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = train(model, data, data, replace(ONCE, schedule="cosine"), progress=False)
    said = [str(w.message) for w in caught if w.category is ExplainGuideWarning]
    assert len(said) == 1
    assert caught[0].filename == __file__
    assert said[0].startswith("train: a batch of one image is left out, and so are others like it")
    assert math.isfinite(history.last["loss_loc"])
    assert history.skipped == 0
    # The learning rate has gone its whole way: the batch that is left out was not counted.
    assert history.last["lr"] < 1e-3 * QUICK.lr


def test_the_weights_are_those_of_the_other_images(digits: Any) -> None:
    config = replace(ONCE, epochs=1, optimizer="sgd", schedule="constant", weight_decay=0.0)
    model = headed(norm_1d())
    data = Subset(digits[0], range(9))
    with pytest.warns(ExplainGuideWarning, match="left out"):
        train(model, data, data, config, progress=False)
    other = headed(norm_1d()).train()
    optimizer = torch.optim.SGD(other.parameters(), lr=config.lr, momentum=0.9)
    guide = ExplanationGuidance(other, "2")
    order = epoch_order(9, config.seed, 1)
    for start in (0, 4):
        items = [data[i] for i in order[start : start + 4]]
        logits = other(torch.stack([image for image, _, _ in items]))
        loss = F.cross_entropy(logits, torch.tensor([label for _, label, _ in items]))
        loss = loss + config.lam * guide.loss_loc([annotation for _, _, annotation in items])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_one_image_is_used_where_it_can_be(digits: Any) -> None:
    data = Subset(digits[0], range(9))
    for head in (nn.Identity(), nn.GroupNorm(2, 8), nn.BatchNorm2d(8).requires_grad_(True)):
        early = headed(nn.Identity())
        early[1] = nn.Sequential(head, nn.GELU())  # here every place is a value
        train(early, data, data, replace(ONCE, epochs=1), progress=False)
        assert early[0].weight.grad is None


def test_a_batch_that_shrank_to_one_readable_image(digits: Any) -> None:
    class Damaged(Noisy):
        def __getitem__(self, index: int) -> Any:
            return None if index in hidden else self.data[index]

    hidden = set(epoch_order(8, 0, 1)[1:4])
    data = Damaged(Subset(digits[0], range(8)))
    expected = r"since BatchNorm '5\.1' sees one value a channel"
    with pytest.warns(ExplainGuideWarning, match=expected) as caught:
        history = train(headed(norm_1d()), data, digits[1], ONCE, progress=False)
    assert history.skipped == 3
    assert [w.filename for w in caught] == [__file__]


def test_batches_of_one_and_a_data_set_of_one_are_refused_at_the_start(digits: Any) -> None:
    with pytest.raises(OptionError, match=r"train: batch_size is 1, but BatchNorm '5\.1' sees one"):
        train(headed(norm_1d()), *digits, replace(ONCE, batch_size=1), progress=False)
    one = Subset(digits[0], [3])
    with pytest.raises(
        DataError, match=r"train: train_data has one image a process, but BatchNorm"
    ):
        train(headed(norm_1d()), one, digits[1], ONCE, progress=False)
    train(headed(nn.Identity()), one, one, replace(ONCE, epochs=1, batch_size=1), progress=False)


def test_a_refused_training_gives_the_model_back_as_it_came(digits: Any) -> None:
    model = headed(norm_1d()).eval()
    config = replace(ONCE, batch_size=1, mixed_precision="bf16", lam=0.0)
    with pytest.raises(OptionError, match="train: batch_size is 1, but BatchNorm"):
        train(model, *digits, config, progress=False)
    assert not {"forward", "_original_forward"} & vars(model).keys()
    assert not any(module.training for module in model.modules())


def test_counting_batches_leaves_the_mode_as_it_is(digits: Any) -> None:
    model = headed(nn.Identity()).eval()
    model[0].train()
    before = [module.training for module in model.modules()]
    assert LoneImages(model).count_batches(digits[0], 1, torch.device("cpu")) == len(digits[0])
    assert [module.training for module in model.modules()] == before


class Bare(Noisy):
    """Without annotations, and without saying so."""

    def __getitem__(self, index: int) -> Any:
        image, label, _ = self.data[index]
        return image, label, None


def test_the_annotated_images_are_counted_without_reading_them() -> None:
    data = DecoyDigits("train", size=24, annotated=0.1)
    count = int(data.annotated.sum())
    assert count_annotated(data) == count > 0
    bare = (~data.annotated).nonzero().flatten().tolist()
    assert count_annotated(Subset(data, bare)) == 0
    assert count_annotated(ConcatDataset([data, Subset(data, bare)])) == count
    assert count_annotated(LimitedAnnotations(data, 0.0)) == 0
    assert count_annotated(Bare(data)) is None
    assert count_annotated(LimitedAnnotations(Bare(data), 0.5)) is None
    assert count_annotated(LimitedAnnotations(Bare(data), 0.0)) == 0
    # A draw of images of which none is annotated.
    limited = LimitedAnnotations(Subset(data, [*bare[:50], int(data.annotated.nonzero()[0])]), 0.02)
    assert count_annotated(limited) == int(limited.kept[50])


def test_nothing_to_guide_with_is_said_or_refused() -> None:
    data = DecoyDigits("train", size=24, annotated=0.0)
    few, test = Subset(data, range(8)), Subset(DecoyDigits("test", size=24), range(4))
    config = TrainConfig(epochs=1, layer="conv", device="cpu")
    assert config.lam is None
    expected = "train: no image of train_data is annotated, so the training goes without guidance"
    with pytest.warns(ExplainGuideWarning, match=expected) as caught:
        history = train(Plain(), few, test, config, progress=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert math.isnan(history.last["loss_loc"])
    with pytest.raises(
        OptionError, match=r"train: lam is 1, but no image of train_data is annotat"
    ):
        train(Plain(), few, test, replace(config, lam=1.0), progress=False)
    history = train(Plain(), few, test, replace(config, lam=0.0), progress=False)  # as was asked
    assert math.isnan(history.last["loss_loc"])


def test_a_data_set_that_does_not_say_it_is_told_after_the_first_epoch(digits: Any) -> None:
    config = replace(QUICK, epochs=2, layer="conv")
    expected = "train: no training image of the first epoch was annotated, so nothing was guided"
    with pytest.warns(ExplainGuideWarning, match=expected) as caught:
        train(Plain(), Bare(digits[0]), digits[1], config, progress=False)
    assert len(caught) == 1
    expected = "train: no image of val_data is annotated, so EPG and IoU are not known. Give boxes"
    for unannotated in (Bare(digits[1]), Subset(DecoyDigits("test", size=24, annotated=0), [0, 1])):
        with pytest.warns(ExplainGuideWarning, match=expected) as caught:
            train(Plain(), digits[0], unannotated, config, progress=False)
        assert len(caught) == 1


def test_lam_that_is_not_given_is_one(digits: Any) -> None:
    config = replace(QUICK, epochs=1, layer="conv")
    rows = [
        train(Plain(), *digits, replace(config, lam=lam), progress=False).last
        for lam in (None, 1.0, 3.0)
    ]
    assert rows[0]["loss"] == rows[1]["loss"]
    assert rows[0]["epg"] == rows[1]["epg"] != rows[2]["epg"]


class Halves(Noisy):
    """Digits from 5 on are class 1; labels in one of the forms that mean so."""

    def __init__(self, data: Any, form: str = "int") -> None:
        super().__init__(data)
        self.form = form

    def __getitem__(self, index: int) -> Any:
        image, label, annotation = self.data[index]
        label = int(label >= 5)
        boxes = {**annotation, "labels": torch.full_like(annotation["labels"], label)}
        forms = {"int": label, "float": float(label), "column": torch.tensor([float(label)])}
        return image, forms[self.form], boxes


class OneLogit(Plain):
    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.head, self.flat = nn.Linear(6, 1), flat

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits[:, 0] if self.flat else logits


class TwoLogits(nn.Module):
    """(0, z): whose softmax is the sigmoid of z."""

    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.one = one

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x)
        return torch.cat([-z, z], 1) / 2


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", ["int", "float", "column"])
def test_one_logit_trains_as_two_whose_difference_it_is(digits: Any, flat: bool, form: str) -> None:
    """Of (-z/2, z/2), which doubled are the scores that are explained: with lam halved by ixg."""
    config = replace(QUICK, epochs=2, layer="conv", loss="energy", optimizer="sgd", lr=0.1)
    torch.manual_seed(1)
    one = OneLogit(flat)
    torch.manual_seed(1)
    two = TwoLogits(OneLogit())
    data = [Halves(part, form) for part in digits]
    row = train(one, *data, config, progress=False).last
    both = [Halves(part) for part in digits]
    expected = train(two, *both, replace(config, layer="one.conv"), progress=False).last
    # The energy loss does not know the map's scale, so halves make no difference.
    assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert row["loss_loc"] == pytest.approx(expected["loss_loc"], abs=1e-5)
    assert row["epg"] == pytest.approx(expected["epg"], abs=1e-5)
    for mine, theirs in zip(one.parameters(), two.one.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    if form == "column":
        assert {"f1", "map"} <= set(row)
    else:
        assert row["accuracy"] == expected["accuracy"]
        assert row["worst_class_accuracy"] == expected["worst_class_accuracy"]


def test_the_scores_of_one_logit_by_hand() -> None:
    logits, labels = torch.tensor([[2.0], [-1.0], [0.0], [-3.0]]), torch.tensor([1, 1, 0, 0])
    scores = ClassificationScores(1, False, torch.device("cpu"))
    scores.update(logits, labels)
    # Right are the first and the last; a logit of 0 is a yes.
    assert scores.compute() == {"accuracy": 0.5, "worst_class_accuracy": 0.5}
    hot = ClassificationScores(1, True, torch.device("cpu"))
    hot.update(logits, labels[:, None].float())
    # yes: 1 and 3, true: 1 and 2; ranked 1, 3, 2, 4.
    assert hot.compute() == pytest.approx({"f1": 0.5, "map": (1 + 2 / 3) / 2})


def test_the_losses_of_one_logit_by_hand() -> None:
    logits = torch.tensor([[2.0], [-1.0], [0.5]])
    p = logits[:, 0].sigmoid()
    expected = -(p[0].log() + (1 - p[1]).log() + p[2].log()) / 3
    for labels in (torch.tensor([1, 0, 1]), torch.tensor([True, False, True])):
        assert classification_loss(logits, labels) == pytest.approx(float(expected))
        check_labels(labels, logits)
    for labels in (torch.tensor([1.0, 0, 1]), torch.tensor([[1.0], [0.0], [1.0]])):
        assert classification_loss(logits, labels) == pytest.approx(float(expected))
        check_labels(labels, logits)
    sure = confidence_boosting(logits, temperature=0.5, reduction="none")
    assert sure.tolist() == pytest.approx(
        (-F.logsigmoid(logits[:, 0].abs() / 0.5)).tolist(), rel=1e-5
    )
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    found = classification_loss(logits, labels, class_loss="confidence-boosting")
    assert found == pytest.approx(float(-F.logsigmoid(logits.abs()).mean()))


def test_labels_that_one_logit_cannot_have() -> None:
    logits = torch.zeros(3, 1)
    with pytest.raises(
        DataError, match=r"has class 2, but the model has one logit, which tells two"
    ):
        check_labels(torch.tensor([0, 1, 2]), logits)
    with pytest.raises(ShapeError, match=r"labels of shape \(3, 4\) .* and a model with one logit"):
        check_labels(torch.zeros(3, 4), logits)


class Pair(Plain):
    """Features first, logits second."""

    def forward(self, x: Tensor) -> Any:
        features = F.gelu(self.conv(x)).mean((2, 3))
        return features, self.head(features)


def test_output_says_which_of_two_are_the_logits(digits: Any) -> None:
    config = replace(QUICK, epochs=1, layer="conv")
    pair, plain = Pair(), Plain()
    expected = train(plain, *digits, config, progress=False).last
    found = train(pair, *digits, replace(config, output=1), progress=False).last
    assert {k: v for k, v in found.items() if k != "seconds"} == {
        k: v for k, v in expected.items() if k != "seconds"
    }
    scores = evaluate(pair, digits[1], layer="conv", output=lambda out: out[1])
    assert scores == evaluate(plain, digits[1], layer="conv")
    with pytest.raises(ShapeError, match=r"more than one of them can be the logits\. Say which"):
        train(pair, *digits, config, progress=False)
    with pytest.raises(ShapeError, match="evaluate: the model returns a tuple"):
        evaluate(pair, digits[1], layer="conv")
    with pytest.raises(OptionError, match=r"TrainConfig: output is True\. Say which"):
        TrainConfig(output=True)
