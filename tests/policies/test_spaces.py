"""Observations to vectors, policy units to actions, and what is refused."""

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from metarl.formulas.distributions import Categorical, Gaussian
from metarl.policies.spaces import (
    Image,
    Spaces,
    check_same_spaces,
    distribution_of,
    spaces_from_json,
    spaces_of,
    spaces_to_json,
)

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
        (gym.spaces.Text(5), POINT, "Text"),
        (POINT, gym.spaces.Dict({"a": POINT}), "Dict"),
        (POINT, Box(0, 5, (2,), np.int64), "int64"),
    ],
)
def test_unsupported_spaces_are_named_with_their_owner(observation, action, named):
    with pytest.raises(ValueError, match=f"Some-v3.*{named}"):
        spaces_of(source(observation, action))


@pytest.mark.parametrize("observation", [gym.spaces.Dict({"a": POINT}), gym.spaces.Tuple([POINT])])
def test_the_remedy_for_composed_observations_works(observation):
    with pytest.raises(ValueError, match=r"flatten it with gymnasium\.wrappers\.FlattenObservation"):
        spaces_of(source(observation, POINT))
    env = gym.Env()
    env.observation_space, env.action_space = observation, POINT
    assert spaces_of(gym.wrappers.FlattenObservation(env)).obs_dim == 2


@pytest.mark.parametrize(
    "space", [MultiDiscrete([2, 3]), MultiBinary(3), Box(0, 255, (8, 8, 3), np.uint8), Box(0, 1, (2, 2))]
)
def test_all_supported_spaces_are_taken(space):
    assert spaces_of(source(space, Discrete(2))).observation is space


@pytest.mark.parametrize("space", [MultiDiscrete([[2, 3], [4, 2]]), MultiBinary((2, 2)), MultiBinary(3)])
def test_multi_actions_are_taken(space):
    assert spaces_of(source(POINT, space)).action is space


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


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MultiDiscrete([3, 2]), MultiDiscrete([2, 3])),
        (MultiDiscrete([3, 2]), MultiDiscrete([3, 2], start=[0, 1])),
        (MultiDiscrete([3, 2]), MultiDiscrete([[3, 2]])),
        (MultiDiscrete([2, 2]), MultiBinary(2)),
        (MultiBinary(4), MultiBinary((2, 2))),
        (MultiBinary(4), MultiBinary(3)),
    ],
    ids=str,
)
def test_other_multiple_choices_are_refused(ours, theirs):
    check_same_spaces("A-v0", Spaces(POINT, ours), source(POINT, ours))
    with pytest.raises(ValueError, match="A-v0 with action space"):
        check_same_spaces("A-v0", Spaces(POINT, ours), source(POINT, theirs))
    with pytest.raises(ValueError, match="A-v0 with observation space"):
        check_same_spaces("A-v0", Spaces(ours, Discrete(2)), source(theirs, Discrete(2)))


def test_an_image_is_not_taken_for_a_box_of_the_same_shape():
    image, plain = Box(0, 255, (4, 4, 1), np.uint8), Box(0, 1, (4, 4, 1), np.float32)
    check_same_spaces("A-v0", Spaces(image, Discrete(2)), source(Box(0, 255, (4, 4, 1), np.uint8), Discrete(2)))
    with pytest.raises(ValueError, match="A-v0 with observation space"):
        check_same_spaces("A-v0", Spaces(image, Discrete(2)), source(plain, Discrete(2)))


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


# ---------------------------------------------------------------------------------------------------------------------
# Several choices


@pytest.mark.parametrize(
    ("space", "logits", "shape", "sizes"),
    [
        (MultiDiscrete([3, 2, 4]), 9, (3,), (3, 2, 4)),
        (MultiDiscrete([[3, 2], [4, 2]]), 11, (4,), (3, 2, 4, 2)),
        (MultiBinary(3), 6, (3,), (2, 2, 2)),
        (MultiBinary((2, 2)), 8, (4,), (2, 2, 2, 2)),
        (MultiDiscrete([5]), 5, (1,), (5,)),
        (Discrete(5), 5, (), None),
        (Box(-1, 1, (2, 3), np.float32), 6, (6,), None),
    ],
    ids=str,
)
def test_dimensions_of_actions(space, logits, shape, sizes):
    spaces = Spaces(POINT, space)
    assert (spaces.act_dim, spaces.action_shape, spaces.sizes) == (logits, shape, sizes)
    assert spaces.noise_dim == (shape[0] if shape else 1)
    assert spaces.discrete == (not isinstance(space, Box))


@pytest.mark.parametrize(
    "space",
    [
        MultiDiscrete([3, 2], start=[-1, 10]),
        MultiDiscrete([[3, 2], [4, 2]], dtype=np.int32, start=[[5, 6], [7, 8]]),
        MultiBinary(3),
        MultiBinary((2, 3)),
    ],
    ids=str,
)
def test_every_combination_of_choices_becomes_another_action_of_the_space(space):
    spaces = Spaces(POINT, space)
    combinations = torch.cartesian_prod(*(torch.arange(n) for n in spaces.sizes))
    actions = spaces.decoder()(combinations).numpy()
    assert all(space.contains(action) for action in actions)
    assert actions.dtype == space.dtype
    assert len(np.unique(actions.reshape(len(actions), -1), axis=0)) == len(combinations)
    start = getattr(space, "start", np.zeros(space.shape))
    assert np.array_equal(actions[0], start)
    assert np.array_equal(actions[1].reshape(-1)[-2:] - start.reshape(-1)[-2:], [0, 1]), "the last one counts fastest"


def test_multi_discrete_observations_are_one_hot_vectors_one_after_the_other():
    space = MultiDiscrete([[2], [3]], start=[[0], [5]])
    spaces = Spaces(space, Discrete(2))
    assert spaces.obs_dim == 5
    assert spaces.encode(np.array([[[1], [5]], [[0], [7]]])).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_multi_binary_observations_are_their_bits():
    spaces = Spaces(MultiBinary((2, 2)), Discrete(2))
    assert spaces.encode(np.array([[[1, 0], [0, 1]]], np.int8)).tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.uint8, np.uint16, np.bool_])
def test_boxes_of_any_number_type_become_float32(dtype):
    space = Box(0, 1, (2, 2), dtype)
    out = Spaces(space, Discrete(2)).encode(np.ones((3, 2, 2), dtype))
    assert (out.dtype, out.shape) == (torch.float32, (3, 4))
    assert (out == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# Images


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ((16, 12, 3), Image(16, 12, 3)),
        ((4, 84, 80), Image(84, 80, 4, channels_first=True)),
        ((16, 16, 16), Image(16, 16, 16)),
    ],
)
def test_which_axis_has_the_channels(shape, want):
    assert Spaces(Box(0, 255, shape, np.uint8), Discrete(2)).image == want


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (16, 16), np.uint8),
        Box(0, 254, (16, 16, 3), np.uint8),
        Box(1, 255, (16, 16, 3), np.uint8),
        Box(0, 255, (16, 16, 3), np.float32),
        Discrete(3),
    ],
    ids=str,
)
def test_what_is_no_image(space):
    assert Spaces(space, Discrete(2)).image is None


@pytest.mark.parametrize("shape", [(5, 4, 2), (2, 5, 4)])
def test_images_are_scaled_to_one_and_put_back_on_their_grid(shape):
    raw = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    raw[0].flat[:2] = 0, 255
    spaces = Spaces(Box(0, 255, shape, np.uint8), Discrete(2))
    x = spaces.encode(raw)
    assert x.shape == (3, 40)
    assert (x.min(), x.max()) == (0, 1)
    want = raw if shape[0] == 2 else raw.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(spaces.image.grid(x).numpy(), want / 255, rtol=1e-6)
    assert spaces.image.grid(x.reshape(3, 1, 40)).shape == (3, 1, 2, 5, 4)


# ---------------------------------------------------------------------------------------------------------------------
# On disk


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3, start=-1),
        MultiDiscrete([[3, 2], [4, 2]], dtype=np.int32, start=[[0, 1], [2, 3]]),
        MultiDiscrete([3, 2]),
        MultiBinary(3),
        MultiBinary((2, 3)),
        Box(0, 255, (4, 4, 1), np.uint8),
        Box(np.array([-np.inf, 0.1]), np.array([1.0, np.inf]), dtype=np.float64),
    ],
    ids=str,
)
def test_spaces_survive_json(space):
    for spaces in (Spaces(space, Discrete(2)), Spaces(POINT, space)):
        back = spaces_from_json(json.loads(json.dumps(spaces_to_json(spaces))))
        assert back == spaces
        assert (back.obs_dim, back.act_dim, back.sizes) == (spaces.obs_dim, spaces.act_dim, spaces.sizes)
    assert back.action.dtype == space.dtype
