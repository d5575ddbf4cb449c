"""The sanity check randomises a copy from the last layer on, and tells how alike the maps still are."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import timm
import torch
from captum.attr import LayerGradCam, NoiseTunnel, Saliency
from scipy.stats import spearmanr
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from explainguide import ExplanationGuidance
from explainguide.attr import GradCam, InputXGradient
from explainguide.errors import GuidanceError, LayerError, OptionError, ShapeError
from explainguide.evaluation import SanityStage, sanity_check
from explainguide.evaluation.random_weights import randomise
from explainguide.evaluation.similarity import rank_correlation, structural_similarity
from tests.networks import SmallCnn, batch

TARGET = torch.tensor([0, 1, 2, 3])
ORDER = ["head", "mix", "body.1", "body.0", "stem.1", "stem.0"]  # as it runs, the last first


def images(size=16):
    return batch(4, size)


def trained_in(model):
    """Statistics and weights that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.3 * torch.randn(tensor.shape, generator=generator).abs())
    return model


def test_rank_correlation_is_scipys():
    maps = torch.randn(5, 6, 7, dtype=torch.float64)
    other = maps + torch.randn(5, 6, 7, dtype=torch.float64)
    other[1:3] = other[1:3].round()
    maps[2:4] = (2 * maps[2:4]).round()  # ties in both, in one, in the other
    found = rank_correlation(maps, other)
    for i in range(5):
        expected = spearmanr(maps[i].flatten(), other[i].flatten()).statistic
        assert float(found[i]) == pytest.approx(expected, rel=1e-12)


def test_structural_similarity_is_that_of_each_image_in_its_own_range():
    one, other = torch.randn(3, 12, 14), torch.randn(3, 12, 14)
    scale = torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    found = structural_similarity(one * scale, other, lowest=-1)
    for i in range(3):
        first, second = (maps[i] / maps[i].abs().max() for maps in (one, other))
        expected = structural_similarity_index_measure(
            first[None, None], second[None, None], data_range=2.0
        )
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-6)
    same = structural_similarity(one.abs(), 5 * one.abs(), lowest=0)
    torch.testing.assert_close(same, torch.ones(3))


def test_stages_run_from_the_last_layer_to_the_first():
    model = trained_in(SmallCnn())
    method = InputXGradient(model)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    found = sanity_check(method, images(), TARGET)
    assert torch.equal(state, torch.get_rng_state())
    assert [stage.stage for stage in found] == ORDER
    assert all(isinstance(stage, SanityStage) for stage in found)
    assert found[0].reset == ("head.weight", "head.bias")
    assert found[0].redrawn == ()
    drawn = {name for stage in found for name in stage.reset + stage.redrawn}
    floats = {key for key, value in before.items() if value.is_floating_point()}
    assert drawn == floats  # the statistics of the norms too
    # The user's model is as it was.
    assert method.model is model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("absolute", [False, True])
def test_the_numbers_are_those_of_maps_of_such_a_model(absolute):
    """Built anew: the same draws on a copy, its maps, and scipy's correlation image by image."""
    model = trained_in(SmallCnn()).eval()
    found = sanity_check(
        InputXGradient(model, layer="stem"), images(), TARGET, batch_size=3, seed=5
    )
    other = copy.deepcopy(model)
    modules = dict(other.named_modules())

    def maps(model):
        made = InputXGradient(model, layer="stem").attribute(images(), TARGET)
        made = nn.functional.interpolate(made, (16, 16), mode="bilinear")[:, 0]
        return made.abs() if absolute else made

    first = maps(model)
    for number, name in enumerate(ORDER):
        randomise({name: modules[name]}, seed=5, stage=number)
        now = maps(other)
        ranks = [
            spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, now, strict=True)
        ]
        stage = found[number]
        told = stage.rank_correlation_absolute if absolute else stage.rank_correlation
        assert told == pytest.approx(sum(ranks) / 4, abs=1e-5)
        similar = structural_similarity(first, now, lowest=0 if absolute else -1).mean()
        told = stage.ssim_absolute if absolute else stage.ssim
        assert told == pytest.approx(float(similar), abs=1e-5)
        assert stage.undefined == 0


def test_maps_that_ignore_the_weights_stay():
    class Edges:
        """An edge filter that asks the model and does not listen."""

        def __init__(self, model):
            self.model = model

        def attribute(self, images, target):
            self.model(images)
            return images.diff(dim=3, append=images[..., :1]).abs().sum(1, keepdim=True)

    for stage in sanity_check(Edges(SmallCnn()), images(), TARGET):
        numbers = stage.rank_correlation, stage.rank_correlation_absolute, stage.ssim
        assert numbers == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)


def test_a_seed_decides():
    method = InputXGradient(trained_in(SmallCnn()))
    first, again, other = (sanity_check(method, images(), TARGET, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_stages_by_name():
    method = GradCam(trained_in(SmallCnn()), layer="body")
    found = sanity_check(method, images(), TARGET, stages=["head", "body", "stem.0"])
    assert [stage.stage for stage in found] == ["head", "body", "stem.0"]
    assert {name.rpartition(".")[0] for name in found[1].reset} == {"body.0", "body.1"}
    assert "body.1.running_var" in found[1].reset
    # A part that is random already is not drawn again.
    found = sanity_check(method, images(), TARGET, stages=["body.1", "body"])
    assert set(found[1].reset) == {"body.0.weight", "body.0.bias"}


@pytest.mark.parametrize("kind", ["saliency", "layer", "noise tunnel"])
def test_captums_methods_are_copied_with_their_model(kind):
    model = trained_in(SmallCnn()).eval()
    method = LayerGradCam(model, model.body) if kind == "layer" else Saliency(model)
    options = {}
    if kind == "noise tunnel":
        method = NoiseTunnel(method)
        options = {
            "model": model,
            "explain": lambda method, images, target: method.attribute(
                images, target=target, nt_samples=2, stdevs=1e-3
            ),
        }
    before = copy.deepcopy(model.state_dict())
    found = sanity_check(method, images(), TARGET, **options)
    assert [stage.stage for stage in found] == ORDER
    assert found[-1].rank_correlation < 0.999
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_partial_is_copied_a_function_is_not():
    def explain(model, images, target):
        return InputXGradient(model).attribute(images, target)

    model = SmallCnn()
    found = sanity_check(functools.partial(explain, model), images(), TARGET, model=model)
    assert len(found) == len(ORDER)
    told = r"^sanity_check: the copy of function does not run the copy of the model, as a function"
    with pytest.raises(GuidanceError, match=told):
        sanity_check(lambda *given: explain(model, *given), images(), TARGET, model=model)


def test_a_guided_model_and_a_vit():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4)
    guide = ExplanationGuidance(model)
    method = InputXGradient(model, layer="blocks.0.norm1")
    found = sanity_check(method, images(32), TARGET)
    order = [stage.stage for stage in found]
    assert order[0] == "head"
    # Tokens and positions are the whole's own, and it begins before its parts.
    assert order[-1] == "VisionTransformer"
    assert {"cls_token", "pos_embed"} <= set(found[-1].redrawn)
    assert order.index("blocks.1.attn.qkv") < order.index("blocks.0.attn.qkv")
    # The guide works as before.
    logits = model(images(32))
    target = [{"boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0]]), "labels": torch.tensor([1])}] * 4
    (logits.sum() + guide.loss_loc(target)).backward()
    guide.remove()


class Attention(nn.Module):
    """Its projection never runs as a module; the second head not at all."""

    def __init__(self):
        super().__init__()
        self.patch = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 4, stride=4))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.scale = nn.ParameterList([nn.Parameter(torch.rand(8))])
        self.head = nn.Linear(8, 4)
        self.other = nn.Linear(8, 4)

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head((tokens * self.scale[0]).mean(1))


def test_every_parameter_is_drawn_once_in_whatever_module_it_is():
    model = trained_in(Attention())
    drawn = []
    for stage in sanity_check(InputXGradient(model), images(), TARGET):
        drawn += stage.reset + stage.redrawn
    assert sorted(drawn) == sorted(dict(model.named_parameters()))
    by_name = {s.stage: s for s in sanity_check(InputXGradient(model), images(), TARGET)}
    assert "attention.out_proj.weight" in (
        by_name["attention"].reset + by_name["attention"].redrawn
    )
    # A weight that is computed: its reset changes nothing, so its parts are drawn.
    parts = by_name["patch.parametrizations.weight"].redrawn
    assert set(parts) == {f"patch.parametrizations.weight.original{i}" for i in (0, 1)}


def test_redrawn_parameters_keep_mean_and_spread():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(3 + 0.5 * torch.randn(20000))
            self.constant = nn.Parameter(torch.ones(5))
            self.count = nn.Parameter(torch.arange(5), requires_grad=False)

    module = Plain()
    before = module.weight.detach().clone()
    assert randomise({"": module}, seed=0, stage=0) == ((), ("weight",))
    assert abs(torch.corrcoef(torch.stack([before, module.weight.detach()]))[0, 1]) < 0.05
    drawn = module.weight.detach()
    assert float(drawn.mean()) == pytest.approx(3, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.05)
    assert module.weight.requires_grad


def test_maps_that_become_constant_are_counted():
    class Dead(nn.Module):
        """Of a weight that is negative the map is zero; drawn anew it is 1."""

        def __init__(self):
            super().__init__()
            self.part = Flip()

        def forward(self, images):
            return self.part(images).flatten(1)[:, :4]

    class Flip(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.0))

        def reset_parameters(self):
            self.weight.data.fill_(-1.0)

        def forward(self, images):
            return self.weight * images

    class Kept:
        def __init__(self, model):
            self.model = model

        def attribute(self, images, target):
            alive = (self.model.part.weight > 0) | (target == 2)
            self.model(images)
            return images[:, :1] * alive[:, None, None, None]

    model = Dead()
    (stage,) = sanity_check(Kept(model), images(), TARGET)
    assert stage.undefined == 3
    assert stage.rank_correlation == pytest.approx(1.0)  # of the one that is left
    (stage,) = sanity_check(Kept(model), images()[:2], TARGET[:2])
    assert stage.undefined == 2
    assert math.isnan(stage.rank_correlation)


def test_a_bar_is_shown_on_demand(capsys):
    sanity_check(InputXGradient(SmallCnn()), images(), TARGET, stages=["head"])
    assert capsys.readouterr().err == ""
    sanity_check(InputXGradient(SmallCnn()), images(), TARGET, stages=["head"], progress=True)
    assert "sanity" in capsys.readouterr().err


class NoCopy(InputXGradient):
    def __deepcopy__(self, memo):
        raise TypeError("no copy of this")


BAD = {
    "no model": (
        OptionError,
        r"^sanity_check: function has no model in its attributes 'model' and 'forward_func'\. Pass",
        lambda: sanity_check(lambda images, target: images, images(), TARGET),
    ),
    "no copy": (
        GuidanceError,
        r"^sanity_check: NoCopy cannot be copied with its model \(no copy of this\)\. Build it anew",
        lambda: sanity_check(NoCopy(SmallCnn()), images(), TARGET),
    ),
    "unknown stage": (
        LayerError,
        r"^sanity_check: unknown stage 'hed'\. Did you mean 'head'\? The names of",
        lambda: sanity_check(InputXGradient(SmallCnn()), images(), TARGET, stages=["hed"]),
    ),
    "twice": (
        OptionError,
        r"^sanity_check: stage 'body\.0' has no parameter that no stage before it has\. Leave it out",
        lambda: sanity_check(
            InputXGradient(SmallCnn()), images(), TARGET, stages=["body", "body.0"]
        ),
    ),
    "a name alone": (
        OptionError,
        r"^sanity_check: stages is 'head'\. Use \['head'\]\. A list of names is allowed\.",
        lambda: sanity_check(InputXGradient(SmallCnn()), images(), TARGET, stages="head"),
    ),
    "small images": (
        ShapeError,
        r"^sanity_check: images have shape \(4, 3, 8, 8\)\. Take some dozens, or resize them",
        lambda: sanity_check(InputXGradient(SmallCnn()), images(8), TARGET),
    ),
    "no images": (
        ShapeError,
        r"^sanity_check: images have shape \(0, 3, 16, 16\)\. Take some dozens",
        lambda: sanity_check(InputXGradient(SmallCnn()), images()[:0], TARGET[:0]),
    ),
    "too few targets": (
        ShapeError,
        r"^sanity_check: target is \(2,\) for 4 images\. Give one class an image",
        lambda: sanity_check(InputXGradient(SmallCnn()), images(), TARGET[:2]),
    ),
    "no seed": (
        OptionError,
        r"^sanity_check: seed is -1\. A whole number from 0 on is allowed\.",
        lambda: sanity_check(InputXGradient(SmallCnn()), images(), TARGET, seed=-1),
    ),
}


@pytest.mark.parametrize("row", BAD, ids=str)
def test_what_is_refused(row):
    kind, told, call = BAD[row]
    with pytest.raises(kind, match=told):
        call()


def test_a_model_made_with_the_same_seed_is_randomised_all_the_same():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    before = layer.weight.detach().clone()
    randomise({"": layer}, seed=0, stage=0)
    assert not torch.equal(layer.weight, before)


def test_the_images_of_the_caller_stay_without_a_gradient():
    given = images()
    sanity_check(Saliency(SmallCnn().eval()), given, TARGET, stages=["head"])
    assert not given.requires_grad
