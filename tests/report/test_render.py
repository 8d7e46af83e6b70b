"""Films before and after adaptation."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import tiny_runs

import metarl
from metarl import cli
from metarl.report import render
from metarl.report.figures import MissingExtraError

imageio = pytest.importorskip("imageio.v3")
pytest.importorskip("imageio_ffmpeg")


@pytest.fixture(scope="module")
def learner():
    return tiny_runs.tiny()


@pytest.fixture(scope="module")
def policies(learner):
    task = {"goal": np.array([0.3, -0.2])}
    return {"before": learner.adapt(task, steps=0), "after 1 step": learner.adapt(task, steps=1, step_sizes=[5.0])}


@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_a_film_shows_every_step_of_both_policies(learner, policies, tmp_path, name):
    path = render.film(learner.family, {"goal": np.array([0.3, -0.2])}, policies, tmp_path / "new" / name)
    frames = imageio.imread(path)
    assert frames.shape == (learner.family.horizon + 1, 256 + 24, 512, 3)
    left, right = frames[:, 24:, :256].astype(int), frames[:, 24:, 256:].astype(int)
    assert np.abs(left[0] - right[0]).max() < 80, "both start at the same place"
    assert np.abs(left[-1] - right[-1]).max() > 128, "and end at different ones"
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_films_of_different_lengths_end_standing_still():
    short, long = np.zeros((2, 2, 2, 3), np.uint8), np.arange(4)[:, None, None, None] * np.ones((4, 2, 2, 3), np.uint8)
    film = render.side_by_side([short + np.arange(1, 3, dtype=np.uint8)[:, None, None, None], long])
    assert film.shape == (4, 2, 4, 3)
    assert film[:, 0, 0, 0].tolist() == [1, 2, 2, 2] and film[:, 0, 2, 0].tolist() == [0, 1, 2, 3]


def test_max_frames_cut_the_episode(learner, policies, tmp_path):
    task = {"goal": np.array([0.3, -0.2])}
    path = render.film(learner.family, task, policies, tmp_path / "a.gif", max_frames=2)
    assert len(imageio.imread(path)) == 3


def test_the_command_films_a_run(learner, tmp_path, capsys):
    tiny_runs.tiny().learn(1, run_dir=tmp_path / "run", eval_every=0)
    assert cli.run(["render", str(tmp_path / "run"), "--out", str(tmp_path / "a.gif")]) == 0
    said = capsys.readouterr().out
    assert "task: goal=" in said and "a.gif" in said
    assert (tmp_path / "a.gif").exists()
    assert cli.run(["render", str(tmp_path / "run"), "--task", "goal=0.1,0.2", "--steps", "2"]) == 0
    assert (tmp_path / "run" / "adaptation.mp4").exists()


def test_a_family_with_visible_tasks_is_filmed_where_the_hidden_one_is(tmp_path):
    family, task = metarl.visible(metarl.make("PointNavigationPixels-v0", horizon=3)), {"goal": np.array([0.3, -0.2])}
    policy = tiny_runs.tiny(family).adapt(task, steps=0)
    assert len(imageio.imread(render.film(family, task, {"before": policy}, tmp_path / "a.gif"))) == 4


def test_other_formats_are_refused(learner, policies, tmp_path):
    with pytest.raises(ValueError, match=r"written as .mp4 or .gif, got .*film.avi"):
        render.film(learner.family, {"goal": np.zeros(2)}, policies, tmp_path / "film.avi")


def test_a_family_that_cannot_be_drawn_is_named(policies, tmp_path):
    class Blind:
        id, horizon = "Blind-v0", 3

        def make(self, task):
            return tiny_runs.Walk()

    with pytest.raises(render.RenderError, match=r"Blind-v0 cannot be filmed: its make\(task\) takes no render_mode"):
        render.film(Blind(), {}, policies, tmp_path / "a.gif")


def test_no_opengl_is_one_clear_error_and_leaves_no_file(learner, policies, tmp_path):
    class NoScreen(gym.Wrapper):
        def render(self):
            raise RuntimeError("no display")

    class Family:
        id, horizon = "NoScreen-v0", 3

        def make(self, task, render_mode=None):
            return NoScreen(learner.family.make({"goal": np.zeros(2)}))

    with pytest.raises(render.RenderError, match=r"no display.*MUJOCO_GL to egl"):
        render.film(Family(), {}, policies, tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


def test_without_imageio_the_extra_is_named(learner, policies, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match=r"pip install imageio imageio-ffmpeg pillow"):
        render.film(learner.family, {"goal": np.zeros(2)}, policies, tmp_path / "a.gif")


def test_half_cheetah_is_filmed_without_a_screen(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.delenv("DISPLAY", raising=False)
    family = metarl.make("HalfCheetahDir-v0", horizon=20)
    learner = tiny_runs.tiny(family)
    task = {"forward": np.int64(1)}
    try:
        path = render.film(family, task, {"before": learner.adapt(task, steps=0)}, tmp_path / "cheetah.mp4")
    except render.RenderError as error:
        pytest.skip(f"no OpenGL here: {error}")
    frames = imageio.imread(path)
    assert frames.shape == (21, 504, 480, 3)
    assert frames[:, 24:].std() > 10, "something is drawn"
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50, "and moves"
