"""Films of episodes before and after adaptation, for any family whose environments render `rgb_array`."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from metarl.adapted.predictor import Predictor
from metarl.families.visible import VisibleFamily
from metarl.report.figures import MissingExtraError
from metarl.tasks import Task, TaskFamily
from metarl.torch_defaults import torch_defaults

FORMATS = (".mp4", ".gif")
_CAPTION = 24  # pixels


class RenderError(OSError):
    """An environment cannot be drawn here."""


@torch_defaults
def film(
    family: TaskFamily,
    task: Task,
    policies: Mapping[str, Predictor],
    path: Path | str,
    *,
    seed: int = 0,
    deterministic: bool = True,
    max_frames: int | None = None,
) -> Path:
    """Write one episode of every policy, side by side, as a video. -> its path.

    Args:
        policies: caption -> policy; all play the same task from the same seed.
        path: ends in .mp4 or .gif.
        deterministic: act with the mean of the policy's distribution.
        max_frames: end the episodes after this many steps.

    Raises:
        RenderError: the environments render no `rgb_array`, or there is no OpenGL for them.
        MissingExtraError: a package of the extra `video` is not installed.
        ValueError: another file format.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"videos are written as {' or '.join(FORMATS)}, got {path}")
    _import_imageio()
    steps = family.horizon if max_frames is None else min(max_frames, family.horizon)
    episodes, fps = [], 30.0
    for caption, policy in policies.items():
        env = _open(family, task)
        fps = float(env.metadata.get("render_fps", fps))
        try:
            images, returns = _play(env, policy, steps, seed, deterministic)
        finally:
            env.close()
        episodes.append([_captioned(image, f"{caption}: {x:.1f}") for image, x in zip(images, returns, strict=True)])
    return _write(side_by_side(episodes), path, fps)


def side_by_side(episodes: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Films [T_i, H, W, 3] of any lengths as one [max T, H, sum W, 3]; who has ended stands still."""
    length = max(len(episode) for episode in episodes)
    columns = [np.stack([*episode, *[episode[-1]] * (length - len(episode))]) for episode in episodes]
    return np.concatenate(columns, 2)


def _open(family: TaskFamily, task: Task) -> gym.Env:
    make: Any = family.make
    hidden = family.family if isinstance(family, VisibleFamily) else family  # the former's make hands on what it gets
    if "render_mode" not in inspect.signature(hidden.make).parameters:
        raise RenderError(f"{family.id} cannot be filmed: its make(task) takes no render_mode")
    if not os.environ.get("DISPLAY"):  # without a screen MuJoCo needs to be told; whoever has told it is obeyed
        os.environ.setdefault("MUJOCO_GL", "egl")
    return make(task, render_mode="rgb_array")


def _play(
    env: gym.Env, policy: Predictor, steps: int, seed: int, deterministic: bool
) -> tuple[list[np.ndarray], list[float]]:
    """One episode: the images [H, W, 3] before and after every step, and the return so far."""
    obs, _ = env.reset(seed=seed)
    images, returns = [_image(env)], [0.0]
    state: Any = None
    for _ in range(steps):
        action, state = policy.predict(obs, state, deterministic=deterministic)
        obs, reward, terminated, truncated, _ = env.step(action)
        state = policy.observe(state, reward)
        images.append(_image(env))
        returns.append(returns[-1] + float(reward))
        if terminated or truncated:
            break
    return images, returns


def _image(env: gym.Env) -> np.ndarray:
    try:
        image: Any = env.render()
    except Exception as error:  # every OpenGL platform has errors of its own
        raise RenderError(
            f"{env} cannot be drawn here ({type(error).__name__}: {error}). MuJoCo draws with OpenGL: set the "
            "environment variable MUJOCO_GL to egl (a GPU's or Mesa's libEGL), osmesa (libOSMesa) or glfw (a screen)"
        ) from error
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise RenderError(f"{env} returns {type(image)} from render(), not an image [H, W, 3]")
    return image


def _captioned(image: np.ndarray, text: str) -> np.ndarray:
    """The image below a line of text; sides of even length, as video needs."""
    from PIL import Image, ImageDraw

    height, width = image.shape[0] + image.shape[0] % 2, image.shape[1] + image.shape[1] % 2
    canvas = Image.new("RGB", (width, height + _CAPTION), "white")
    canvas.paste(Image.fromarray(image), (0, _CAPTION))
    ImageDraw.Draw(canvas).text((6, 6), text, fill="black")
    return np.asarray(canvas)


def _import_imageio() -> Any:
    try:
        import imageio.v3
        import imageio_ffmpeg  # noqa: F401  # imageio's own message about it is less clear
    except ImportError as error:
        raise MissingExtraError(f"videos need imageio ({error}): pip install imageio imageio-ffmpeg pillow") from None
    return imageio.v3


def _write(frames: np.ndarray, path: Path, fps: float) -> Path:
    """Written beside its place and moved there, so that no half video is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    options = {"fps": fps, "macro_block_size": 2} if path.suffix == ".mp4" else {"duration": 1000 / fps, "loop": 0}
    try:
        _import_imageio().imwrite(partial, frames, **options)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
