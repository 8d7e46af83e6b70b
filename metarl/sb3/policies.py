"""Policies to and from stable-baselines3, with identical action distributions.

metarl's policies act in policy units (1 is half the range of a bounded action), stable-baselines3's in the
environment's units; both clip. A Gaussian's mean and standard deviation are therefore scaled, and the last layer
absorbs the scale:
    mean_env = centre + scale * mean      log_std_env = log_std + log(scale)
Choices have the same logits in both, except bits, which have two logits each here and one there, the difference.
"""

import copy
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from stable_baselines3 import A2C, DDPG, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage, is_vecenv_wrapped
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.arguments import yes_or_no
from metarl.learner import MetaLearner
from metarl.params import Params, expand
from metarl.policies import normalize
from metarl.policies.base import Policy, floored_log_std
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Spaces, has_range, lowest, spaces_of
from metarl.sb3.saved_models import load_model, read_vec_normalize
from metarl.tasks import TaskFamily, did_you_mean
from metarl.torch_defaults import torch_defaults

ON_POLICY: dict[str, type[OnPolicyAlgorithm]] = {"ppo": PPO, "a2c": A2C}
READABLE: dict[str, type[BaseAlgorithm]] = {**ON_POLICY, "td3": TD3, "ddpg": DDPG}
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
MIN_STD = 1e-3
_OURS = ("activation_fn", "features_extractor_class", "features_extractor_kwargs", "share_features_extractor",
         "normalize_images", "use_sde", "squash_output", "log_std_init")  # fmt: skip


def _algorithm(name: str | type[Any], known: dict[str, type[Any]]) -> type[Any]:
    if isinstance(name, type):
        return name
    if name.lower() not in known:
        raise ValueError(f"no stable-baselines3 algorithm {name!r} can be used here{did_you_mean(name, known)}")
    return known[name.lower()]


# ---------------------------------------------------------------------------------------------------------------------
# To stable-baselines3


@torch_defaults
def to_sb3(
    policy: AdaptedPolicy | MetaLearner,
    algorithm: str | type[OnPolicyAlgorithm] = "ppo",
    env: Any = None,
    **kwargs: Any,
) -> Any:
    """A stable-baselines3 model whose action distributions are those of `policy`.

    An MLP policy becomes an ordinary `MlpPolicy`: the saved model can be loaded where this package is not installed.
    Any other policy, and one that normalises observations, becomes the model's features extractor, and its observation
    statistics are not updated. The value network is newly initialised. The standard deviation's lower bound is applied
    once; training in stable-baselines3 may go below it.

    Args:
        policy: an adapted policy, or a learner, which stands for its meta-policy before any adaptation.
        algorithm: `"ppo"`, `"a2c"` or a class of that kind.
        env: the environment for further training. Without it the model can predict, save and load; `set_env` accepts
            one environment, `load(path, env=...)` any number.
        kwargs: the algorithm's own settings. `policy_kwargs=dict(net_arch=dict(vf=[...]))` shapes the value network,
            by default like the policy's.

    Raises:
        ValueError: action bounds that stable-baselines3 does not support, an environment with other spaces or with
            normalised observations, settings that the policy determines, or a recurrent policy.
    """
    kind = _algorithm(algorithm, ON_POLICY)
    env = gym.make(env) if isinstance(env, str) else env
    if not issubclass(kind, OnPolicyAlgorithm):
        raise ValueError(f"algorithm must be PPO, A2C or a class of that kind, got {kind.__name__}")
    data: Any = policy.state if isinstance(policy, MetaLearner) else policy
    own: Any = policy.policy
    if own.memory:
        raise ValueError(
            "a recurrent policy cannot be converted: stable-baselines3 has none. Use its own predict and observe, or "
            "another algorithm"
        )
    params = {name: value.detach().cpu() for name, value in data.params.items()}
    stats = {name: value.detach().cpu().clone() for name, value in data.obs_stats.items()}
    spaces = _their_spaces(own.spaces, env)
    policy_kwargs = dict(kwargs.pop("policy_kwargs", None) or {})
    for name in [name for name in _OURS if name in policy_kwargs or name in kwargs]:
        raise ValueError(f"{name} follows from the policy that is converted: leave it out")
    policy_kwargs |= _architecture(own, policy_kwargs.get("net_arch"), stats)
    model = kind("MlpPolicy", env, policy_kwargs=policy_kwargs, _init_setup_model=False, **kwargs)
    if env is None:
        model.observation_space, model.action_space, model.n_envs = spaces.observation, spaces.action, 1
    model._setup_model()
    _fill(model.policy, own, params)
    return model


def _their_spaces(spaces: Spaces, env: Any) -> Spaces:
    """The spaces of the model, with choices counted from zero and the channels of an image in front."""
    for what, space in (("observation", spaces.observation), ("action", spaces.action)):
        bits = isinstance(space, MultiBinary) and what == "action"
        if (bits or isinstance(space, MultiDiscrete)) and len(space.shape or ()) != 1:
            raise ValueError(f"stable-baselines3 takes choices of one axis only, this policy's {what} space is {space}")
        if not isinstance(space, Box) and lowest(space).any() and env is None:
            raise ValueError(
                f"stable-baselines3 counts choices from 0, this policy's {what} space is {space}: pass an environment "
                "that does too as env=, for example as_vec_env(family)"
            )
    if isinstance(spaces.action, Box) and not (np.isfinite(spaces.action.low) & np.isfinite(spaces.action.high)).all():
        raise ValueError(f"stable-baselines3 needs actions with finite bounds, this policy's are {spaces.action}")
    theirs = Spaces(_theirs(spaces.observation), _theirs(spaces.action))
    if env is not None:
        normalised = is_vecenv_wrapped(env, VecNormalize) if hasattr(env, "num_envs") else False
        if normalised and _vec_normalize(env).norm_obs:
            raise ValueError("the policy takes observations as they are: wrap env in VecNormalize(norm_obs=False)")
        for what, mine, found in (("observation", theirs.observation, _theirs(env.observation_space)),
                                  ("action", theirs.action, env.action_space)):  # fmt: skip
            if mine.shape != found.shape or not _same(mine, found, bounds=what == "action"):
                raise ValueError(f"the policy was made for the {what} space {mine}, env has {found}")
    return theirs


def _theirs(space: Any) -> Any:
    if isinstance(space, Discrete):
        return Discrete(int(space.n))
    if isinstance(space, MultiDiscrete):
        return MultiDiscrete(space.nvec, space.dtype)
    if is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


def _same(a: gym.Space, b: gym.Space, bounds: bool) -> bool:
    if not (isinstance(a, Box) and isinstance(b, Box)):
        return a == b
    return not bounds or (np.allclose(a.low, b.low) and np.allclose(a.high, b.high))


def _vec_normalize(env: Any) -> Any:
    while not isinstance(env, VecNormalize):
        env = env.venv
    return env


def _architecture(policy: Any, net_arch: Any, stats: ObsStats) -> dict[str, Any]:
    """The policy as `policy_kwargs`."""
    if net_arch is not None and (not isinstance(net_arch, dict) or "pi" in net_arch):
        raise ValueError(f"net_arch follows from the policy, except for dict(vf=[...]); got {net_arch}")
    if policy.kind == MLPPolicy.__name__ and not is_image_space(policy.spaces.observation) and not stats:
        hidden = list(policy.hidden)
        return {
            "activation_fn": ACTIVATIONS[policy.activation],
            "net_arch": {"pi": hidden, "vf": hidden} | (net_arch or {}),
        }
    return {
        "net_arch": {"pi": [], "vf": [64, 64]} | (net_arch or {}),
        "features_extractor_class": PolicyExtractor,
        "features_extractor_kwargs": {"policy": policy, "obs_stats": stats},
        "share_features_extractor": False,
        "normalize_images": False,
    }


class PolicyExtractor(BaseFeaturesExtractor):
    """A metarl policy as a features extractor, whose features are the action means in policy units, or logits.

    The observation statistics are buffers: they are saved with the model, and training does not change them.
    """

    def __init__(self, observation_space: gym.Space, policy: Policy, obs_stats: ObsStats):
        super().__init__(observation_space, policy.spaces.act_dim)
        self.policy = policy
        shape = policy.spaces.observation.shape
        self.transposed = observation_space.shape != shape
        first = policy.init(torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
        self.names = [name for name in first if name != "log_std"]
        self.weights = nn.ParameterList([nn.Parameter(first[name]) for name in self.names])
        self.stats = list(obs_stats)
        for name, value in obs_stats.items():
            self.register_buffer(f"obs_{name}", value.clone())
        self.rest = {"log_std": torch.zeros_like(first["log_std"])} if "log_std" in first else {}

    def forward(self, observations: Tensor) -> Tensor:
        """Observations as stable-baselines3 preprocesses them [N, ...] -> [N, A]."""
        x = observations.movedim(-3, -1) if self.transposed else observations
        spaces = self.policy.spaces
        x = spaces.encode(x, x.device) if isinstance(spaces.observation, Box) else x.flatten(1)
        x = normalize.scaler({name: getattr(self, f"obs_{name}") for name in self.stats}, x.device)(x)
        params = dict(zip(self.names, self.weights, strict=True)) | {k: v.to(x.device) for k, v in self.rest.items()}
        return self.policy.distribution(expand(params, 1), x[None])[0][0]


@torch.no_grad()
def _fill(theirs: Any, policy: Policy, params: Params) -> None:
    """Copy `params` into a stable-baselines3 policy of the right architecture."""
    A = policy.spaces.act_dim
    centre, scale = _scale(policy.spaces)
    head = _choose_bits(A) if isinstance(policy.spaces.action, MultiBinary) else scale.diag()
    if isinstance(extractor := theirs.pi_features_extractor, PolicyExtractor):
        for name, weight in zip(extractor.names, extractor.weights, strict=True):
            weight.copy_(params[name])
        weight, bias = torch.eye(A), torch.zeros(A)
    else:
        linear = [layer for layer in theirs.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
        for i, layer in enumerate(linear):
            layer.weight.copy_(params[f"w{i}"].T)
            layer.bias.copy_(params[f"b{i}"])
        weight, bias = params[f"w{len(linear)}"].T, params[f"b{len(linear)}"]
    theirs.action_net.weight.copy_(head @ weight)
    theirs.action_net.bias.copy_(head @ bias + centre)
    if not policy.spaces.discrete:
        log_std = floored_log_std(params, policy.min_std)  # type: ignore[attr-defined]  # all Gaussian ones have it
        assert log_std is not None
        theirs.log_std.copy_(log_std + scale.log())


def _scale(spaces: Spaces) -> tuple[Tensor, Tensor]:
    """centre and scale, one for each output of their last layer, from policy units to the environment's; 0 and 1 for
    logits."""
    if spaces.discrete:
        n = int(np.prod(spaces.action.shape)) if isinstance(spaces.action, MultiBinary) else spaces.act_dim
        return torch.zeros(n), torch.ones(n)
    return spaces._bounds()[:2]


def _choose_bits(A: int) -> Tensor:
    """[A / 2, A]: from our two logits of every bit to their one, the second minus the first."""
    return torch.kron(torch.eye(A // 2), torch.tensor([[-1.0, 1.0]]))


def _ours_from(spaces: Spaces, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Their last layer, weight [out, in] and bias [out], in policy units: [A, in] and [A]."""
    centre, scale = _scale(spaces)
    weight, bias = weight.detach().cpu().float() / scale[:, None], (bias.detach().cpu().float() - centre) / scale
    if isinstance(spaces.action, MultiBinary):  # logits 0 and theirs
        weight, bias = (torch.stack([0 * x, x], 1).flatten(0, 1) for x in (weight, bias))
    return weight, bias


# ---------------------------------------------------------------------------------------------------------------------
# From stable-baselines3


@torch_defaults
def from_sb3(
    model: Any,
    *,
    env: TaskFamily | gym.Env | None = None,
    algorithm: str | type[BaseAlgorithm] = "ppo",
    std: float | None = None,
    vec_normalize: VecNormalize | Path | str | None = None,
    trust: bool = False,
) -> AdaptedPolicy:
    """The policy of a stable-baselines3 model, with the same action distributions.

    `MetaLearner(algorithm, family, policy=from_sb3(model))` starts from it, to meta-train or to adapt. A plain
    multi-layer perceptron with tanh, ReLU or ELU becomes an `MLPPolicy`; any other network (a CNN, a features
    extractor of your own, the tanh output of TD3 and DDPG) is used unchanged, as a `ModulePolicy`.

    Args:
        model: a PPO, A2C (or sb3-contrib TRPO), TD3 or DDPG model, its policy, or the path of a saved one. Such
            files are pickles; one that needs anything but stable-baselines3's own classes and arrays is refused.
        env: the family or environment that the policy is for, where its spaces are not the model's: images with the
            channels last, choices that are not counted from 0.
        algorithm: of the model at a path: `"ppo"`, `"a2c"`, `"td3"`, `"ddpg"` or a class.
        std: standard deviation for every action, in policy units, instead of the model's (a converged one explores
            little). TD3 and DDPG have none of their own and need it.
        vec_normalize: the wrapper that normalised the model's observations, or the path where its `save` wrote it
            (checked like a model's file), if the model was loaded without its environment. It is taken into the first
            layer; only its clipping (of observations beyond `clip_obs` standard deviations) is not.
        trust: load files that need other classes, or functions, too, which runs code from them.

    Raises:
        ValueError: a model that cannot be expressed, with the reason, or a file that is not trusted.
    """
    trust = yes_or_no("trust", trust)
    if isinstance(model, str | Path):
        model = load_model(_algorithm(algorithm, READABLE), Path(model), trust)
    vec_normalize = _normalisation(vec_normalize, trust)
    if isinstance(model, BaseAlgorithm):
        vec_normalize = vec_normalize or model.get_vec_normalize_env()
    theirs = model.policy if isinstance(model, BaseAlgorithm) else model
    _check_expressible(theirs)
    spaces = _our_spaces(theirs, env)
    net: Any = theirs
    squashed = isinstance(theirs, TD3Policy)
    if squashed and std is None:
        raise ValueError(
            "TD3 and DDPG have a deterministic policy: pass the standard deviation to explore with as std="
        )
    if squashed and isinstance(spaces.action, Box) and not has_range(spaces.action).all():
        raise ValueError(f"TD3 and DDPG scale their actions to the bounds, and {spaces.action} has bounds of 1e18 or "
                         "more, which are none here: train it with bounds that the actions need")  # fmt: skip
    actor = _TD3Actor(theirs, spaces) if squashed else _Actor(theirs, spaces)
    normalise = vec_normalize is not None and vec_normalize.norm_obs
    params = None if squashed else _mlp_params(theirs, spaces)
    if normalise and params is None:
        raise ValueError("observations normalised by VecNormalize can only be taken into a plain MLP policy, "
                         f"not into {type(theirs).__name__}")  # fmt: skip
    log_std = None if spaces.discrete else _log_std(theirs, spaces, std)
    floor = MIN_STD if log_std is None else min(MIN_STD, 0.1 * float(log_std.exp().min()))
    if params is None:
        module_policy = ModulePolicy(spaces, actor, min_std=floor)
        params = {n: v for n, v in module_policy.init(torch.Generator()).items() if n != "log_std"}
        return AdaptedPolicy(module_policy, params if log_std is None else params | {"log_std": log_std})
    if normalise:
        assert vec_normalize is not None
        params = _normalised(params, vec_normalize)
    hidden = tuple(params[f"b{i}"].shape[0] for i in range(len(params) // 2 - 1))
    policy = MLPPolicy(spaces, hidden, _activation(net.mlp_extractor.policy_net) or "tanh", min_std=floor)
    return AdaptedPolicy(policy, params if log_std is None else params | {"log_std": log_std})


def _normalisation(given: Any, trust: bool) -> VecNormalize | None:
    """The wrapper `given`, read from its file if it is a path."""
    found = read_vec_normalize(Path(given), trust) if isinstance(given, str | Path) else given
    if found is not None and not isinstance(found, VecNormalize):
        raise ValueError(f"vec_normalize must be a VecNormalize or the path where its save wrote it, got {found!r}")
    return found


def _check_expressible(theirs: Any) -> None:
    if not isinstance(theirs, BasePolicy):
        raise ValueError(f"expected a stable-baselines3 model, its policy or a path, got {type(theirs).__name__}")
    reason = None
    if not isinstance(theirs, ActorCriticPolicy | TD3Policy):
        reason = "only PPO, A2C, TRPO, TD3 and DDPG have a policy whose distribution this package has too"
    elif hasattr(theirs, "lstm_actor"):
        reason = "recurrent policies are not supported"
    elif getattr(theirs, "use_sde", False):
        reason = "state-dependent exploration (use_sde) and squashed outputs are not supported"
    if reason is not None:
        raise ValueError(f"a {type(theirs).__name__} cannot be converted: {reason}")


def _our_spaces(theirs: BasePolicy, env: Any) -> Spaces:
    """The spaces of `env`, or the model's own."""
    found = spaces_of(theirs)
    if isinstance(theirs, ActorCriticPolicy) and theirs.action_net.out_features != len(_scale(found)[0]):
        raise ValueError(f"a policy with the action space {found.action} cannot be converted")
    if env is None:
        return found
    spaces = spaces_of(env)
    for what, mine, its in (("observation", spaces.observation, found.observation),
                            ("action", spaces.action, found.action)):  # fmt: skip
        if not any(s.shape == its.shape and _same(s, its, bounds=what == "action") for s in (mine, _theirs(mine))):
            raise ValueError(f"the model was made for the {what} space {its}, env has {mine}")
    return spaces


def _log_std(theirs: Any, spaces: Spaces, std: float | None) -> Tensor:
    if std is None:
        return theirs.log_std.detach().cpu().float() - _scale(spaces)[1].log()
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    return torch.full((spaces.act_dim,), math.log(std))


def _mlp_params(theirs: Any, spaces: Spaces) -> Params | None:
    """The parameters of a plain MLP in policy units; None if the policy is anything else."""
    plain = type(theirs.pi_features_extractor) is FlattenExtractor and not is_image_space(spaces.observation)
    layers = list(theirs.mlp_extractor.policy_net)
    linear, last = layers[::2], theirs.action_net
    if not (plain and type(last) is nn.Linear and all(type(x) is nn.Linear and x.bias is not None for x in linear)):
        return None
    if layers and _activation(theirs.mlp_extractor.policy_net) is None:
        return None
    params: Params = {}
    for i, layer in enumerate(linear):
        params |= {
            f"w{i}": layer.weight.detach().cpu().float().T.contiguous(),
            f"b{i}": layer.bias.detach().cpu().float().clone(),
        }
    weight, bias = _ours_from(spaces, last.weight, last.bias)
    return params | {f"w{len(linear)}": weight.T.contiguous(), f"b{len(linear)}": bias}


def _activation(network: nn.Sequential) -> str | None:
    """The one activation after every layer; None if there is none, or not one of ours."""
    found = list(network)[1::2]
    if len(network) % 2 or len({type(x) for x in found}) != 1 or any(getattr(x, "alpha", 1.0) != 1.0 for x in found):
        return None
    return next((name for name, kind in ACTIVATIONS.items() if type(found[0]) is kind), None)


def _normalised(params: Params, wrapper: VecNormalize) -> Params:
    """The same network for raw observations: (x - mean) / sqrt(variance + epsilon) moves into the first layer."""
    if isinstance(wrapper.obs_rms, dict):
        raise ValueError("VecNormalize of Dict observations is not supported")
    mean, std = wrapper.obs_rms.mean.reshape(-1), np.sqrt(wrapper.obs_rms.var.reshape(-1) + wrapper.epsilon)
    w, b = params["w0"].double(), params["b0"].double()
    w = w / torch.from_numpy(std)[:, None]
    return params | {"w0": w.float(), "b0": (b - torch.from_numpy(mean) @ w).float()}


class _Actor(nn.Module):
    """The actor of a stable-baselines3 policy as a module from our observation vectors to our units."""

    def __init__(self, theirs: Any, spaces: Spaces):
        super().__init__()
        self._observations(theirs, spaces)
        parts = theirs.pi_features_extractor, theirs.mlp_extractor.policy_net
        self.features, self.network = (copy.deepcopy(part).to("cpu").eval() for part in parts)
        weight, bias = _ours_from(spaces, theirs.action_net.weight, theirs.action_net.bias)
        self.head: nn.Module = nn.Linear(weight.shape[1], spaces.act_dim)
        self.head.load_state_dict({"weight": weight, "bias": bias})

    def _observations(self, theirs: Any, spaces: Spaces) -> None:
        space = spaces.observation
        self.shape: Any = space.shape if isinstance(space, Box) else None
        self.transposed = self.shape is not None and theirs.observation_space.shape != self.shape
        self.factor = 1.0
        if is_image_space(space):  # they divide by 255 or not, `encode` too
            brightest = float(spaces.encode(np.full((1, *(space.shape or ())), 255, np.uint8)).max())
            self.factor = (1.0 if theirs.normalize_images else 255.0) / brightest

    def forward(self, x: Any) -> Tensor:
        """[N, O] -> [N, A]."""
        x = x if self.shape is None else self.factor * x.unflatten(-1, self.shape)
        x = x.movedim(-1, -3) if self.transposed else x
        return self.head(self.network(self.features(x)))


class _TD3Actor(_Actor):
    """The actor of TD3 and DDPG, whose tanh is in policy units already."""

    def __init__(self, theirs: Any, spaces: Spaces):
        nn.Module.__init__(self)
        self._observations(theirs.actor, spaces)
        parts = theirs.actor.features_extractor, theirs.actor.mu
        self.features, self.network = (copy.deepcopy(part).to("cpu").eval() for part in parts)
        self.head = nn.Identity()
