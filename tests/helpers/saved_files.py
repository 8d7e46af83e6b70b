"""Files that an earlier version wrote (old_files/), one of each kind, and what loads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metarl import AdaptedPolicy, MetaLearner, RecurrentPolicy
from metarl.supervised import FewShotLearner, Sinusoid

OLD = Path(__file__).parent / "old_files"
KINDS: dict[str, tuple[Path, Callable[[Path], Any]]] = {
    "learner": (OLD / "run" / "latest.safetensors", lambda path: MetaLearner.load(path, device="cpu")),
    "rl2": (OLD / "rl2" / "latest.safetensors", lambda path: MetaLearner.load(path, device="cpu")),
    "gymnasium": (OLD / "gymnasium.safetensors", lambda path: MetaLearner.load(path, device="cpu")),
    "few-shot": (OLD / "few_shot" / "latest.safetensors", lambda path: FewShotLearner.load(path, Sinusoid())),
    "policy": (OLD / "policy.safetensors", AdaptedPolicy.load),
    "recurrent": (OLD / "recurrent.safetensors", RecurrentPolicy.load),
}  # fmt: skip
