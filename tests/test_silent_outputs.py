"""Which output is explained: no silent wrong value, whatever a model returns and is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import captum.attr
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from explainguide import ExplainGuideWarning, ExplanationGuidance
from explainguide.attr import GradCam, InputXGradient, IntegratedGradients
from explainguide.errors import AnnotationError, GuidanceError, OptionError, ShapeError
from explainguide.evaluation import evaluate

BOX = (4, 4, 20, 20)


class Net(nn.Module):
    """Features (N, 16) and logits (N, classes), returned as `wrap` says."""

    def __init__(self, wrap: Callable[..., Any] = lambda f, z: z, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4), nn.GELU(), nn.Conv2d(16, 16, 3), nn.GELU()
        )
        self.fc = nn.Linear(16, classes)
        self.wrap = wrap
        self.double()

    def forward(self, images: Tensor) -> Any:
        features = self.body(images).mean((2, 3))
        return self.wrap(features, self.fc(features))


@dataclass
class Answer:
    embedding: Tensor
    scores: Tensor


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def boxes(*labels: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.tensor([BOX]).float(), "labels": torch.tensor([k])} for k in labels]


def energy_by_hand(model: Net, score: Callable[[Tensor], Tensor], layer: str = "body") -> Tensor:
    """The energy loss of input times gradient of a sum of scores, with nothing of the library."""
    source = images().requires_grad_() if layer == "input" else model.body(images())
    features = model.body(source) if layer == "input" else source
    logits = model.fc(features.mean((2, 3)))
    (gradient,) = torch.autograd.grad(score(logits).sum(), source, create_graph=True)
    maps = (gradient * source).sum(1, keepdim=True)
    if layer != "input":
        maps = F.interpolate(maps, (32, 32), mode="bilinear", align_corners=False)
    positive = maps[:, 0].clamp(min=0)
    inside = positive[:, BOX[1] : BOX[3], BOX[0] : BOX[2]].sum((1, 2))
    return (1 - inside / positive.sum((1, 2)).clamp(min=1e-12)).mean()


def loss_of(model: nn.Module, *labels: int, **options: Any) -> Tensor:
    with ExplanationGuidance(model, "body", **options) as guide:
        model(images())
        return guide.loss_loc(boxes(*labels))


KNOWN = [
    (lambda f, z: (f, z), 1),
    (lambda f, z: (z, f), 0),
    (lambda f, z: [f, {"z": z}], lambda out: out[1]["z"]),
    (lambda f, z: {"embedding": f, "scores": z}, "scores"),
    (Answer, "scores"),
    (lambda f, z: (z.softmax(1), f), lambda out: out[0].log()),
    (lambda f, z: z[..., None, None], lambda out: out.flatten(1)),
]


@pytest.mark.parametrize(("wrap", "output"), KNOWN)
def test_output_names_the_logits(wrap: Any, output: Any) -> None:
    model = Net(wrap)
    found = loss_of(model, 1, 3, output=output)
    if wrap is KNOWN[5][0]:  # log p is not the logit
        expected = energy_by_hand(model, lambda z: z.log_softmax(1)[[0, 1], [1, 3]])
    else:
        expected = energy_by_hand(model, lambda z: z[[0, 1], [1, 3]])
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("output", [0, -1, "logits"])
def test_a_bare_tensor_needs_no_index(output: Any) -> None:
    # Many models return a tuple in training and their logits alone in evaluation.
    torch.testing.assert_close(loss_of(Net(), 1, 3, output=output), loss_of(Net(), 1, 3))


AMBIGUOUS = [
    (lambda f, z: (f, z), ["[0] of shape (2, 16)", "[1] of shape (2, 4)", "output="]),
    (lambda f, z: (z, 2 * z), ["[0] of shape (2, 4)", "[1] of shape (2, 4)"]),
    (lambda f, z: {"main": z, "aux": z}, ["'main' of shape (2, 4)"]),
    (lambda f, z: (z, [f, f]), ["[1][0] of shape (2, 16)"]),
    (Answer, ["Answer with 'embedding' of shape (2, 16), 'scores' of shape (2, 4)"]),
]


@pytest.mark.parametrize(("wrap", "parts"), AMBIGUOUS)
def test_several_that_could_be_the_logits_are_refused(wrap: Any, parts: list[str]) -> None:
    model = Net(wrap)
    for call in (
        lambda: loss_of(model, 1, 3),
        lambda: InputXGradient(model, "body").attribute(images(), 1),
        lambda: evaluate(model, [(image, 1, None) for image in images()], layer="body"),
    ):
        with pytest.raises(ShapeError) as wrong:
            call()
        assert all(part in str(wrong.value) for part in parts)


@pytest.mark.parametrize(
    ("wrap", "how"),
    [
        (lambda f, z: z.softmax(1), "rows that sum to 1"),
        (lambda f, z: {"logits": z.softmax(1)}, "rows that sum to 1"),
        (
            lambda f, z: (z.softmax(1) + z.flip(0).softmax(1)) / 2,
            "rows that sum to 1",
        ),  # of two views
        (lambda f, z: z.sigmoid(), "sigmoid"),
        (lambda f, z: z.sigmoid()[:, :1].squeeze(1), "sigmoid"),
        (lambda f, z: F.normalize(f), "vectors of length 1"),
    ],
)
def test_what_is_seen_to_be_no_logits_is_refused(wrap: Any, how: str) -> None:
    with pytest.raises(GuidanceError, match=how):
        loss_of(Net(wrap), 0, 0)


def test_probabilities_in_evaluation_alone_are_refused_there() -> None:
    model = Net()
    model.wrap = lambda f, z: z if model.training else z.softmax(1)
    guide = ExplanationGuidance(model, "body")
    model(images())
    guide.loss_loc(boxes(1, 3))
    model.eval()
    with pytest.raises(GuidanceError, match="returns probabilities"):
        guide.attribute(images(), 1)


def test_log_probabilities_are_said_once() -> None:
    model = Net(lambda f, z: z.log_softmax(1))
    guide = ExplanationGuidance(model, "body")
    model(images())
    with pytest.warns(ExplainGuideWarning, match="score='logit' explains log p"):
        found = guide.loss_loc(boxes(1, 3))
    torch.testing.assert_close(
        found, energy_by_hand(model, lambda z: z.log_softmax(1)[[0, 1], [1, 3]])
    )
    model(images())
    guide.loss_loc(boxes(1, 3))
    assert torch.isfinite(loss_of(model, 1, 3, score="log_prob"))


def beheaded() -> nn.Module:
    model = resnet18()
    model.fc = nn.Identity()
    return model


def timm_beheaded() -> nn.Module:
    model = timm.create_model("resnet10t", num_classes=5)
    model.fc = nn.Identity()
    return model


@pytest.mark.parametrize(
    "build", [lambda: timm.create_model("resnet10t", num_classes=0), beheaded, timm_beheaded]
)
def test_a_model_without_a_classifier_is_refused_and_guided_as_a_whole(build: Any) -> None:
    torch.manual_seed(0)
    model = build().double().eval()
    for make in (ExplanationGuidance, InputXGradient):
        with pytest.raises(
            GuidanceError, match=r"has no classifier .*Guide the whole: nn.Sequential"
        ):
            make(model)
    head = nn.Linear(512, 4).double()
    head.weight.data.uniform_(-0.2, 1)
    x = torch.rand(2, 3, 64, 64).double()
    losses = []
    for whole, guided in (
        (nn.Sequential(model, head), "0.layer4"),
        (model, "layer4"),
    ):
        options = {"output": head} if whole is model else {}
        with ExplanationGuidance(whole, guided, **options) as guide:
            whole(x)
            losses.append(guide.loss_loc(boxes(1, 2)))
    torch.testing.assert_close(*losses)


def test_a_dimension_that_was_squeezed_away_is_refused() -> None:
    model = Net(lambda f, z: z.squeeze(), classes=4)
    with ExplanationGuidance(model, "body") as guide:
        model(images(1))
        with pytest.raises(ShapeError, match=r"not logits: shape \(4,\)"):
            guide.loss_loc(boxes(1))


def refuse(output: Any) -> Any:
    raise TypeError("not this.")


@pytest.mark.parametrize(
    ("output", "error"),
    [
        (5, r"there is no output=5"),
        ("scores", r"there is no output='scores'"),
        (lambda out: out["z"], r"output= was called with tuple with \[0\]"),
        (refuse, r"raised TypeError: not this\. It takes"),
    ],
)
def test_an_output_that_is_not_there(output: Any, error: str) -> None:
    with pytest.raises(OptionError, match=error):
        loss_of(Net(lambda f, z: (f, z)), 1, 3, output=output)


def test_what_output_may_be() -> None:
    for output in (1.5, True, [0]):
        with pytest.raises(OptionError, match="output is"):
            ExplanationGuidance(Net(), "body", output=output)


# One logit.


def one_logit(shape: str) -> Net:
    return Net((lambda f, z: z) if shape == "column" else (lambda f, z: z[:, 0]), classes=1)


@pytest.mark.parametrize("shape", ["column", "row"])
@pytest.mark.parametrize("layer", ["body", "input"])
def test_one_logit_is_two_classes(shape: str, layer: str) -> None:
    model = one_logit(shape)
    sign = torch.tensor([1.0, -1.0]).double()
    for score, by_hand in (
        ("logit", lambda z: sign * z[:, 0]),
        ("log_prob", lambda z: F.logsigmoid(sign * z[:, 0])),
    ):
        with ExplanationGuidance(model, layer, score=score) as guide:
            model(images())
            found = guide.loss_loc(boxes(1, 0))
        torch.testing.assert_close(found, energy_by_hand(model, by_hand, layer))


@pytest.mark.parametrize("target", [[1, 0], torch.tensor([1.0, 0.0]), torch.tensor([[1.0], [0.0]])])
def test_one_logit_with_targets_as_its_loss_takes_them(target: Any) -> None:
    model = one_logit("column")
    mask = torch.zeros(2, 32, 32)
    mask[:, BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    with ExplanationGuidance(model, "body") as guide:
        model(images())
        found = guide.loss_loc(mask, target=target)
    torch.testing.assert_close(found, loss_of(model, 1, 0))


def test_one_logit_refuses_class_two_and_draws_the_other_class() -> None:
    model = one_logit("column")
    with pytest.raises(AnnotationError, match="label 2, but the model has 2 classes"):
        loss_of(model, 1, 2)
    # With negatives=1 class 1's images explain class 0, against their own boxes.
    found = loss_of(model, 1, 1, negatives=1.0)
    torch.testing.assert_close(found, energy_by_hand(model, lambda z: -z[:, 0]))


def test_one_logit_and_captum() -> None:
    model = one_logit("column")
    x = images().requires_grad_()
    theirs = captum.attr.InputXGradient(model).attribute(x).sum(1, keepdim=True).detach()
    attribution = InputXGradient(model)
    torch.testing.assert_close(attribution.attribute(images()), theirs)
    torch.testing.assert_close(attribution.attribute(images(), 1), theirs)
    torch.testing.assert_close(attribution.attribute(images(), 0), -theirs)


def test_without_a_target_the_predicted_class_is_explained() -> None:
    model = Net()
    predicted = model(images()).argmax(1)
    for method in (InputXGradient, GradCam, IntegratedGradients):
        attribution = method(model, "body")
        torch.testing.assert_close(
            attribution.attribute(images()), attribution.attribute(images(), predicted)
        )
    guide = ExplanationGuidance(model, "body")
    assert torch.equal(guide.attribute(images()), guide.attribute(images(), predicted))
    binary = one_logit("column")
    guide = ExplanationGuidance(binary, "body")
    predicted = (binary(images())[:, 0] > 0).long()
    assert torch.equal(guide.attribute(images()), guide.attribute(images(), predicted))


# What the model is called with.


class Two(nn.Module):
    """An image and a table, in any order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.SiLU())
        self.fc = nn.Linear(13, 4)

    def forward(
        self, meta: Any = None, pixels: Any = None, labels: Any = None, mask: Any = None
    ) -> Tensor:
        seen = self.body(pixels) if mask is None else self.body(pixels * mask)
        return self.fc(torch.cat([seen.mean((2, 3)), meta], 1))


@pytest.mark.parametrize("layer", ["body", "input"])
@pytest.mark.parametrize("attribution", ["ixg", "intgrad"])
def test_the_image_is_found_among_the_arguments(layer: str, attribution: str) -> None:
    model, x, table = Two().double(), images(), torch.rand(2, 5).double()
    labels = torch.tensor([1, 1])
    calls = [
        ((table, x), {}),
        ((), {"pixels": x, "meta": table}),
        ((), {"labels": labels, "pixels": x, "meta": table}),
        ((table,), {"labels": labels, "pixels": x}),
    ]
    losses = []
    for args, kwargs in calls:
        with ExplanationGuidance(model, layer, attribution=attribution) as guide:
            model(*args, **kwargs)
            losses.append(guide.loss_loc(boxes(1, 3)))
    for loss in losses:
        torch.testing.assert_close(loss, losses[0])
    if attribution == "ixg" and layer == "body":
        feature = model.body(x)
        score = model.fc(torch.cat([feature.mean((2, 3)), table], 1))[[0, 1], [1, 3]].sum()
        (gradient,) = torch.autograd.grad(score, feature)
        maps = F.interpolate((gradient * feature).sum(1, keepdim=True), (32, 32), mode="bilinear")
        positive = maps.clamp(min=0)
        inside = positive[..., BOX[1] : BOX[3], BOX[0] : BOX[2]].sum((1, 2, 3))
        torch.testing.assert_close(losses[0], (1 - inside / positive.sum((1, 2, 3))).mean())


def test_several_images_need_a_name() -> None:
    model, x, table = Two().double(), images(), torch.rand(2, 5).double()
    mask = torch.ones(2, 1, 32, 32).double()
    guide = ExplanationGuidance(model, "body")
    model(table, x, mask=mask)
    with pytest.raises(ShapeError, match=r"can be the images: 1, 'mask'\. Say image_argument="):
        guide.loss_loc(boxes(1, 3))
    expected = None
    for argument in ("pixels", 1):
        with ExplanationGuidance(model, "input", image_argument=argument) as guide:
            model(table, x, mask=mask)
            loss = guide.loss_loc(boxes(1, 3))
        expected = loss if expected is None else expected
        torch.testing.assert_close(loss, expected)
    with ExplanationGuidance(model, "body", image_argument="picture") as guide:
        model(table, x)
        with pytest.raises(ShapeError, match="image_argument='picture' is absent"):
            guide.loss_loc(boxes(1, 3))


def test_integrated_gradients_see_the_parameters_of_the_call() -> None:
    model = Net()
    fast = {n: p.detach() + 0.3 * torch.randn_like(p) for n, p in model.named_parameters()}
    fast = {n: p.requires_grad_() for n, p in fast.items()}
    with ExplanationGuidance(
        model, "body.1", attribution=IntegratedGradients(model, n_steps=4)
    ) as guide:
        torch.func.functional_call(model, fast, (images(),))
        found = guide.loss_loc(boxes(1, 3))
    own = Net()
    own.load_state_dict({n: p.detach() for n, p in fast.items()})
    with ExplanationGuidance(
        own, "body.1", attribution=IntegratedGradients(own, n_steps=4)
    ) as guide:
        own(images())
        expected = guide.loss_loc(boxes(1, 3))
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, list(fast.values()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(own.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
