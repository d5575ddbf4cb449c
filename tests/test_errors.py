"""Every message: one row each. The hooks are off the model afterwards."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest
import timm
import torch
from torch import nn
from torchvision import tv_tensors

from explainguide import Annotations, ExplainGuideError, ExplanationGuidance, errors, losses, recipe
from explainguide.attr import BcosContribution, GradCam, InputXGradient, IntegratedGradients
from explainguide.bcos import (
    BcosConv2d,
    BcosLinear,
    bcosify,
    contribution_map,
    conversion,
    dynamic_weights,
    explanation_mode,
    scale_biases,
    set_b,
    to_rgba,
)
from explainguide.bcos.modules import AddInverse, DynamicLinearUnit, LogitBias
from explainguide.bcos.release import load_published, published
from explainguide.bcos.simple_vit import SimpleViT
from explainguide.errors import (
    AnnotationError,
    DataError,
    GuidanceError,
    LayerError,
    OptionError,
    ShapeError,
    did_you_mean,
    operation,
)
from explainguide.evaluation.classification import check_labels
from explainguide.training.config import TrainConfig
from explainguide.xdnn import remove_bias

from .networks import TARGETS, InPlaceCnn, SmallCnn, batch, boxes


class Twice(SmallCnn):
    def forward(self, images):
        return self.head(self.mix(self.mix(self.stem(images))).mean((2, 3)))


class Pooled(SmallCnn):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        return self.head(self.pool(self.mix(self.stem(images))).flatten(1))


class Named(SmallCnn):
    def forward(self, images):
        return {"scores": super().forward(images)}


class Branches(SmallCnn):
    def __init__(self) -> None:
        super().__init__()
        self.split = Split()

    def forward(self, images):
        return self.head(self.split(self.stem(images))[0].mean((2, 3)))


class Split(nn.Module):
    def forward(self, features):
        return [features, 2 * features]


class Windows(SmallCnn):
    def forward(self, images):
        windows = self.stem(images).unflatten(2, (2, 3)).transpose(1, 2).flatten(0, 1)
        return self.head(self.mix(windows).unflatten(0, (-1, 2)).mean((1, 3, 4)))


def checkpointed(segment: str, reentrant: bool = True) -> nn.Module:
    class Checkpointed(SmallCnn):
        def forward(self, images):
            features = self.stem(images)
            run = self.mix if segment == "above" else self.body
            features = torch.utils.checkpoint.checkpoint(run, features, use_reentrant=reentrant)
            return self.head(torch.tanh(features).mean((2, 3)))

    return Checkpointed()


class Without(SmallCnn):
    """`operation` is between the last layer and the logits."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, images):
        features = self.mix(self.body(self.stem(images)))
        return self.head(self.operation(features).mean((2, 3)))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Unpooled(SmallCnn):
    def forward(self, images):
        return self.head(self.mix(self.stem(images)).flatten(2).mT)


def vit(img_size: int = 32, patch_size: int = 8, **options: Any) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size, patch_size, embed_dim=12, depth=2, num_heads=2, num_classes=4, **options
    )


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        return torch.jit.script(SmallCnn())


def quantised() -> nn.Module:
    model = SmallCnn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # and so is this
        model.head = torch.ao.nn.quantized.dynamic.Linear(6, 4)
    return model


def frozen() -> nn.Module:
    return SmallCnn().requires_grad_(False)


def synchronised() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(SmallCnn())


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = SmallCnn()


BUILD: list[tuple[type, Callable[[], Any], dict[str, Any], list[str]]] = [
    (LayerError, SmallCnn, {"layer": "stm"}, ["unknown layer 'stm'", "Did you mean 'stem'", "lists all"]),
    (LayerError, SmallCnn, {"layer": 3}, ["layer is 3, a int", "not numbered", "dotted name"]),
    (LayerError, SmallCnn, {"layer": []}, ["empty list"]),
    (LayerError, SmallCnn, {"layer": ["mix", "mix"]}, ["'mix' is named twice"]),
    (LayerError, SmallCnn, {"layer": nn.Linear(1, 1)}, ["a Linear module", "no module of this model", "dotted name"]),
    (OptionError, SmallCnn, {"layer": "mix", "attribution": "grad-cam"}, ["unknown attribution 'grad-cam'", "'gradcam'"]),
    (OptionError, SmallCnn, {"layer": "mix", "attribution": GradCam}, ["the class GradCam", "GradCam(model)"]),
    (OptionError, SmallCnn, {"layer": "mix", "attribution": GradCam(SmallCnn())}, ["another model"]),
    (OptionError, SmallCnn, {"layer": "mix", "loss": "enrgy"}, ["unknown loss 'enrgy'", "Did you mean 'energy'"]),
    (OptionError, SmallCnn, {"layer": "mix", "loss": 3}, ["loss is a int"]),
    (OptionError, SmallCnn, {"layer": "mix", "target": "al"}, ["unknown target 'al'", "'all'"]),
    (OptionError, SmallCnn, {"layer": "mix", "score": "prob"}, ["unknown score 'prob'", "'log_prob'"]),
    (OptionError, SmallCnn, {"layer": "mix", "reduction": "avg"}, ["unknown reduction 'avg'", "'mean'"]),
    (OptionError, SmallCnn, {"layer": "mix", "negatives": 2}, ["negatives is 2", "[0, 1]"]),
    (OptionError, SmallCnn, {"layer": "mix", "negatives": 0.5, "target": "all"}, ["negatives is 0.5 with target='all'"]),
    (OptionError, SmallCnn, {"layer": ["stem", "mix"], "layer_weights": [1]}, ["1 layer_weights for 2 layers"]),
    (GuidanceError, frozen, {"layer": "mix"}, ["every parameter of SmallCnn is frozen", "requires_grad_(True)"]),
    (GuidanceError, synchronised, {"layer": "mix"}, ["'stem.1' is a SyncBatchNorm", "no second derivative"]),
    (GuidanceError, Compiled, {"layer": "mix"}, ["torch.compile", "_orig_mod"]),
    (GuidanceError, lambda: nn.DataParallel(SmallCnn()), {"layer": "mix"}, ["DataParallel", "`model.module`"]),
    (GuidanceError, scripted, {"layer": "mix"}, ["the model was scripted", "Python model"]),
    (GuidanceError, quantised, {"layer": "mix"}, ["module 'head' is quantised", "floating point"]),
    (GuidanceError, lambda: Without(Square.apply), {}, ["'Square' has no second derivative", "guide a layer above"]),
    (ShapeError, Unpooled, {}, ["not logits: shape (1, 12544, 4)", "Wrap the model"]),
    (GuidanceError, lambda: vit(patch_drop_rate=0.5), {}, ["'patch_drop' drops patches", "patch_drop_rate=0"]),
    (OptionError, SmallCnn, {"layer": "mix", "layout": "HWC"}, ["unknown layout 'HWC'", "'NHWC'"]),
    (OptionError, lambda: SmallCnn, {"layer": "mix"}, ["model is a type, not an nn.Module"]),
    (LayerError, lambda: nn.Sequential(nn.Linear(5, 2)), {}, ["no layer could be found", "layer="]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "model", "options", "parts"), BUILD)
def test_what_cannot_be_built(kind, model, options, parts) -> None:
    network = model()
    with pytest.raises(kind) as wrong:
        ExplanationGuidance(network, **options)
    assert_message(str(wrong.value), "ExplanationGuidance", parts)
    if isinstance(network, nn.Module):
        assert_no_hooks(network)


def normalised_box(**_: Any) -> dict:
    return boxes((0.1, 0.1, 0.5, 0.9), labels=(0,))


def box_on_another_canvas() -> dict:
    box = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(24, 24))
    return {"boxes": box, "labels": torch.tensor([0])}


def row(*box: float) -> list:
    return [boxes(box, labels=(0,)), None, None]


ONE = {"boxes": torch.ones(1, 4), "labels": torch.zeros(1).long()}
GOOD = {"boxes": torch.tensor([[1.0, 1, 5, 5]]), "labels": torch.zeros(1).long()}
ANNOTATIONS: list[tuple[type, Any, Any, list[str]]] = [
    (AnnotationError, TARGETS[:2], None, ["2 annotations for 3 images"]),
    (AnnotationError, Annotations.from_targets(TARGETS[:2]), None, ["2 annotations for 3 images"]),
    (AnnotationError, TARGETS[0], None, ["annotations is a dict", "list with one dict an image"]),
    (AnnotationError, [boxes((1, 1, 5, 5), labels=(4,)), None, None], None, ["label 4", "4 classes", "count from 0"]),
    (AnnotationError, [boxes((1, 1, 5, 5), labels=(-1,)), None, None], None, ["image 0 has label -1"]),
    (AnnotationError, [normalised_box(), None, None], None, ["boxes in [0, 1]", "(12, 12, 12, 12)"]),
    (AnnotationError, row(5, 5, 1, 9), None, ["inverted box [5.0, 5.0, 1.0, 9.0]", "XYWH"]),
    (AnnotationError, row(5, 5, 5, 9), None, ["empty box", "SanitizeBoundingBoxes"]),
    (AnnotationError, row(20, 20, 30, 30), None, ["outside the image of 12 x 12"]),
    (AnnotationError, row(1, 1, float("nan"), 9), None, ["not finite"]),
    (AnnotationError, [box_on_another_canvas(), None, None], None, ["canvas of 24 x 24", "input is 12 x 12"]),
    (AnnotationError, [{"boxes": torch.ones(1, 4)}, None, None], None, ["no 'labels'"]),
    (AnnotationError, [{"boxes": torch.ones(2, 3), "labels": []}, None, None], None, ["boxes of shape (2, 3)"]),
    (AnnotationError, [{**GOOD, "labels": torch.tensor([0.0])}, None, None], None, ["dtype torch.float32"]),
    (AnnotationError, [{**GOOD, "masks": torch.zeros(1, 24, 24).bool()}, None, None], None, ["masks of 24 x 24"]),
    (AnnotationError, [{**GOOD, "masks": torch.zeros(2, 12, 12).bool()}, None, None], None, ["1 boxes but masks of shape (2, 12, 12)"]),
    (ShapeError, [{**GOOD, "masks": torch.zeros(1, 12, 12).byte()}, None, None], None, ["dtype torch.uint8", "`mask > 0`"]),
    (AnnotationError, ["dog", None, None], None, ["image 0 has a str"]),
    (ShapeError, torch.zeros(3, 6, 6), 0, ["(3, 6, 6)", "input is 12 x 12", "mode='nearest'"]),
    (ShapeError, torch.zeros(3, 12, 12, dtype=torch.uint8), 0, ["dtype torch.uint8", "`mask > 0`"]),
    (ShapeError, torch.zeros(3, 2, 12, 12), 0, ["(3, 2, 12, 12)", "(N, 4, H, W)"]),
    (OptionError, torch.zeros(3, 12, 12), None, ["do not say their class", "Pass target"]),
    (OptionError, TARGETS, 4, ["class 4", "0 to 3 are allowed"]),
    (OptionError, TARGETS, [0, 1, -1], ["class -1"]),
    (ShapeError, TARGETS, [0, 1], ["2 classes for 3 images"]),
    (OptionError, TARGETS, torch.rand(3), ["dtype torch.float32"]),
    (ShapeError, TARGETS, torch.zeros(3, 5), ["(3, 5)", "(3, 4)"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "annotations", "target", "parts"), ANNOTATIONS)
def test_what_loss_loc_refuses(kind, annotations, target, parts) -> None:
    model = SmallCnn()
    guide = ExplanationGuidance(model, "mix")
    model(batch())
    with pytest.raises(kind) as wrong:
        guide.loss_loc(annotations, target)
    caller = str(wrong.value).split(":")[0]
    assert caller in ("ExplanationGuidance.loss_loc", "Annotations.from_targets")
    assert_message(str(wrong.value), caller, parts)
    assert_alive(guide, model)


def no_forward(model, guide):
    guide.loss_loc(TARGETS)


def twice(model, guide):
    model(batch())
    guide.loss_loc(TARGETS)
    guide.loss_loc(TARGETS)


def under_no_grad(model, guide):
    model(batch())
    with torch.no_grad():
        guide.loss_loc(TARGETS)


def after_no_grad(model, guide):
    with torch.no_grad():
        model(batch())
    guide.loss_loc(TARGETS)


def after_inference_mode(model, guide):
    with torch.inference_mode():
        model(batch())
    guide.loss_loc(TARGETS)


def after_remove(model, guide):
    model(batch())
    guide.remove()
    guide.loss_loc(TARGETS)


def integer_images(model, guide):
    model(torch.zeros(3, 12, dtype=torch.int64))
    guide.loss_loc(TARGETS)


def simply(model, guide):
    model(batch())
    guide.loss_loc(TARGETS)


class NoImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Embedding(3, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, words):
        return self.head(self.mix(words).mean(1))


TIMES = [
    (GuidanceError, SmallCnn, "mix", no_forward, ["no forward pass is waiting"]),
    (GuidanceError, SmallCnn, "mix", twice, ["no forward pass is waiting", "one loss_loc"]),
    (GuidanceError, SmallCnn, "mix", under_no_grad, ["gradients are off", "`attribute`"]),
    (GuidanceError, SmallCnn, "mix", after_no_grad, ["ran without gradients"]),
    (GuidanceError, SmallCnn, "mix", after_inference_mode, ["ran without gradients"]),
    (GuidanceError, SmallCnn, "mix", after_remove, ["taken off the model", "Build a new guide"]),
    (LayerError, InPlaceCnn, "unused", simply, ["'unused' ran 0 times"]),
    (LayerError, Twice, "mix", simply, ["'mix' ran 2 times", "runs once"]),
    (LayerError, SmallCnn, "head", simply, ["shape (3, 4)", "no spatial extent"]),
    (LayerError, Pooled, "pool", simply, ["shape (3, 6, 1, 1)", "no spatial extent"]),
    (ShapeError, Named, "mix", simply, ["not logits: dict with 'scores'", "(N, K)"]),
    (LayerError, Branches, "split", simply, ["returns a list", "layer='split[1]' (3, 6, 6, 6)"]),
    (LayerError, Branches, "split[2]", simply, ["returns a list", "layer='split[0]'"]),
    (LayerError, Windows, "mix", simply, ["(6, 6, 3, 6) for 3 images", "the block around it"]),
    (
        LayerError,
        lambda: checkpointed("inside"),
        "body.0",
        simply,
        ["'body.0' ran without gradients", "use_reentrant"],
    ),
    (
        GuidanceError,
        lambda: checkpointed("above"),
        "stem",
        simply,
        ["checkpointed with use_reentrant=True", "above"],
    ),
    (
        GuidanceError,
        lambda: Without(Square.apply),
        "mix",
        simply,
        ["'Square' has no second derivative"],
    ),
    (
        GuidanceError,
        lambda: Without(torch.ops.aten.hardsigmoid),
        "mix",
        simply,
        ["'hardsigmoid' has no second"],
    ),
    (ShapeError, NoImages, "mix", integer_images, ["torch.int64 of shape (3, 12)"]),
]


@pytest.mark.parametrize(("kind", "build", "layer", "act", "parts"), TIMES)
def test_what_comes_at_the_wrong_time(kind, build, layer, act, parts) -> None:
    model = build()
    guide = ExplanationGuidance(model, layer)
    with pytest.raises(kind) as wrong:
        act(model, guide)
    assert_message(str(wrong.value), "ExplanationGuidance.loss_loc", parts)
    assert guide._tap.last is None
    guide.remove()
    assert_no_hooks(model)


def test_the_predicted_class_takes_no_target() -> None:
    model = SmallCnn()
    guide = ExplanationGuidance(model, "mix", target="predicted")
    model(batch())
    with pytest.raises(OptionError, match="explains the predicted class"):
        guide.loss_loc(TARGETS, 1)


def test_a_loss_that_reduces_over_images() -> None:
    model = SmallCnn()
    guide = ExplanationGuidance(model, "mix", loss=lambda a, m: (a * m).mean())
    model(batch())
    with pytest.raises(ShapeError, match=r"returned \(\) for 3 maps"):
        guide.loss_loc(TARGETS)


def test_attribution_classes() -> None:
    model = SmallCnn()
    with pytest.raises(OptionError, match="n_steps is 0"):
        IntegratedGradients(model, n_steps=0)
    with pytest.raises(OptionError, match=r"^InputXGradient.attribute: target is 'best'. Give"):
        InputXGradient(model).attribute(batch(), "best")
    with pytest.raises(OptionError, match="class 7"):
        InputXGradient(model).attribute(batch(), 7)
    with pytest.raises(LayerError, match=r"^GradCam: unknown layer"):
        GradCam(model, layer="stam")
    guide = ExplanationGuidance(model, "mix")
    with pytest.raises(OptionError, match="unknown layer 'stem'"):
        guide.attribute(batch(), 0, layer="stem")
    guide.remove()
    assert_no_hooks(model)


def no_bias(*modules: nn.Module, **how: Any) -> nn.Module:
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return remove_bias(nn.Sequential(nn.Conv2d(3, 8, 1), *modules, *end), **how)


class Functional(nn.Sequential):
    def forward(self, images):
        return nn.functional.gelu(super().forward(images))


MAPS = torch.ones(1, 2, 2), torch.ones(1, 2, 2)
LOGITS = torch.zeros(2, 3)
CALLS: list[tuple[type, str, Callable[[], Any], list[str]]] = [
    (OptionError, "recipe", lambda: recipe("robstvit"), ["unknown recipe 'robstvit'", "Did you mean 'robustvit'", "'reff' are allowed"]),
    (OptionError, "recipe", lambda: recipe(3), ["unknown recipe 3"]),
    (OptionError, "Recipe.guide", lambda: recipe("rrr").guide(SmallCnn(), lss="l1"), ["unknown option 'lss'", "Did you mean 'loss'", "reduction"]),
    (LayerError, "Recipe.guide", lambda: recipe("reff").guide(SmallCnn()), ["has no 'layer1'", "layer=[...] (--layer)"]),
    (OptionError, "TrainConfig", lambda: recipe("rrr").config(lmd=3), ["unknown setting 'lmd'", "Did you mean 'lam'"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(class_loss="confidence"), ["unknown class_loss 'confidence'", "'confidence-boosting'"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(class_weight=-1), ["class_weight is -1", "from 0 on"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(temperature=0), ["temperature is 0", "above 0"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(temperature=0.65), ["temperature is 0.65 with class_loss='task'", "Use class_loss='confidence-boosting'"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(loss="rrr", loss_options={"normalise": False}), ["no option 'normalise'", "Did you mean 'normalize'"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(loss="gradmask", loss_options={"eps": 1}), ["'gradmask' has no option 'eps'", "It has none"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(loss="reff", loss_options={"variant": "l3"}), ["refuses its options", "unknown variant 'l3'"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(loss="relevance", loss_options={"background": "2"}), ["background of the loss 'relevance' is '2'. Did you mean 2? A number is allowed."]),
    (OptionError, "TrainConfig", lambda: TrainConfig(loss_options={"eps": torch.tensor(1.0)}), ["loss_options is {'eps': tensor(1.)}", "numbers and words"]),
    (OptionError, "TrainConfig", lambda: TrainConfig(loss_options=["eps"]), ["loss_options is ['eps']", "{'normalize': False}"]),
    (DataError, "train", operation("train")(lambda: check_labels(LOGITS, LOGITS, class_loss="confidence-boosting")), ["labels are multi-hot (2, 3)", "class_loss='task'"]),
    (OptionError, "classification_loss", lambda: losses.classification_loss(LOGITS, LOGITS, class_loss="tsk"), ["unknown class_loss 'tsk'", "Did you mean 'task'"]),
    (OptionError, "confidence_boosting", lambda: losses.confidence_boosting(LOGITS, temperature=-1), ["temperature is -1", "above 0"]),
    (OptionError, "confidence_boosting", lambda: losses.confidence_boosting(LOGITS, reduction="men"), ["unknown reduction 'men'", "'mean'"]),
    (ShapeError, "confidence_boosting", lambda: losses.confidence_boosting(LOGITS[0]), ["shape (3,)", "(N, K)"]),
    (OptionError, "relevance_loss", lambda: losses.relevance_loss(*MAPS, background=-1), ["background is -1", "foreground=0.3", "from 0 on"]),
    (OptionError, "energy_loss", lambda: losses.energy_loss(*MAPS, floor="abs"), ["unknown floor 'abs'", "'absolute'"]),
    (OptionError, "l1_loss", lambda: losses.l1_loss(*MAPS, normalize="papr"), ["unknown normalize 'papr'", "Did you mean 'paper'", "True, False"]),
    (OptionError, "ppce_loss", lambda: losses.ppce_loss(*MAPS, normalize="max"), ["unknown normalize 'max'"]),
    (OptionError, "rrr_loss", lambda: losses.rrr_loss(*MAPS, normalize="papr"), ["unknown normalize 'papr'", "Did you mean 'paper'"]),
    (OptionError, "remove_bias", lambda: no_bias(normalization="fld"), ["unknown normalization 'fld'", "Did you mean 'fold'", "'remove' are allowed"]),
    (OptionError, "remove_bias", lambda: remove_bias(SmallCnn), ["model is a type, not an nn.Module"]),
    (GuidanceError, "remove_bias", lambda: remove_bias(SmallCnn()), ["SmallCnn has modules", "'stem.2' (GELU)", "activations for ReLU", "pooling, dropout"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.SiLU(), nn.SiLU(), nn.SiLU()), ["'1' and 2 more (SiLU)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.Hardswish(), nn.Sigmoid()), ["'1' (Hardswish); '2' (Sigmoid)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.Hardsigmoid()), ["'1' (Hardsigmoid)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.Softmax(1)), ["'1' (Softmax)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.ReLU6()), ["'1' (ReLU6)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.Hardtanh()), ["'1' (Hardtanh)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.Tanh()), ["'1' (Tanh)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.Softplus()), ["'1' (Softplus)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.AlphaDropout()), ["'1' (AlphaDropout)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.ConstantPad2d(1, 1.0)), ["'1' (ConstantPad2d with an added constant)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.GroupNorm(2, 8)), ["'1' (GroupNorm, which gives the same for 2x as for x)", "normalization='remove' drops"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.InstanceNorm2d(8)), ["'1' (InstanceNorm2d, which gives the same"]),
    (GuidanceError, "remove_bias", lambda: no_bias(timm.layers.LayerNorm2d(8)), ["'1' (LayerNorm2d, which gives the same"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.BatchNorm2d(8, track_running_stats=False)), ["'1' (BatchNorm2d, which gives the same"]),
    (GuidanceError, "remove_bias", lambda: no_bias(timm.layers.SqueezeExcite(8)), ["'1.gate' (Sigmoid)"]),
    (GuidanceError, "remove_bias", lambda: remove_bias(vit()), ["the model itself (VisionTransformer with parameters of its own, such as 'cls_token')", "'blocks.0.attn' and 1 more (Attention, whose weights depend on x)", "and 4 more (LayerNorm", "(GELU)"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.MultiheadAttention(8, 2)), ["'1' (MultiheadAttention with parameters of its own, such as 'in_proj_weight')"]),
    (GuidanceError, "remove_bias", lambda: no_bias(nn.GELU(), nn.SiLU(), nn.Tanh(), nn.ELU(), nn.CELU(), nn.SELU(), nn.Mish()), ["(CELU); 2 more kinds. Exchange"]),
    (GuidanceError, "remove_bias", lambda: no_bias(Functional(nn.Conv2d(8, 8, 1))), ["still not positively homogeneous: f(", "F.gelu"]),
    (GuidanceError, "remove_bias", lambda: remove_bias(nn.Sequential(nn.Flatten(), nn.Linear(48, 2))), ["did not run on a random image of 3 x 224 x 224", "image_size=(height, width)"]),
    (ShapeError, "remove_bias", lambda: remove_bias(nn.Sequential(nn.Conv2d(3, 8, 1))), ["not logits: shape (1, 8, 224, 224)"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "caller", "call", "parts"), CALLS)
def test_what_losses_and_recipes_refuse(kind, caller, call, parts) -> None:
    with pytest.raises(kind) as wrong:
        call()
    assert_message(str(wrong.value), caller, parts)


def explain(model: nn.Module) -> None:
    with explanation_mode(model):
        pytest.fail("it is entered")


IMAGE = torch.rand(3, 4, 4)
SMALL_VIT = SimpleViT(2, dim=12, depth=1, heads=3)
BCOS: list[tuple[type, str, Callable[[], Any], list[str]]] = [
    (OptionError, "explanation_mode", lambda: explain(SmallCnn()), ["SmallCnn has no B-cos module", "Convert it with bcosify", "'ixg'", "is allowed"]),
    (OptionError, "explanation_mode", lambda: explain(nn.ReLU()), ["ReLU has no B-cos module"]),
    (OptionError, "BcosConv2d", lambda: BcosConv2d(6, 4, 3, b=0.5), ["b is 0.5", "Use 2", "from 1 on"]),
    (OptionError, "BcosConv2d", lambda: BcosConv2d(6, 4, 3, max_out=0), ["max_out is 0", "positive integer"]),
    (OptionError, "BcosConv2d", lambda: BcosConv2d(6, 4, 3, gain="nrom"), ["unknown gain 'nrom'", "Did you mean 'norm'", "'unit', 'norm', 'power' are allowed"]),
    (ShapeError, "BcosConv2d", lambda: BcosConv2d(6, 4, 3)(IMAGE[None]), ["the image has 3 channels", "takes 6", "Put AddInverse()", "(N, 6, H, W) is allowed"]),
    (ShapeError, "BcosConv2d", lambda: BcosConv2d(3, 4, 3)(torch.rand(6, 4, 4)), ["has 6 channels", "takes 3. Leave out AddInverse()"]),
    (ShapeError, "BcosConv2d", lambda: BcosConv2d(8, 4, 3)(torch.rand(1, 5, 4, 4)), ["has 5 channels", "Check the layer before"]),
    (OptionError, "BcosConv2d", lambda: BcosConv2d(6, 10, 3, groups=3), ["BcosConv2d: 10 outputs do not divide into 3 groups", "Use 12", "Multiples of groups are allowed"]),
    (OptionError, "BcosLinear", lambda: BcosLinear(6, 4, b=float("nan")), ["b is nan"]),
    (OptionError, "BcosLinear", lambda: BcosLinear(6, 4, max_out=2.0), ["max_out is 2.0", "positive integer"]),
    (OptionError, "BcosLinear", lambda: BcosLinear(6, 4, max_out=True), ["max_out is True"]),
    (OptionError, "BcosLinear", lambda: BcosLinear(6, 4, gain=None), ["unknown gain None"]),
    (ShapeError, "AddInverse", lambda: AddInverse()(torch.rand(2, 6, 4, 4)), ["shape (2, 6, 4, 4)", "holds the inverse already", "(..., 3, H, W)"]),
    (ShapeError, "AddInverse", lambda: AddInverse()(IMAGE[:1]), ["shape (1, 4, 4). Give RGB"]),
    (ShapeError, "AddInverse", lambda: AddInverse()(IMAGE.byte()), ["torch.uint8", "v2.ToDtype(torch.float32, scale=True)"]),
    (ShapeError, "AddInverse", lambda: AddInverse()(PIL.Image.new("RGB", (4, 4))), ["v2.ToImage()", "A tensor (..., 3, H, W)"]),
    (OptionError, "AddInverse", lambda: AddInverse()(4 * torch.arange(48.0).reshape(3, 4, 4) - 2), ["values from -2 to 186", "Leave out Normalize", "[0, 1]"]),
    (OptionError, "LogitBias", lambda: LogitBias(temperature=0), ["temperature is 0", "Use 1 for none", "ositive number"]),
    (OptionError, "DynamicLinearUnit", lambda: DynamicLinearUnit(4, 3, rank=0), ["rank is 0", "positive integer"]),
    (OptionError, "DynamicLinearUnit", lambda: DynamicLinearUnit(4, 3, scaling="sqash"), ["unknown scaling 'sqash'", "'squash', 'l2' are allowed"]),
    (ShapeError, "to_rgba", lambda: to_rgba(torch.rand(6, 4, 4), IMAGE[:1]), ["weights has shape (6, 4, 4)", "weights[None]", "(N, 6, H, W) is allowed"]),
    (ShapeError, "to_rgba", lambda: to_rgba(IMAGE[None], IMAGE[:1]), ["weights has shape (1, 3, 4, 4)", "dynamic_weights"]),
    (ShapeError, "to_rgba", lambda: to_rgba(torch.rand(2, 6, 4, 4), IMAGE), ["contributions has shape (3, 4, 4)", "(2, 6, 4, 4)", "(2, 4, 4) is allowed"]),
    (OptionError, "to_rgba", lambda: to_rgba(torch.rand(1, 6, 4, 4), IMAGE[:1], smooth=4), ["smooth is 4", "Use 5", "Odd numbers and 0"]),
    (OptionError, "to_rgba", lambda: to_rgba(torch.rand(1, 6, 4, 4), IMAGE[:1], smooth=1.5), ["smooth is 1.5", "Use 15"]),
    (OptionError, "to_rgba", lambda: to_rgba(torch.rand(1, 6, 4, 4), IMAGE[:1], smooth=-1), ["smooth is -1"]),
    (OptionError, "to_rgba", lambda: to_rgba(torch.rand(1, 6, 4, 4), IMAGE[:1], percentile=0), ["percentile is 0", "up to 100"]),
    (OptionError, "to_rgba", lambda: to_rgba(torch.rand(1, 6, 4, 4), IMAGE[:1], percentile=101), ["percentile is 101", "Use 99.5"]),
    (OptionError, "published", lambda: published("resnet5"), ["unknown network 'resnet5'", "Did you mean 'resnet50'", "vitc_l_patch1_14 are allowed"]),
    (OptionError, "load_published", lambda: load_published(SmallCnn(), {}), ["this SmallCnn is not of the published form", "published(name)", "gain 'unit'"]),
    (OptionError, "load_published", lambda: load_published(BcosLinear(6, 4, gain="norm"), {}), ["keep_weights=False"]),
    (DataError, "load_published", lambda: load_published(SMALL_VIT, {"epoch": 3, "state_dict": {}}), ["the weights hold entries that are no tensors: epoch, state_dict", "under 'state_dict' or 'model'"]),
    (DataError, "load_published", lambda: load_published(SMALL_VIT, {}), ["another network than this SimpleViT", "missing: embed.weight, blocks.0.norm1.weight", "and 6 more. Build it", "are allowed"]),
    (DataError, "load_published", lambda: load_published(SMALL_VIT, {"0.fc.linear.weight": IMAGE}), ["left over: 0.fc.linear.weight. Build"]),
    (DataError, "load_published", lambda: load_published(SMALL_VIT, {"0.linear_head.linear.linear.weight": IMAGE}), ["of another shape: 0.linear_head.linear.linear.weight is (3, 4, 4) instead of (2, 12)"]),
    (DataError, "load_published", lambda: load_published(SMALL_VIT, {"to_patch_embedding.linear.linear.weight": IMAGE}), ["is (3, 4, 4) instead of (12, 6, 16, 16)"]),
    (OptionError, "SimpleViT", lambda: SimpleViT(2, dim=25, heads=6), ["dim is 25 with 6 heads. Use 36", "Multiples of 4 and of heads, from 8 on"]),
    (OptionError, "SimpleViT", lambda: SimpleViT(2, dim=4, heads=1), ["dim is 4 with 1 heads. Use 8"]),
    (ShapeError, "SimpleViT", lambda: SMALL_VIT(torch.rand(1, 6, 32, 40)), ["patches of 16 x 16 do not cover 32 x 40", "(1, 6, 32, 40)", "Resize them"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "caller", "call", "parts"), BCOS)
def test_what_bcos_refuses(kind, caller, call, parts) -> None:
    with pytest.raises(kind) as wrong:
        call()
    assert_message(str(wrong.value), caller, parts)


def plain(*modules: nn.Module, image_size: int = 16) -> nn.Module:
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *modules, *end)
    model.image_size = image_size  # type: ignore[assignment]
    return model


def scripted_plain() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain())


def swin() -> nn.Module:
    return timm.models.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4
    )


def beit() -> nn.Module:
    return timm.models.Beit(img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2)


NETWORK = bcosify(plain())
SIX = AddInverse()(torch.rand(1, 3, 16, 16))
BCOSIFY: list[tuple[type, str, Callable[[], Any], list[str]]] = [
    (OptionError, "bcosify", lambda: bcosify(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())), ["Sequential has no convolution and no linear layer", "nn.Conv2d and nn.Linear", "timm and torchvision are allowed"]),
    (OptionError, "bcosify", lambda: bcosify(nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())), ["no convolution and no linear layer"]),
    (OptionError, "bcosify", lambda: bcosify(nn.Sequential), ["model is a type, not an nn.Module", "Pass the classifier itself"]),
    (OptionError, "bcosify", lambda: bcosify("resnet18"), ["model is a str, not an nn.Module"]),
    (OptionError, "bcosify", lambda: bcosify(NETWORK), ["this Sequential is a B-cos network already", "set_b", "An ordinary network is allowed"]),
    (OptionError, "bcosify", lambda: bcosify(nn.Sequential(AddInverse(), NETWORK)), ["B-cos network already"]),
    (GuidanceError, "bcosify", lambda: bcosify(scripted_plain()), ["scripted or traced by torch.jit", "Python model"]),
    (GuidanceError, "bcosify", lambda: bcosify(torch.compile(plain())), ["torch.compile", "`compiled._orig_mod`"]),
    (GuidanceError, "bcosify", lambda: bcosify(nn.DataParallel(plain())), ["nn.DataParallel", "`model.module`"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), 0.5), ["b is 0.5", "Use 2", "from 1 on are allowed"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), float("nan")), ["b is nan"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), max_out=2), ["max_out is 2", "the kept weights are those of one filter", "keep_weights=False"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), max_out=0, keep_weights=False), ["max_out is 0"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), gain="nrom"), ["unknown gain 'nrom'", "Did you mean 'norm'"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), norm="detach"), ["norm is 'detach'", "'uncentered', or 'detached'", "function from the number of channels"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), norm=nn.Identity()), ["norm is Identity()"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), activations="dorp"), ["activations is 'dorp'", "'keep' and 'drop' are allowed"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), mean=(0.5, 0.5)), ["mean is (0.5, 0.5)", "one number a channel", "Three numbers, or one for all"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), mean=(0.1, 0.2, 0.3, 0.4)), ["mean is (0.1, 0.2, 0.3, 0.4)"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), std=(0.2, 0.2, 0.0)), ["std is (0.2, 0.2, 0.0)", "std is positive"]),
    (OptionError, "bcosify", lambda: bcosify(plain(), std=-1), ["std is -1", "std is positive"]),
    (OptionError, "bcosify", lambda: bcosify(swin()), ["SwinTransformer has layers without a B-cos form", "layers.0.blocks.0.attn (WindowAttention)", "softmax attention (timm's Attention"]),
    (OptionError, "bcosify", lambda: bcosify(beit()), ["Beit has layers", "blocks.0.attn (Attention)"]),
    (OptionError, "bcosify", lambda: bcosify(plain(nn.Sigmoid())), ["1 (Sigmoid). Replace"]),
    (OptionError, "bcosify", lambda: bcosify(plain(nn.InstanceNorm2d(8))), ["1 (InstanceNorm2d)"]),
    (OptionError, "bcosify", lambda: bcosify(plain(timm.layers.grn.GlobalResponseNorm(8, channels_last=False))), ["1 (GlobalResponseNorm)"]),
    (OptionError, "bcosify", lambda: bcosify(plain(nn.ConvTranspose2d(8, 8, 2))), ["1 (ConvTranspose2d)"]),
    (OptionError, "bcosify", lambda: bcosify(plain(*(nn.Tanh() for _ in range(6)))), ["1 (Tanh), 2 (Tanh), 3 (Tanh), 4 (Tanh) and 2 more"]),
    (OptionError, "bcosify", lambda: bcosify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(1152, 2))), ["did not run on random images of 3 x 224 x 224", "image_size=(height, width)"]),
    (OptionError, "set_b", lambda: set_b(plain(), 2), ["Sequential has no B-cos unit", "Convert it with bcosify"]),
    (OptionError, "set_b", lambda: set_b(NETWORK, 0.5), ["b is 0.5"]),
    (OptionError, "scale_biases", lambda: scale_biases(NETWORK, 2), ["factor is 2", "Use 0 to remove them", "[0, 1]"]),
    (OptionError, "scale_biases", lambda: scale_biases(NETWORK, -0.1), ["factor is -0.1"]),
    (OptionError, "conversion", lambda: conversion(plain()), ["this Sequential was not made by bcosify", "Pass what bcosify returned"]),
    (OptionError, "BcosContribution", lambda: BcosContribution(plain()), ["Sequential has no B-cos module", "'ixg'"]),
    (ShapeError, "BcosConv2d", lambda: NETWORK(torch.rand(1, 3, 16, 16)), ["the image has 3 channels, but the layer takes 6", "AddInverse()", "without Normalize", "(N, 6, H, W) is allowed"]),
    (ShapeError, "AddInverse", lambda: AddInverse()(AddInverse()(IMAGE)), ["shape (6, 4, 4)", "holds the inverse already"]),
    (OptionError, "AddInverse", lambda: AddInverse()(2 * IMAGE + 1), ["1 - x is no inverse", "Leave out Normalize"]),
    (OptionError, "contribution_map", lambda: contribution_map(NETWORK, SIX, 2), ["target holds class 2, but the model has 2.", "0 to 1 are allowed"]),
    (OptionError, "contribution_map", lambda: contribution_map(NETWORK, SIX, 8, layer="0"), ["target holds channel 8, but the layer has 8. Count the layer's channels. 0 to 7 are allowed"]),
    (OptionError, "dynamic_weights", lambda: dynamic_weights(NETWORK, SIX, torch.zeros(2)), ["shape (2,) and dtype torch.float32", "one class index an image"]),
    (ShapeError, "dynamic_weights", lambda: dynamic_weights(NETWORK, SIX, [0, 1]), ["target has 2 classes for 1 images"]),
    (OptionError, "dynamic_weights", lambda: dynamic_weights(plain(), SIX[:, :3], 0), ["has no B-cos module"]),
    (OptionError, "dynamic_weights", lambda: dynamic_weights(NETWORK, SIX, 0, layer="0", position=(0, 14)), ["position is (0, 14), but the layer has 14 x 14 places", "(0, 0) to (13, 13)"]),
    (LayerError, "dynamic_weights", lambda: dynamic_weights(NETWORK, SIX, 0, layer="input"), ["layer is 'input', which has no neurons"]),
    (LayerError, "dynamic_weights", lambda: dynamic_weights(NETWORK, SIX, 0, layer="00"), ["unknown layer '00'"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "caller", "call", "parts"), BCOSIFY)
def test_what_conversions_and_maps_refuse(kind, caller, call, parts) -> None:
    with pytest.raises(kind) as wrong:
        call()
    assert_message(str(wrong.value), caller, parts)


def test_did_you_mean() -> None:
    assert did_you_mean("xyz", ["layer1"]) == ""
    assert did_you_mean("layer5", ["layer1"]) == " Did you mean 'layer1'?"


def test_every_exception_is_the_builtin_that_a_caller_expects() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        known = isinstance(kind, type) and issubclass(kind, Exception)
        if known and not issubclass(kind, Warning):
            assert issubclass(kind, ExplainGuideError)
    assert issubclass(OptionError, ValueError)
    assert issubclass(GuidanceError, RuntimeError)
    assert issubclass(errors.ExplainGuideWarning, UserWarning)


def assert_message(message: str, caller: str, parts: list[str]) -> None:
    """``<callable>: <wrong>. <fix>. <allowed>.``, on one line."""
    assert message.startswith(f"{caller}: ")
    assert "\n" not in message
    assert not re.search(r"(?<!\.)\.\.(?!\.)", message)  # a sentence ends once
    for part in parts:
        assert part in message


def assert_alive(guide: ExplanationGuidance, model: nn.Module) -> None:
    """A refused call keeps nothing, and the next pass is read."""
    assert guide._tap.last is None
    model(batch())
    guide.loss_loc(TARGETS)


def assert_no_hooks(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
