"""Small task families with known answers, and the few lines that many tests need to get data out of them."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from metarl_envs.tabular_mdp import TabularMDP
from torch import Tensor

from metarl.formulas.distributions import log_prob
from metarl.inner import loop
from metarl.inner.settings import GradientSettings
from metarl.inner.state import State as LearnerState
from metarl.inner.state import init
from metarl.outer.trust_region import Objective, autograd_jacobian, fisher_vector_product, flatten, unflatten
from metarl.params import Params, expand
from metarl.policies.base import Policy
from metarl.policies.gru import GRUPolicy
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import Task, TaskFamily, Tasks, split_rng
from metarl.vector.tensor import State, TensorFamily

# ---------------------------------------------------------------------------------------------------------------------
# Families


class PointGoal(TensorFamily):
    """Walk 20 steps to a hidden goal, uniform in a square of side one around the start; reward minus the distance.

    A policy that cannot adapt does best at the centre of the square, and earns -20 E|goal| = -7.652 there:
    E|goal| = (sqrt(2) + log(1 + sqrt(2))) / 6 for the unit square.
    """

    id = "PointGoalProbe-v0"
    horizon = 20
    blind = -20 * float(np.sqrt(2) + np.log(1 + np.sqrt(2))) / 6

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-0.1, 0.1, (2,), np.float32)
        self.task_space = gym.spaces.Dict({"goal": Box(-0.5, 0.5, (2,), np.float32)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"goal": split_rng(rng, split).uniform(-0.5, 0.5, (n, 2)).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"position": draws.new_zeros(*draws.shape[:-1], 2)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["position"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        position = state["position"] + action.clamp(-0.1, 0.1)
        return {"position": position}, -(position - task["goal"]).norm(dim=-1), None


class Drift(TensorFamily):
    """Everything that a rollout has to get right at once: random starts, noise in every step, and episodes that end
    early by chance and at a time that the task names (`steps`)."""

    id = "DriftProbe-v0"
    horizon = 8
    reset_draws = 2
    step_draws = 3

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(np.array([-0.5, -1.0], np.float32), np.array([0.5, 3.0], np.float32))
        self.task_space = gym.spaces.Dict(
            {"steps": Discrete(9), "push": Box(-1, 1, (2,), np.float32)},
        )

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        rng = split_rng(rng, split)
        return {"steps": 4 + np.arange(n) % 5, "push": rng.uniform(-1, 1, (n, 2)).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"x": draws - 0.5, "t": torch.zeros(draws.shape[:-1], dtype=torch.int64, device=draws.device)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["x"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        x = state["x"] + 0.3 * action + 0.1 * task["push"] + 0.2 * (draws[..., :2] - 0.5)
        t = state["t"] + 1
        return {"x": x, "t": t}, -(x**2).sum(-1), (t >= task["steps"]) | (draws[..., 2] < 0.05)


class TwoArms(TensorFamily):
    """One pull of two arms, of which one pays 1 and the other nothing; half of the tasks have the first as the good
    one. No policy that cannot adapt earns more than 0.5 on average, one that can earns 1."""

    id = "TwoArmsProbe-v0"
    horizon = 1

    def __init__(self) -> None:
        self.observation_space = Box(0, 1, (1,), np.float32)
        self.action_space = Discrete(2)
        self.task_space = gym.spaces.Dict({"good": Discrete(2)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"good": np.arange(n) % 2}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"one": draws.new_ones(*draws.shape[:-1], 1)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["one"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        return state, (action == task["good"]).to(draws.dtype), torch.ones_like(action, dtype=torch.bool)


class Locks(TensorFamily):
    """Two dials to be set as the task's code says; the reward is the share of dials that are right, and an episode
    ends when both are. The observation shows how they were set before. A policy that cannot adapt gets each of them
    right as often as a guess does."""

    id = "LocksProbe-v0"
    horizon = 3

    def __init__(self, dials: MultiDiscrete | MultiBinary | None = None) -> None:
        space = MultiDiscrete([3, 2], start=[1, -1]) if dials is None else dials
        self.observation_space = self.action_space = space
        self.sizes = np.asarray(getattr(space, "nvec", np.full(space.shape, 2)))
        self.start = np.asarray(getattr(space, "start", np.zeros(space.shape, np.int64)))
        self.task_space = gym.spaces.Dict({"code": MultiDiscrete(self.sizes, start=self.start)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        places = np.unravel_index(np.arange(n) % self.sizes.prod(), tuple(self.sizes))
        return {"code": np.stack(places, -1) + self.start}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"dials": torch.as_tensor(self.start, device=draws.device).expand(*draws.shape[:-1], -1)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["dials"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        right = action == task["code"]
        return {"dials": action}, right.to(draws.dtype).mean(-1), right.all(-1)


class Signs(TwoArms):
    """One step; the reward is the action times the task's sign. A step up the gradient earns more in every task."""

    id = "SignsProbe-v0"

    def __init__(self) -> None:
        self.observation_space = Box(0, 1, (1,), np.float32)
        self.action_space = Box(-10, 10, (1,), np.float32)
        self.task_space = gym.spaces.Dict({"sign": Box(-1, 1, (), np.float32)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"sign": (1 - 2 * (np.arange(n) % 2)).astype(np.float32)}

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        reward = task["sign"] * action[..., 0]
        return state, reward, torch.ones_like(reward, dtype=torch.bool)


class QuietMDP(TabularMDP):
    """Tabular MDPs whose rewards are their means, without noise: all their trajectories can be listed."""

    id = "QuietMDPProbe-v0"

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        median = torch.full_like(draws[..., 1:], 0.5)
        return super().step(state, action, task, torch.cat([draws[..., :1], median], -1))


class Stops:
    """Plain Gymnasium environments. Reward 1 in every step; an episode ends after as many steps as its task names."""

    id = "StopsProbe-v0"
    horizon = 6

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-0.5, 0.5, (2,), np.float32)
        self.task_space = gym.spaces.Dict({"steps": Discrete(7)})
        self.received: list[np.ndarray] = []

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"steps": np.arange(1, n + 1)}

    def reward(self, task: Task, t: int) -> float:
        return 1.0

    def observation(self, task: Task, t: int) -> float:
        return t

    def info(self, task: Task, t: int, action: np.ndarray) -> dict[str, Any]:
        return {}

    def make(self, task: Task) -> gym.Env:
        return _StopsEnv(self, task)


class _StopsEnv(gym.Env):
    def __init__(self, family: Stops, task: Task):
        self.family, self.task = family, task
        self.observation_space, self.action_space = family.observation_space, family.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.family.received.append(np.array(action))
        reward = self.family.reward(self.task, self.t)
        obs = np.full(2, self.family.observation(self.task, self.t), np.float32)
        info = self.family.info(self.task, self.t, action)
        return obs, reward, self.t >= int(self.task["steps"]), False, info


class Wins(Stops):
    """Success in exactly one step: the task's last but one, and only after an action with a positive first number."""

    id = "WinsProbe-v0"

    def info(self, task: Task, t: int, action: np.ndarray) -> dict[str, Any]:
        return {"success": float(t == int(task["steps"]) - 1 and action[0] > 0)}


# ---------------------------------------------------------------------------------------------------------------------
# Data


def ends(obs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The flags and last observations of a rollout by hand: every episode is cut off in its last step."""
    last = (mask > 0) & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    return {"terminated": torch.zeros_like(last), "truncated": last, "last_obs": torch.zeros_like(obs[:, 0])}


def setup(
    family: TaskFamily, config: GradientSettings, seed: int = 0, device: str = "cpu"
) -> tuple[Sampler, Policy, LearnerState]:
    """What an algorithm needs to start."""
    policy = config.policy(spaces_of(family))
    return Sampler(family, device), policy, init(config, policy, family, seed, device)


def random_params(policy: Policy, n_tasks: int, seed: int = 0) -> Params:
    """Parameters that differ from task to task, biases and standard deviations included."""
    g = torch.Generator().manual_seed(seed)
    stacked = expand(policy.init(g), n_tasks)
    return {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in stacked.items()}


def stages(
    config: GradientSettings, sampler: Sampler, policy: Policy, params: Params, seed: int = 0
) -> list[loop.Batch]:
    """The data of one meta-iteration: before and after every inner step."""
    tasks, data = sampler.tasks(config.n_tasks, seed, 0), []
    stacked = expand(params, config.n_tasks)
    for stage in range(config.inner_steps + 1):
        rollout = sampler.collect(tasks, config.episodes, policy, stacked, seed, 0, stage)
        data.append(loop.Batch.of(config, rollout))
        if stage < config.inner_steps:
            stacked = loop.detached_step(config, policy, stacked, loop.InnerStep(data[-1], config.inner_lr))[0]
    return data


def double(data: list[loop.Batch]) -> list[loop.Batch]:
    """The same data in float64 (integers stay), for finite differences."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor | tuple):
            return value
        if isinstance(value, tuple):
            return type(value)(*(convert(x) for x in value))
        return value.double() if value.is_floating_point() else value

    out = []
    for batch in data:
        rollout = Rollout(**{f.name: convert(getattr(batch.rollout, f.name)) for f in fields(Rollout)})
        rollout = replace(rollout, log_prob=log_prob(rollout.dist, rollout.act))
        out.append(loop.Batch(rollout, batch.advantage.double(), batch.baseline.double(), batch.scale.double()))
    return out


def finite_differences(f: Callable[[Params], Tensor], params: Params, h: float = 1e-5) -> Tensor:
    """The gradient of f at `params`, or the gradients of a tensor of numbers [n, ...]."""
    at = flatten(params)
    steps = h * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(f(unflatten(at + e, params)) - f(unflatten(at - e, params))) / (2 * h) for e in steps])


def surrogate_loss(policy: Policy, stacked: Params, batch: loop.Batch) -> Tensor:
    """Written down once more: the mean over tasks of the mean over their steps of -ratio * advantage."""
    r = batch.rollout
    ratio = (log_prob(policy.distribution(stacked, r.obs), r.act) - r.log_prob).exp()
    per_task = [-(ratio * batch.advantage)[k][r.mask[k].bool()].mean() for k in range(len(ratio))]
    return torch.stack(per_task).mean()


def problem(
    family: TaskFamily, config: GradientSettings, seed: int = 0, spread: float = 0.3
) -> tuple[Policy, LearnerState, list[loop.Batch]]:
    """A policy, a state and the data of one iteration from it, all in float64. What is learned about the inner loop
    is moved away from where it starts, by noise of the standard deviation `spread`."""
    sampler, policy, state = setup(family, config)
    g = torch.Generator().manual_seed(4)
    learned = {name: value + spread * torch.randn(value.shape, generator=g) for name, value in state.learned.items()}
    state = replace(state, learned=learned)
    data = double(loop.experience(Setup(config, sampler, policy, seed), state).data)
    params, learned = ({n: v.double() for n, v in x.items()} for x in (state.params, state.learned))
    return policy, replace(state, params=params, learned=learned), data


def linearise(objective: Objective, params: Params, v: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The gradient of an objective at `params`, and its Fisher matrix times `v`."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    here = objective(leaves, True)
    jacobian = here.jacobian or autograd_jacobian(list(here.dist), list(leaves.values()))
    gradient = jacobian.vjp(torch.autograd.grad(here.loss, list(here.dist), retain_graph=True))
    return gradient, None if v is None else fisher_vector_product(here, list(leaves.values()))(v)


def gru_params(policy: GRUPolicy, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Every parameter away from zero."""
    g = torch.Generator().manual_seed(seed)
    return {name: (x + 0.3 * torch.randn(x.shape, generator=g)).to(dtype) for name, x in policy.init(g).items()}
