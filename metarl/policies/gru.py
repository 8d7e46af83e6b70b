"""A recurrent policy with a value head: one gated recurrent unit whose memory lasts for a whole trial.

It adapts through its memory, so its parameters are the same for all tasks and have no task axis. B is any number of
trials side by side, L the steps of a trial, I the length of an input: observation, last action, last reward,
whether an episode begins (O + A + 2) and, if wanted, the last observation (another O) and products (2 O A), H the
units, A as in `spaces`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution, Gaussian
from metarl.params import Params
from metarl.policies.base import check_network, floored_log_std, log_std_init, xavier
from metarl.policies.cnn import check_channels, convolutions, convolved, image_of, num_features
from metarl.policies.spaces import Spaces, distribution_of
from metarl.policies.stacked_mlp import tanh


class Memory(NamedTuple):
    """The data that a trial carries from step to step, also across the ends of episodes."""

    hidden: Tensor  # [..., H]
    action: Tensor  # [..., A], the last one as a vector (see `action_vector`); zero before the first
    reward: Tensor  # [...], of that action
    obs: Tensor  # [..., O], on which that action was taken; [..., 0] where the policy is not shown it

    def where(self, mask: Tensor, other: "Memory") -> "Memory":
        """This memory where `mask` [...] is true, `other` elsewhere."""
        wide = mask[..., None]
        return Memory(
            torch.where(wide, self.hidden, other.hidden),
            torch.where(wide, self.action, other.action),
            torch.where(mask, self.reward, other.reward),
            torch.where(wide, self.obs, other.obs),
        )


def action_vector(spaces: Spaces, action: Tensor) -> Tensor:
    """The policy's actions as vectors [..., A]: a Box's as they are, choices [...] or [..., D] as one-hot vectors."""
    if not spaces.discrete:
        return action
    if spaces.sizes is None:
        return torch.nn.functional.one_hot(action, spaces.act_dim).float()
    hot = [torch.nn.functional.one_hot(action[..., d], n) for d, n in enumerate(spaces.sizes)]
    return torch.cat(hot, -1).float()


@dataclass(frozen=True)
class GRUPolicy:
    """A GRU (Cho et al. 2014, https://arxiv.org/abs/1406.1078), an action head and a value head.

    With gates r (reset), z (update) and input x:
        r = sigmoid(W_r x + b_r + U_r h + c_r)      z = sigmoid(W_z x + b_z + U_z h + c_z)
        n = tanh(W_n x + b_n + r (U_n h + c_n))     h' = (1 - z) n + z h
    Parameters, in the order r, z, n: `w_in` [3H, I], `b_in` [3H], `w_rec` [3H, H], `b_rec` [3H]; heads `w_act` [A, H],
    `b_act` [A], `w_value` [1, H], `b_value` [1]; `log_std` [A] of a Gaussian. With `head_hidden` units between memory
    and heads, y = relu(`w_head` h' + `b_head`), the heads have that many inputs instead of H. With `channels` the
    observations are images, and convolutions of 3 x 3 with stride 2 (`conv0` [M, C, 3, 3], `conv_bias0` [M], ...; tanh)
    make the features that stand in the place of each in x.
    """

    spaces: Spaces
    hidden: int = 128
    init_std: float = 1.0
    min_std: float = 1e-3
    output_gain: float = 0.01
    """Factor on the initial weights of the action head."""
    last_obs: bool = False
    """Whether inputs contain the previous observation: with action, reward and current observation this is the complete
    previous transition."""
    products: bool = False
    """Whether inputs also contain the products of the previous observation and action, and those products times the
    previous reward: for one-hot vectors, the state-action pair and its reward. Only with `last_obs`, and not for
    images."""
    head_hidden: int = 0
    """Units of a layer between the memory and both heads; 0: no such layer, the heads are linear."""
    input_gain: float = 1.0
    """Factor on the initial weights of the inputs."""
    memory_steps: float = 1.0
    """Initial biases of the update gates are drawn so that, with no input, 1 - z is 1 / (1 + s) with s log-uniform
    between 1 and this: a unit retains its content for about that many steps (after Tallec and Ollivier 2018,
    https://arxiv.org/abs/1804.11188, section 3)."""
    channels: tuple[int, ...] = ()
    """Output channels of the convolutions; empty: none, observations are fed to the GRU directly."""

    def __post_init__(self) -> None:
        check_network((self.hidden,), "tanh", self.init_std, self.min_std)
        if self.head_hidden < 0 or not self.input_gain > 0 or not 1 <= self.memory_steps < math.inf:
            raise ValueError(
                f"0 <= head_hidden, 0 < input_gain and 1 <= memory_steps < inf, got {self.head_hidden}, "
                f"{self.input_gain} and {self.memory_steps}"
            )
        check_channels(self.channels)
        if self.products and (self.channels or not self.last_obs):
            raise ValueError(f"products needs last_obs=True and observations that are no images, got last_obs="
                             f"{self.last_obs} and channels={self.channels}")  # fmt: skip
        if self.channels:
            image_of(self.spaces)

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def memory(self) -> int:
        return self.hidden

    def describe(self) -> dict[str, Any]:
        """The network and its standard deviations, without gains and `memory_steps`, which only affect
        initialisation."""
        names = ("hidden", "init_std", "min_std", "last_obs", "products", "head_hidden")
        return {name: getattr(self, name) for name in names} | {"channels": list(self.channels)}

    @classmethod
    def from_description(cls, spaces: Spaces, described: Mapping[str, Any]) -> Self:
        """The policy that `describe` was called on, except for settings that only affect its initialisation."""
        return cls(spaces, **{**described, "channels": tuple(described.get("channels", ()))})

    @property
    def input_dim(self) -> int:
        """I."""
        O, A = self.spaces.obs_dim, self.spaces.act_dim
        return (1 + self.last_obs) * O + A + 2 + self.products * 2 * O * A

    @property
    def _gru_inputs(self) -> int:
        """The same, with features in place of images."""
        if not self.channels:
            return self.input_dim
        return (1 + self.last_obs) * num_features(image_of(self.spaces), self.channels) + self.spaces.act_dim + 2

    def init(self, generator: torch.Generator) -> Params:
        """Xavier-uniform input and head weights, orthogonal recurrent ones (as in RL2, appendix), zero biases; but see
        `input_gain`, `memory_steps` and `output_gain`."""
        H, I, A, Y = self.hidden, self._gru_inputs, self.spaces.act_dim, self.head_hidden or self.hidden
        params = {
            "w_in": self.input_gain * torch.cat([xavier(generator, (H, I), I, H) for _ in range(3)]),
            "b_in": torch.zeros(3 * H),
            "w_rec": torch.cat([_orthogonal(generator, H) for _ in range(3)]),
            "b_rec": torch.zeros(3 * H),
            "w_act": self.output_gain * xavier(generator, (A, Y), Y, A),
            "b_act": torch.zeros(A),
            "w_value": xavier(generator, (1, Y), Y, 1),
            "b_value": torch.zeros(1),
        }
        if self.channels:
            params |= convolutions(generator, image_of(self.spaces), self.channels)
        if self.head_hidden:
            params |= {"w_head": xavier(generator, (Y, H), H, Y), "b_head": torch.zeros(Y)}
        if self.memory_steps > 1:  # z = sigmoid(log s) is s / (1 + s)
            params["b_in"][H : 2 * H] = torch.rand(H, generator=generator) * math.log(self.memory_steps)
        return params if self.spaces.discrete else params | {"log_std": log_std_init(self.spaces, self.init_std)}

    def blank(self, *shape: int, device: torch.device | str = "cpu") -> Memory:
        """The memory before a trial, with leading axes `shape`: all zero."""
        return Memory(
            torch.zeros(*shape, self.hidden, device=device),
            torch.zeros(*shape, self.spaces.act_dim, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(*shape, self.spaces.obs_dim if self.last_obs else 0, device=device),
        )

    def remember(self, hidden: Tensor, obs: Tensor, action: Tensor, reward: Tensor) -> Memory:
        """The memory after a step: on obs [..., O] an action vector [..., A] was taken and earned reward [...]."""
        return Memory(hidden, action, reward, obs if self.last_obs else obs[..., :0])

    def inputs(self, obs: Tensor, memory: Memory, first: Tensor | float) -> Tensor:
        """obs [..., O], what the trial remembers, and 1 where an episode begins, else 0 -> [..., I]."""
        flag = torch.as_tensor(first, dtype=obs.dtype, device=obs.device).expand(obs.shape[:-1])
        reward = memory.reward[..., None]
        parts = [obs, memory.action, reward, flag[..., None], memory.obs]
        if self.products:
            pair = (memory.obs[..., None] * memory.action[..., None, :]).flatten(-2)
            parts += [pair, pair * reward]
        return torch.cat(parts, -1)

    def step(self, params: Params, x: Tensor, hidden: Tensor) -> Tensor:
        """One step of the recurrence, written out. x [..., I], hidden [..., H] -> the next hidden state [..., H]."""
        assert x.shape[-1] == self.input_dim, (x.shape, self.input_dim)
        H = self.hidden
        from_x = torch.nn.functional.linear(self._seen(params, x), params["w_in"], params["b_in"])
        from_h = torch.nn.functional.linear(hidden, params["w_rec"], params["b_rec"])
        gates = torch.sigmoid(from_x[..., : 2 * H] + from_h[..., : 2 * H])
        reset, update = gates[..., :H], gates[..., H:]
        new = tanh(from_x[..., 2 * H :] + reset * from_h[..., 2 * H :])
        return new + update * (hidden - new)

    def unroll(self, params: Params, x: Tensor, hidden: Tensor) -> Tensor:
        """All steps at once, differentiable. x [L, B, I], hidden [B, H] before the first -> after every step [L, B, H].

        The same as `step` after `step`. PyTorch's kernel takes the product with all inputs in one go and loops over
        time in C++; a form with a backward pass by hand was not faster.
        """
        assert x.dim() == 3 and x.shape[-1] == self.input_dim and hidden.shape == (x.shape[1], self.hidden), x.shape
        weights = [params[name] for name in ("w_in", "w_rec", "b_in", "b_rec")]
        seen = self._seen(params, x)
        return torch.gru(seen, hidden[None], weights, True, 1, 0.0, torch.is_grad_enabled(), False, False)[0]

    def _seen(self, params: Params, x: Tensor) -> Tensor:
        """The input x [..., I], with features in place of images."""
        if not self.channels:
            return x
        O, image = self.spaces.obs_dim, image_of(self.spaces)
        kernels = {name: value[None] for name, value in params.items() if name.startswith("conv")}
        parts = x.split([O, x.shape[-1] - 2 * O, O] if self.last_obs else [O, x.shape[-1] - O], -1)
        features = [convolved(kernels, part.reshape(1, -1, O), image, "tanh") for part in parts[::2]]
        flat = [f.reshape(*x.shape[:-1], -1) for f in features]
        return torch.cat([flat[0], parts[1], *flat[1:]], -1)

    def heads(self, params: Params, hidden: Tensor) -> tuple[Distribution, Tensor]:
        """hidden [..., H] -> the distribution of actions, [..., A], and the value [...] in its own units."""
        if self.head_hidden:
            hidden = torch.relu(torch.nn.functional.linear(hidden, params["w_head"], params["b_head"]))
        out = torch.nn.functional.linear(hidden, params["w_act"], params["b_act"])
        value = torch.nn.functional.linear(hidden, params["w_value"], params["b_value"])[..., 0]
        log_std = floored_log_std(params, self.min_std)
        if log_std is not None:
            return Gaussian(out, log_std), value
        return distribution_of(out, None, self.spaces.sizes), value


def _orthogonal(generator: torch.Generator, n: int) -> Tensor:
    """A random orthogonal matrix [n, n] (Saxe et al. 2014)."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator))
    return q * torch.sign(torch.diagonal(r))
