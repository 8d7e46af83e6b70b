"""Point navigation as images and as paths on matplotlib axes."""

import numpy as np
import pytest
import torch
from metarl_envs.point_navigation import CORNERS

import metarl
from metarl.tasks import task_at

POINTS = ["PointNavigation-v0", "PointNavigationCorners-v0", "PointNavigationPixels-v0", "PointNavigationSparse-v0"]


def images(family, path):
    """What the point shows along a path, as a policy gets it."""
    position = torch.as_tensor(path, dtype=torch.float32)
    return family.observe({"position": position}, {}).flatten(-3).numpy() / 255


def one_task(family):
    return task_at(family.sample(5, np.random.default_rng(0)), 3)


@pytest.mark.parametrize("id", POINTS)
def test_picture_shows_the_point_where_it_is(id):
    family = metarl.make(id)
    env = family.make(one_task(family), render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    for _ in range(3):
        image = env.render()
        assert image.shape == (256, 256, 3)
        assert image.dtype == np.uint8
        rows, columns = (image == (31, 119, 180)).all(-1).nonzero()
        x, y = (2 * (columns.mean() + 0.5) / 256 - 1) * family.view, (1 - 2 * (rows.mean() + 0.5) / 256) * family.view
        seen = family.positions(obs)[0] if id == "PointNavigationPixels-v0" else obs
        np.testing.assert_allclose([x, y], seen, atol=0.02 * family.view)
        obs, *_ = env.step(family.action_space.high * [1, 0.5])


@pytest.mark.parametrize(("corner", "row", "column"), [(0, 1, 0), (1, 1, 1), (2, 0, 0), (3, 0, 1)])
def test_picture_shows_the_goal_among_the_corners(corner, row, column):
    env = metarl.make("PointNavigationCorners-v0").make({"corner": corner}, render_mode="rgb_array")
    env.reset(seed=0)
    green = (env.render() == (44, 160, 44)).all(-1).reshape(2, 128, 2, 128).any((1, 3))
    assert green[row, column]
    assert green.sum() == 1


def test_a_point_far_away_stays_in_the_picture():
    env = metarl.make("PointNavigation-v0").make({"goal": [0.5, 0.5]}, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(30):
        env.step([-0.1, 0.0])
    rows, columns = (env.render() == (31, 119, 180)).all(-1).nonzero()
    assert columns.min() == 0
    assert rows.mean() == pytest.approx(127.5)


def test_render_mode_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="got render_mode='human'"):
        metarl.make("PointNavigation-v0").make({"goal": [0.1, 0.1]}, render_mode="human")


@pytest.mark.parametrize("id", POINTS)
def test_draw_shows_the_paths_and_the_goal(id):
    axes = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    family = metarl.make(id)
    task = one_task(family)
    goal = task["goal"] if "goal" in task else np.array(CORNERS[int(task["corner"])])
    paths = [0.2 * np.random.default_rng(e).normal(size=(3 + e, 2)) for e in range(2)]
    pixels = id == "PointNavigationPixels-v0"
    family.draw(axes, task, [images(family, path) if pixels else path for path in paths])
    for line, path in zip(axes.lines, paths, strict=False):
        np.testing.assert_allclose(line.get_xydata(), path, atol=0.005 if pixels else 0)
    np.testing.assert_allclose(axes.collections[-1].get_offsets(), [goal])
    circle = axes.lines[-1].get_xydata()
    np.testing.assert_allclose(np.linalg.norm(circle - goal, axis=1), getattr(family, "goal_radius", 0), atol=1e-6)
