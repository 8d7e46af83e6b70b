"""Observations to vectors, policy units to actions, and what is refused."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from metarl.distributions import Categorical, Gaussian
from metarl.spaces import Spaces, check_same_spaces, distribution_of, spaces_of

POINT = Box(-np.inf, np.inf, (2,), np.float32)


def box(low: list[float], high: list[float]) -> Box:
    return Box(np.array(low, np.float32), np.array(high, np.float32))


def decode(action_space: gym.Space, action: torch.Tensor) -> torch.Tensor:
    return Spaces(POINT, action_space).decoder()(action)


def test_a_box_observation_is_flattened():
    image = Box(0, 255, (2, 3), np.uint8)
    out = Spaces(image, Discrete(2)).encode(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    assert out.dtype == torch.float32
    assert out.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_scalar_box_has_one_dimension():
    assert Spaces(Box(0, 1, (), np.float32), Discrete(2)).encode(np.array([0.5, 0.25])).tolist() == [[0.5], [0.25]]


def test_a_discrete_observation_becomes_one_hot_counted_from_its_start():
    spaces = Spaces(Discrete(3, start=-1), Discrete(2))
    assert spaces.encode(np.array([-1, 1])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_discrete_action_is_counted_from_its_start():
    assert decode(Discrete(3, start=5), torch.tensor([0, 2])).tolist() == [5, 7]


def test_a_discrete_action_stays_an_integer():
    assert decode(Discrete(3), torch.tensor([0, 2])).dtype == torch.int64


def test_one_in_policy_units_is_the_bound_of_every_dimension():
    space = box([-2.0, 0.0], [2.0, 10.0])
    want = torch.tensor([[2.0, 10.0], [-2.0, 0.0], [0.0, 5.0]])
    torch.testing.assert_close(decode(space, torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])), want)


def test_half_in_policy_units_is_half_way_to_the_bound():
    torch.testing.assert_close(decode(box([0.0], [10.0]), torch.tensor([[0.5]])), torch.tensor([[7.5]]))


def test_actions_are_clipped_to_the_bounds():
    space = box([-2.0, 0.0], [2.0, 10.0])
    torch.testing.assert_close(decode(space, torch.tensor([[3.0, -7.0]])), torch.tensor([[2.0, 0.0]]))


@pytest.mark.parametrize(("action", "want"), [(-3.0, 0.0), (0.25, 0.25), (1e6, 1e6)])
def test_a_dimension_bounded_on_one_side_is_clipped_there_and_not_scaled(action, want):
    assert decode(box([0.0], [np.inf]), torch.tensor([[action]])).item() == want


def test_an_unbounded_dimension_is_passed_through():
    assert decode(box([-np.inf], [np.inf]), torch.tensor([[-123.5]])).item() == -123.5


def test_a_decoded_action_has_the_shape_of_the_space():
    space = Box(-1, 1, (2, 2), np.float32)
    assert space.contains(decode(space, torch.full((3, 4), 0.5))[0].numpy())


@pytest.mark.parametrize(
    ("space", "dim"), [(Discrete(5, start=2), 5), (Box(-1, 1, (2, 3), np.float32), 6), (Box(-1, 1, (), np.float32), 1)]
)
def test_dimensions(space, dim):
    spaces = Spaces(space, space)
    assert (spaces.obs_dim, spaces.act_dim) == (dim, dim)


def test_discrete_is_about_the_action():
    assert (Spaces(Discrete(3), POINT).discrete, Spaces(POINT, Discrete(3)).discrete) == (False, True)


def source(observation: gym.Space, action: gym.Space) -> SimpleNamespace:
    return SimpleNamespace(id="Some-v3", observation_space=observation, action_space=action)


def test_supported_spaces_are_taken_over():
    assert spaces_of(source(POINT, Discrete(3))) == Spaces(POINT, Discrete(3))


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (gym.spaces.Dict({"a": POINT}), POINT, "Dict"),
        (gym.spaces.Tuple([POINT]), POINT, "Tuple"),
        (POINT, gym.spaces.MultiDiscrete([2, 3]), "MultiDiscrete"),
        (POINT, gym.spaces.MultiBinary(3), "MultiBinary"),
        (POINT, Box(0, 5, (2,), np.int64), "int64"),
    ],
)
def test_unsupported_spaces_are_named_with_their_owner(observation, action, named):
    with pytest.raises(ValueError, match=f"Some-v3.*{named}"):
        spaces_of(source(observation, action))


def test_the_same_spaces_pass():
    check_same_spaces("A-v0", Spaces(POINT, box([-1.0], [1.0])), source(POINT, box([-1.0], [1.0])))


def test_other_bounds_of_the_observation_pass():
    check_same_spaces("A-v0", Spaces(POINT, Discrete(2)), source(Box(-1, 1, (2,), np.float32), Discrete(2)))


@pytest.mark.parametrize(
    ("observation", "action", "what"),
    [
        (Box(-np.inf, np.inf, (3,), np.float32), box([-1.0], [1.0]), "observation"),
        (Discrete(2), box([-1.0], [1.0]), "observation"),
        (POINT, box([-2.0], [1.0]), "action"),
        (POINT, box([-1.0], [2.0]), "action"),
        (POINT, Box(-1, 1, (2,), np.float32), "action"),
        (POINT, Discrete(2), "action"),
    ],
)
def test_other_spaces_are_refused_by_name(observation, action, what):
    with pytest.raises(ValueError, match=f"A-v0 with {what} space"):
        check_same_spaces("A-v0", Spaces(POINT, box([-1.0], [1.0])), source(observation, action))


@pytest.mark.parametrize("other", [Discrete(4), Discrete(3, start=1)])
def test_other_choices_are_refused(other):
    with pytest.raises(ValueError, match="action space"):
        check_same_spaces("A-v0", Spaces(POINT, Discrete(3)), source(POINT, other))


def test_an_output_without_log_std_is_logits():
    output = torch.randn(2, 3, 4, 5)
    assert torch.equal(distribution_of(output, None).logits, output)
    assert isinstance(distribution_of(output, None), Categorical)


def test_log_std_is_given_one_axis_per_axis_of_states():
    dist = distribution_of(torch.zeros(2, 3, 4, 5), torch.arange(10.0).reshape(2, 5))
    assert isinstance(dist, Gaussian)
    assert dist.log_std.shape == (2, 1, 1, 5)


def test_decoded_actions_lie_inside_a_float64_box_whose_bounds_are_no_float32_numbers():
    box = Box(np.array([-0.1, -0.3]), np.array([0.7, 0.1]), dtype=np.float64)
    decode = Spaces(Box(-1, 1, (1,)), box).decoder()
    for far in (-5.0, 5.0):
        assert box.contains(decode(torch.full((1, 2), far))[0].double().numpy())
