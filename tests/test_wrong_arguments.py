"""Wrong arguments and faulty objects of the user's: one line that names the thing, the value and the remedy."""

import copy
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from supervised_twins import SMALL
from tiny_runs import tiny
from torch import nn
from torch.autograd.function import once_differentiable

import metarl
from metarl import AdaptedPolicy, MetaLearner, RecurrentPolicy, from_gymnasium, register_policy
from metarl.families.registry import registered
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import spaces_of
from metarl.supervised import FewShotLearner, Sinusoid

FAMILIES = sorted(name for name in registered() if "MetaWorld" not in name)


@pytest.mark.parametrize("kind", [AdaptedPolicy, RecurrentPolicy])
def test_a_learner_is_no_policy_and_none_no_parameters(kind):
    learner = tiny()
    said = rf"{kind.__name__} takes a network .*got MetaLearner.*; a learner's are learner\.policy and learner\.state"
    with pytest.raises(ValueError, match=said):
        kind(learner, None)
    for params in (None, {}, [1.0], {"w0": 1.0}):
        with pytest.raises(ValueError, match=rf"{kind.__name__} takes the parameters of its MLPPolicy as a dict of"):
            kind(learner.policy, params)
    assert AdaptedPolicy(learner.policy, learner.state.params).predict(np.zeros(2, np.float32))[0].shape == (2,)


@pytest.mark.parametrize("name", [*FAMILIES, "gym:Pendulum-v1"])
def test_the_number_of_tasks_is_a_whole_number(name):
    family = metarl.make(name) if name in FAMILIES else from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0)})
    for n, said in (("3", "a whole number, got '3'"), (2.5, "a whole number, got 2.5"), (True, "got True"),
                    (-1, "at least 0, got -1")):  # fmt: skip
        with pytest.raises(ValueError, match=f"n must be {said}|n must be a whole number, {said}"):
            family.sample(n, np.random.default_rng(0))
    for n in (3, np.int64(3), 3.0):
        assert {len(value) for value in family.sample(n, np.random.default_rng(0)).values()} == {3}


@pytest.mark.parametrize("make", [tiny, lambda: FewShotLearner(Sinusoid(), device="cpu", **SMALL)])
@pytest.mark.parametrize("callback", [lambda: None, lambda stats, more: None], ids=["none", "two"])
def test_a_callback_takes_one_argument(make, callback):
    learner = make()
    with pytest.raises(ValueError, match="callback is called with one argument, the statistics of an iteration, which"):
        learner.learn(1, callback=callback)
    assert learner.state.iteration == 0  # before anything was done
    for fine in (lambda stats: None, lambda *stats: None, lambda stats, more=1: None, print):
        make().learn(0, callback=fine)


def test_a_family_that_cannot_be_pickled_is_named():
    class Locked(Sinusoid):
        def __reduce__(self):
            raise TypeError("cannot pickle '_thread.lock' object")

    family = metarl.make("PointNavigation-v0", horizon=3)
    learner = tiny(family)
    assert pickle.loads(pickle.dumps(learner)).family.id == copy.deepcopy(learner).family.id == family.id
    learner.family.lock = threading.Lock()
    few = FewShotLearner(Sinusoid(), device="cpu", **SMALL)
    few.family = Locked()
    for one in (learner, few):
        said = re.escape(
            f"the learner's family {one.family.id!r} can be neither pickled nor copied: cannot pickle '_thr"
        )
        for action in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=said):
                action(one)


class Bag(nn.Module):
    """EmbeddingBag has no second derivative."""

    def __init__(self, inputs=2, outputs=2):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(3, 4), nn.Linear(4 + inputs, outputs)

    def forward(self, x):
        return self.out(torch.cat([self.bag(x.argmax(1)[:, None]), x], 1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_module_without_a_second_derivative_is_named():
    small = {"n_tasks": 2, "episodes": 2, "device": "cpu"}
    family = metarl.make("PointNavigation-v0", horizon=3)
    said = r"the module Bag has no second derivative, .*embedding_bag.*first_order=True with an outer step by Adam"
    for algorithm, settings in (("maml_trpo", {}), ("maml_vpg", {}), ("maml_trpo", {"first_order": True})):
        with pytest.raises(ValueError, match=said):
            MetaLearner(algorithm, family, policy=Bag(), **small, **settings).learn(1, eval_every=0)
    for algorithm in ("maml_vpg", "maml_ppo"):  # what the message says to do
        learner = MetaLearner(algorithm, family, policy=Bag(), first_order=True, **small)
        assert learner.learn(1, eval_every=0).state.iteration == 1
    with pytest.raises(ValueError, match="the module Bag has no second derivative"):
        FewShotLearner(Sinusoid(), network=Bag(1, 1), device="cpu", inner_steps=1, n_tasks=2).learn(1)


class Square(torch.autograd.Function):
    """x^2, whose author promises no more than the first derivative. `vmap` takes it, and drops the promise."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Twice(Square):
    """The same with a second derivative."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Squares(nn.Module):
    def __init__(self, function: Any = Square, inputs: int = 2, outputs: int = 2):
        super().__init__()
        self.function, self.into, self.out = function, nn.Linear(inputs, 4), nn.Linear(4, outputs)

    def forward(self, x):
        return self.out(self.function.apply(self.into(x)) if self.function else self.into(x) ** 2)


class Looped(Squares):
    """One that vmap refuses."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


@register_policy
class SquaresPolicy(MLPPolicy):
    """A policy of somebody's own with such a function in it."""

    def distribution(self, params, obs):
        return super().distribution({name: Square.apply(x) for name, x in params.items()}, obs)


def trained_with(algorithm: str, policy: Any, **settings: Any) -> torch.Tensor:
    family = metarl.make("PointNavigation-v0", horizon=3)
    learner = MetaLearner(algorithm, family, policy=policy, n_tasks=2, episodes=2, device="cpu", **settings)
    return torch.cat([x.flatten() for x in learner.learn(1, eval_every=0).state.params.values()])


SECOND_ORDER = ("maml_trpo", "maml_ppo", "maml_vpg", "promp", "meta_sgd", "e_maml", "fomaml")  # fomaml: TRPO's step


@pytest.mark.filterwarnings("ignore:torch.func.vmap refuses")
@pytest.mark.parametrize("algorithm", SECOND_ORDER)
@pytest.mark.parametrize("kind", [Squares, Looped])
def test_a_function_marked_as_once_differentiable_is_no_part_of_a_second_derivative(algorithm, kind):
    with pytest.raises(ValueError, match=rf"the module {kind.__name__} has no second derivative.*differentiate twice"):
        trained_with(algorithm, kind())


def test_what_is_marked_so_is_named_and_a_policy_or_network_with_it_too():
    with pytest.raises(ValueError, match=r"cannot differentiate twice Square, marked with @once_differentiable\)"):
        trained_with("maml_vpg", Squares())
    policy = SquaresPolicy(spaces_of(metarl.make("PointNavigation-v0")), hidden=(4,))
    for algorithm, settings in (("maml_vpg", {}), ("maml_trpo", {}), ("maml_trpo", {"first_order": True})):
        with pytest.raises(ValueError, match=r"the policy SquaresPolicy has no second derivative.*differentiate twice"):
            trained_with(algorithm, policy, **settings)
    trained_with("maml_vpg", policy, first_order=True)
    with pytest.raises(ValueError, match="the module Squares has no second derivative"):
        FewShotLearner(Sinusoid(), network=Squares(Square, 1, 1), device="cpu", inner_steps=1, n_tasks=2).learn(1)


@pytest.mark.parametrize(("algorithm", "settings"), [("reptile", {}), ("maml_vpg", {"first_order": True})])
def test_first_order_learners_take_it_and_learn_the_same(algorithm, settings):
    torch.manual_seed(0)
    module = Squares(None)
    marked = Squares(Square)
    marked.load_state_dict(module.state_dict())
    one, other = (trained_with(algorithm, network, **settings) for network in (module, marked))
    torch.testing.assert_close(one, other)


def test_the_control_without_the_mark_has_its_second_derivative():
    torch.manual_seed(0)
    module, twice = Squares(None), Squares(Twice)
    twice.load_state_dict(module.state_dict())
    one, other = (trained_with("maml_vpg", network) for network in (module, twice))
    torch.testing.assert_close(one, other)


def test_other_errors_of_a_module_stay_as_they_are():
    class Raises(Bag):
        def forward(self, x):
            if len(x) > 100:
                raise RuntimeError("too many")
            return super().forward(x)

    learner = MetaLearner("maml_vpg", "PointNavigation-v0", policy=Raises(), n_tasks=2, episodes=200, device="cpu")
    with pytest.raises(RuntimeError, match="too many"):
        learner.learn(1, eval_every=0)


@pytest.mark.parametrize("algorithm", ["maml_vpg", "rl2"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_actions_that_are_not_finite_are_not_returned(tmp_path, algorithm, deterministic):
    small = {"trial_episodes": 2, "minibatches": 1} if algorithm == "rl2" else {"episodes": 2}
    learner = MetaLearner(algorithm, metarl.make("PointNavigation-v0", horizon=3), n_tasks=2, device="cpu", **small)
    policy = learner.adapt({"goal": [0.1, 0.2]})
    huge = {name: torch.full_like(value, 3e38) for name, value in policy.params.items()}
    for value in huge.values():
        value[::2] *= -1  # so that sums overflow to both sides
    kind = type(policy)
    kind(policy.policy, huge, obs_stats=policy.obs_stats).save(tmp_path / "policy")
    loaded = kind.load(tmp_path / "policy")
    with pytest.raises(
        ValueError, match=r"the policy's (outputs|actions) are not finite \((nan|-?inf)\) for observations of up to 1"
    ):
        loaded.predict(np.full(2, 1e30, np.float32), deterministic=deterministic)
    assert np.isfinite(policy.predict(np.ones(2, np.float32), deterministic=deterministic)[0]).all()
