"""Explanation mode: nested, after errors, on parts of a network, in two processes."""

from __future__ import annotations

import copy
import pickle
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.bcos import BcosConv2d, BcosLinear, explanation_mode
from explainguide.bcos.modules import Gated
from explainguide.bcos.norms import BatchNormUncentered2d, GroupNormUncentered2d
from explainguide.dynamic import DynamicLinear, Mode, hold, is_bcos, wide
from explainguide.errors import OptionError


def network() -> nn.Sequential:
    return nn.Sequential(
        BcosConv2d(6, 4, 3, max_out=2),
        GroupNormUncentered2d(2, 4),
        Gated(nn.GELU()),
        BcosConv2d(4, 4, 3, b=1.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        BcosLinear(4, 3),
    )


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 6, 8, 8, generator=generator, dtype=torch.float64)


def states(model: nn.Module) -> list[bool]:
    return [m.mode.explaining for m in model.modules() if isinstance(m, DynamicLinear)]


def on(model: nn.Module) -> bool:
    found = set(states(model))
    assert len(found) == 1
    return found.pop()


def test_it_yields_the_model_and_is_on_within() -> None:
    model = network()
    with explanation_mode(model) as same:
        assert same is model
        assert on(model)
    assert not on(model)


def test_contexts_nest() -> None:
    model = network()
    with explanation_mode(model):
        with explanation_mode(model):
            assert on(model)
        assert on(model)
        with explanation_mode(model[0]):
            assert on(model)
        assert on(model)
    assert not on(model)


def test_a_part_of_a_network() -> None:
    model = network()
    with explanation_mode(model[0]):
        assert on(model[0]) and not on(model[3])
        with explanation_mode(model):
            assert on(model)
        assert on(model[0]) and not on(model[3])
    assert not on(model)


@pytest.mark.parametrize("outer", [False, True])
def test_an_error_leaves_what_was_found(outer: bool) -> None:
    model = network()
    with ExitStack() as stack:
        if outer:
            stack.enter_context(explanation_mode(model))
        for part in (model, model[0]):
            with pytest.raises(KeyError, match="inside"), explanation_mode(part):
                raise KeyError("inside")
            assert on(model) == outer
        with pytest.raises(OptionError), explanation_mode(model), explanation_mode(nn.ReLU()):
            pytest.fail("the inner context has nothing to switch")
        assert on(model) == outer
    assert not on(model)


def test_without_bcos_modules() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    text = "Sequential has no B-cos module.*bcosify.*'ixg'"
    with pytest.raises(OptionError, match=rf"^explanation_mode: {text}"), explanation_mode(plain):
        pytest.fail("it is not entered")
    assert not is_bcos(plain)
    assert is_bcos(network())
    assert is_bcos(nn.Sequential(plain, network()))


def test_outputs_are_identical_in_both_modes() -> None:
    model, x = network(), images().float()
    model.insert(1, BatchNormUncentered2d(4))
    for training in (False, True):
        model.train(training)
        expected = model(x)
        with explanation_mode(model):
            assert model(x).equal(expected)


def test_the_backward_pass_decides_and_not_the_forward_pass() -> None:
    model, x = network().double(), images().requires_grad_()
    before = model(x)
    with explanation_mode(model):
        during = model(x)
        maps = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (before, during)]
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (before, during)]
    assert maps[0].equal(maps[1])
    assert gradients[0].equal(gradients[1])
    assert not maps[0].allclose(gradients[0])
    torch.testing.assert_close((maps[0] * x).sum(), before.sum())


def test_a_part_that_is_explained_alone() -> None:
    """Only the factors of that part are constants."""
    model, x = nn.Sequential(BcosLinear(4, 4), BcosLinear(4, 3)).double(), torch.rand(2, 4).double()
    x.requires_grad_()
    hidden = model[0](x)
    y = model[1](hidden)
    with explanation_mode(model[1]):
        (found,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (above,) = torch.autograd.grad(y.sum(), hidden, retain_graph=True)
    (expected,) = torch.autograd.grad(hidden, x, above)
    torch.testing.assert_close(found, expected)


def test_the_mode_holds_in_every_thread() -> None:
    """CUDA's backward passes run in threads of their own; here one is made."""
    model, x = network().double(), images().requires_grad_()
    y = model(x)
    found: list[Tensor] = []

    def backward() -> None:
        found.extend(torch.autograd.grad(y.sum(), x, retain_graph=True))

    with explanation_mode(model):
        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
        (expected,) = torch.autograd.grad(y.sum(), x)
    assert found[0].equal(expected)


def test_a_copy_has_its_own_mode() -> None:
    model = network()
    other = copy.deepcopy(model)
    with explanation_mode(model):
        assert on(model) and not on(other)
    with explanation_mode(other):
        assert on(other) and not on(model)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_made_within_is_not_left_explaining(how: str) -> None:
    model = network()
    with explanation_mode(model):
        other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert not on(other)


def test_hold_is_the_identity_and_differentiable_in_the_ordinary_mode() -> None:
    mode = Mode()
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: hold(x * x, mode), x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: hold(x * x, mode), x)
    y = x * hold(x * x, mode)
    assert y.equal(x * (x * x))
    mode.explaining = True
    (weights,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    mode.explaining = False
    torch.testing.assert_close(weights, x**2)
    (second,) = torch.autograd.grad(weights.sum(), x)
    torch.testing.assert_close(second, 2 * x)
    with torch.inference_mode():
        assert hold(x.detach(), mode).equal(x)


def test_wide() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        assert wide(torch.zeros(1, dtype=dtype)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        assert wide(torch.zeros(1, dtype=dtype)).dtype == dtype


def step(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """A classification loss plus a loss on the maps, both means over the images."""
    x = x.requires_grad_()
    logits = model(x)
    score = logits.gather(1, labels[:, None]).sum()
    with explanation_mode(model):
        (weights,) = torch.autograd.grad(score, x, create_graph=True)
    contribution = (weights * x).sum(1)
    torch.testing.assert_close(contribution.sum((1, 2)), logits.gather(1, labels[:, None])[:, 0])
    outside = contribution.clamp_min(0)[:, :4].sum((1, 2)) / (1e-3 + contribution.abs().sum((1, 2)))
    return F.cross_entropy(logits, labels) + 3 * outside.mean()


def small() -> nn.Module:
    torch.manual_seed(4)
    return network().double()


LABELS = torch.tensor([0, 2, 1, 1])


def gradients_of(model: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor | None]:
    step(model, x, labels).backward()
    return [parameter.grad for parameter in model.parameters()]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    # Short, so that a process that died fails the test instead of hanging it.
    wait = timedelta(seconds=90)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        model = nn.parallel.DistributedDataParallel(small())
        share = slice(2 * rank, 2 * rank + 2)
        gradients = gradients_of(model, images()[share], LABELS[share])
        assert not on(model)
        torch.save(gradients, Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_a_data_parallel_process_group_of_one(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        found = gradients_of(nn.parallel.DistributedDataParallel(small()), images(), LABELS)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found, gradients_of(small(), images(), LABELS))


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    expected = gradients_of(small(), images(), LABELS)
    assert all(gradient is not None for gradient in expected)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
