"""Conversion of policies to and from stable-baselines3, and task families as its vector environments.

`docs/stable_baselines3.md` has examples. Imports `learner` and the rooms below it; nothing imports this room.
"""

from metarl.sb3.policies import from_sb3, to_sb3
from metarl.sb3.vec_env import FamilyVecEnv, as_vec_env

__all__ = ["FamilyVecEnv", "as_vec_env", "from_sb3", "to_sb3"]
