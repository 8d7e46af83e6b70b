"""A small convolutional policy for image observations, stacked over tasks by grouped convolutions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution
from metarl.params import Params
from metarl.policies.base import check_network, dense_layers, floored_log_std, log_std_init, xavier
from metarl.policies.spaces import Image, Spaces, distribution_of
from metarl.policies.stacked_mlp import ACTIVATIONS, forward

SMALL_ENOUGH = 4
"""By default a network halves its image until neither side is longer than this."""


@dataclass(frozen=True)
class CNNPolicy:
    """Convolutions of 3 x 3 with stride 2, each of which halves the image, then the layers of an MLP.

    Parameters, next to those of `MLPPolicy` (w0, b0, ..., log_std): `conv0` [K, M, C, 3, 3], `conv_bias0` [K, M], ...
    They are meant for images of about 16 x 16 to 84 x 84 pixels. Every step is differentiable any number of times.

    Raises:
        ValueError: the observation is not an image.
    """

    spaces: Spaces
    channels: tuple[int, ...] = ()
    """Output channels of each convolution. Empty: 16 channels each, in as many layers as reduce both sides of the image
    to at most 4 (two for 16 x 16 pixels, five for 84 x 84)."""
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    init_std: float = 1.0
    min_std: float = 1e-3
    input_gain: float = 1.0
    output_gain: float = 0.01

    def __post_init__(self) -> None:
        check_network(self.hidden, self.activation, self.init_std, self.min_std)
        check_channels(self.channels)
        image = self.image  # refuses spaces without one
        object.__setattr__(self, "channels", self.channels or enough_channels(image))

    @property
    def image(self) -> Image:
        """The images' shape."""
        return image_of(self.spaces)

    @property
    def features(self) -> int:
        """How many numbers the convolutions leave of an image."""
        return num_features(self.image, self.channels)

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def memory(self) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        """The network and its standard deviations, without the gains, which only affect initialisation."""
        return {"init_std": self.init_std, "min_std": self.min_std, "hidden": list(self.hidden),
                "activation": self.activation, "channels": list(self.channels)}  # fmt: skip

    @classmethod
    def from_description(cls, spaces: Spaces, described: Mapping[str, Any]) -> Self:
        """The policy that `describe` was called on, except for settings that only affect its initialisation."""
        return cls(spaces, tuple(described["channels"]), tuple(described["hidden"]), described["activation"],
                   described["init_std"], described["min_std"])  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The algorithm settings that create the same network."""
        layers = {"hidden": tuple(self.hidden), "activation": self.activation, "channels": tuple(self.channels)}
        return {"min_std": self.min_std, "network": "cnn", **layers}

    def init(self, generator: torch.Generator) -> Params:
        """Xavier-uniform weights (the first and the last layer's times their gains) and zero biases."""
        params = convolutions(generator, self.image, self.channels)
        params["conv0"] *= self.input_gain
        params |= dense_layers(generator, (self.features, *self.hidden, self.spaces.act_dim))
        params[f"w{len(self.hidden)}"] *= self.output_gain
        return params if self.spaces.discrete else params | {"log_std": log_std_init(self.spaces, self.init_std)}

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        """params [K, ...], obs [K, ..., O] -> the action distribution in every state."""
        assert obs.shape[-1] == self.spaces.obs_dim, (obs.shape, self.spaces.obs_dim)
        x = obs.reshape(obs.shape[0], -1, obs.shape[-1])
        out = forward(params, convolved(params, x, self.image, self.activation), self.activation).out
        log_std = floored_log_std(params, self.min_std)
        return distribution_of(out.reshape(*obs.shape[:-1], out.shape[-1]), log_std, self.spaces.sizes)


# ---------------------------------------------------------------------------------------------------------------------
# The convolutions alone


def image_of(spaces: Spaces) -> Image:
    """The images' shape.

    Raises:
        ValueError: the observation is not an image.
    """
    if spaces.image is None:
        raise ValueError(
            f"a convolutional policy takes images, Box(0, 255, (height, width, channels), uint8), and not "
            f"{spaces.observation}"
        )
    return spaces.image


def enough_channels(image: Image) -> tuple[int, ...]:
    """16 output channels each, in as many convolutions as reduce both sides of the image to at most `SMALL_ENOUGH`."""
    return (16,) * max(1, math.ceil(math.log2(max(image.height, image.width) / SMALL_ENOUGH)))


def check_channels(channels: tuple[int, ...]) -> None:
    """Raise ValueError for a convolution without output channels."""
    if any(n < 1 for n in channels):
        raise ValueError(f"convolutions need at least one channel each, got {channels}")


def num_features(image: Image, channels: tuple[int, ...]) -> int:
    """How many numbers the convolutions leave of an image."""
    height, width = image.height, image.width
    for _ in channels:
        height, width = -(-height // 2), -(-width // 2)
    return height * width * channels[-1]


def convolutions(generator: torch.Generator, image: Image, channels: tuple[int, ...]) -> Params:
    """`conv0` [M, C, 3, 3], `conv_bias0` [M], `conv1`, ...: Xavier-uniform weights and zero biases."""
    params: Params = {}
    sizes = (image.channels, *channels)
    for i, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        params[f"conv{i}"] = xavier(generator, (m, n, 3, 3), 9 * n, 9 * m)
        params[f"conv_bias{i}"] = torch.zeros(m)
    return params


def convolved(params: Params, x: Tensor, image: Image, activation: str) -> Tensor:
    """Flat images x [K, N, O] -> features [K, N, F], with weights `conv0` [K, M, C, 3, 3] and so on for every task.

    The tasks are the groups of one convolution over [N, K * channels, ...].
    """
    K, N, _ = x.shape
    h = image.grid(x).transpose(0, 1).flatten(1, 2)
    i = 0
    while f"conv{i}" in params:
        weight, bias = params[f"conv{i}"].flatten(0, 1), params[f"conv_bias{i}"].flatten()
        h = ACTIVATIONS[activation](torch.nn.functional.conv2d(h, weight, bias, stride=2, padding=1, groups=K))
        i += 1
    return h.reshape(N, K, -1).transpose(0, 1)
