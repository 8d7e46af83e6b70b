"""Modules of the user's own: attention is differentiated twice; what cannot be adapted is refused with the remedy."""

import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import point, tiny
from torch import Tensor, nn

from metarl import MetaLearner
from metarl.policies.stacked_module import StackedModule, plain_attention
from metarl.supervised import FewShotLearner, Sinusoid


class Attention(nn.Module):
    """Two tokens attend to each other, by torch's function or by the formula."""

    def __init__(self, fused: bool = True, inputs: int = 2, outputs: int = 2):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fused = fused
        self.first, self.last = nn.Linear(inputs, 24), nn.Linear(8, outputs)
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=generator) / 3

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x).unflatten(-1, (1, 2, 12)).chunk(3, -1)  # [N, one head, 2, 4]
        if self.fused:
            h = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            h = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.last(h.flatten(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 16), nn.Linear(16, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x).unflatten(-1, (2, 8))).flatten(1))


def switches() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled())  # fmt: skip


@pytest.mark.parametrize("algorithm", ["maml_trpo", "maml_ppo", "fomaml"])
def test_attention_learns_as_its_formula_does(algorithm):
    config = {"n_tasks": 2, "episodes": 4, "device": "cpu"}
    found: list[dict[str, float]] = []
    for fused in (True, False):
        learner = MetaLearner(algorithm, point(), policy=Attention(fused), **config)
        assert learner.policy.stacked.attention is fused
        assert learner.policy.batched
        learner.learn(1, eval_every=0, callback=found.append)
    assert found[0]["outer/gradient_norm"] == pytest.approx(found[1]["outer/gradient_norm"], rel=1e-3)
    assert found[0]["return/step_1"] == pytest.approx(found[1]["return/step_1"], rel=1e-4)
    assert found[0]["outer/kl"] > 0


def test_the_fused_kernel_has_no_second_derivative():
    # The control: torch's own choice fails. Where this passes one day, nothing of ours is needed any more.
    module, x = Attention().double(), torch.randn(3, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(module(x).square().sum(), module.first.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(gradient.square().sum(), module.first.weight)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_transformer_trains_adapts_and_predicts_without_a_warning(mode):
    module = Transformer().train(mode == "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = tiny(policy=module).learn(1, eval_every=0)
        action, _ = learner.adapt({"goal": [0.3, -0.2]}).predict(np.zeros(2, np.float32))
    assert np.isfinite(action).all()


def test_few_shot_learners_may_attend_too():
    found = [
        FewShotLearner(Sinusoid(), network=Attention(fused, 1, 1), n_tasks=2, device="cpu").learn(2).state.params
        for fused in (True, False)
    ]
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-5) for n in found[0])


def test_torchs_switches_are_put_back():
    before = switches()
    tiny(policy=Attention()).learn(1, eval_every=0)
    assert switches() == before
    with plain_attention():
        inside = switches()
        with plain_attention():
            assert switches() == inside
        assert switches() == inside
    assert inside == (False, False, True, False)
    assert switches() == before


def test_a_thread_that_is_done_leaves_the_others_switches_alone():
    before, entered, leave = switches(), threading.Event(), threading.Event()

    def other() -> None:
        with plain_attention():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    with plain_attention():
        leave.set()
        thread.join()
        assert switches() == (False, False, True, False)
    assert switches() == before


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).relu()
        h += 1
        return h


class Detached(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).detach()


REFUSED: dict[str, tuple[Any, str]] = {
    "in place": (InPlace, "cannot be differentiated: write it without operations in place"),
    "detached": (Detached, "leave detach() and no_grad() out of it"),
    "no parameters": (nn.Identity, "Identity has no parameters"),
    "lazy": (lambda: nn.LazyLinear(2), "call it once on a batch"),
    "other inputs": (lambda: nn.Linear(3, 2), "the module fails for float32 inputs [3, 2]"),
    "indices": (lambda: nn.Embedding(3, 2), "the module fails for float32 inputs [3, 2]"),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), "the module fails for float32 inputs [3, 2]"),
    "other outputs": (lambda: nn.Linear(2, 3), "for N = 3 it gave (3, 3)"),
}


@pytest.mark.parametrize(("make", "part"), REFUSED.values(), ids=REFUSED.keys())
def test_a_module_that_cannot_be_adapted_is_refused_before_anything_runs(make, part):
    with pytest.raises(ValueError) as caught:
        tiny(policy=make())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dropout_in_training_mode_is_warned_of():
    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2))

    with pytest.warns(UserWarning, match=r"dropout in training mode.*module\.eval\(\)"):
        StackedModule(module(), (2,), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StackedModule(module().eval(), (2,), 2)
