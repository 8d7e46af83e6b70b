"""Suggestions in error messages about unknown names: what was probably meant, including the terms of other packages.

Users of stable-baselines3, garage, learn2learn and the like use the names they know; the name here with the most
similar spelling is then often the wrong one (`learning_rate` is not `lr_in_std`).
"""

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ALGORITHMS = (
    "maml_trpo", "maml_ppo", "maml_vpg", "promp", "e_maml", "fomaml", "reptile", "meta_sgd", "maml_plus_plus", "anil",
    "cavia", "rl2",
)  # fmt: skip
"""The package's own algorithms, in the order in which they are listed."""

_FEW = 16
"""Up to this many names are listed in full."""
_SURE, _SIMILAR = 0.75, 0.5
"""Similarity (by difflib) above which a single name is suggested, and below which none is."""

_INNER = "the inner loop's step size is {inner_lr}"
_SIZES, _STEPS = "the sizes of inner steps are {step_sizes}", "the number of inner steps is {steps}"
_BATCH = ("the tasks of a meta-iteration are {n_tasks}", "the episodes of each task {episodes}",
          "the trials of each task {trials}")  # fmt: skip
_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "learning_rate lr step_size alpha inner_lr": (_SIZES, _INNER, "the outer loop's step size is {outer_lr}",
                                         "the outer loop's TRPO step is bounded by {max_kl}"),
    "meta_lr meta_learning_rate beta outer_learning_rate outer_step_size": (
        "the outer loop's step size is {outer_lr}", "the outer loop's TRPO step is bounded by {max_kl}"),
    "fast_lr adapt_lr adaptation_lr inner_learning_rate inner_step_size": (_SIZES, _INNER),
    "num_inner_steps n_inner_steps adapt_steps adaptation_steps num_updates num_inner_grad_steps inner_updates "
    "inner_steps": (_STEPS, "the number of inner steps is {inner_steps}", "a trial has {trial_episodes} episodes"),
    "batch_size meta_batch_size num_tasks task_batch_size tasks_per_batch n_envs num_envs":
        (*_BATCH, "the parts into which they are cut for Adam {minibatches}"),
    "n_steps num_steps rollout_length rollouts_per_task num_rollouts rollouts n_rollouts shots":
        (_STEPS, *_BATCH, "the episodes of a trial {trial_episodes}", "an episode has the family's horizon steps"),
    "policy_kwargs net_arch hidden_sizes hidden_size hidden_dim layers num_layers units":
        ("the hidden units of the network are {hidden}", "their activation is {activation}"),
    "ent_coef entropy entropy_coeff entropy_bonus": ("the entropy's weight is {entropy_coef}",),
    "vf_coef value_loss_coef": ("the value loss's weight is {value_coef}",),
    "clip_range clip_eps clip_ratio eps_clip ratio_clip": ("PPO's clipping is {clip}",),
    "n_epochs ppo_epochs num_epochs update_epochs": ("the passes over the data are {epochs}",),
    "target_kl kl delta trust_region step_kl max_constraint_val": ("the bound on the KL divergence is {max_kl}",),
    "discount gamma_discount discount_factor": ("the discount is {gamma}",),
    "lam lmbda tau gae": ("lambda is {gae_lambda}",),
    "std log_std init_log_std log_std_init exploration_noise": ("the initial standard deviation is {init_std}",),
    "normalize norm_obs normalize_observations vec_normalize": ("observations are normalised by {normalize_obs}",),
    "recurrent rnn lstm gru": ("the algorithm with a recurrent policy is rl2",),
}  # fmt: skip
"""Name of a setting in other packages -> parts of the answer; parts about settings that do not exist are omitted."""

_ARGUMENTS: dict[str, tuple[str, str]] = {
    "total_timesteps timesteps n_timesteps num_timesteps n_iterations num_iterations n_itr epochs max_iterations "
    "iterations n_iter num_epochs steps_total": (
        "learn(iterations) counts meta-iterations, each of n_tasks x episodes x horizon environment steps for every "
        "stage", "--iterations counts meta-iterations, each of n_tasks x episodes x horizon steps for every stage"),
    "verbose progress progress_bar log_interval": ("learn(progress_bar=True) shows progress",
                                                   "--progress and --no-progress show progress or not"),
    "tensorboard_log log_dir logdir save_dir output_dir run_dir exp_name experiment_name save_path": (
        "learn(run_dir=...) writes metrics, TensorBoard events and checkpoints", "--out is the run directory, with "
        "metrics, TensorBoard events and checkpoints"),
    "env environment env_id env_name task gym_env": (
        "the environments are those of the task family, the second argument",
        "the environments are those of the task family, the second word"),
    "horizon max_steps max_episode_steps episode_length max_path_length max_ep_len time_limit": (
        "episodes have the family's horizon, make(id, horizon=...)",
        "episodes have the family's horizon, --family-kwargs horizon=..."),
    "callback eval_every eval_tasks eval_step_sizes checkpoint_every": ("it is an argument of learn", ""),
    "gpu cuda use_gpu use_cuda": ("the GPU is chosen by device=\"cuda\"", "the GPU is chosen by --device cuda"),
    "num_workers n_workers n_jobs num_cpu": ("processes are chosen by workers=", "processes are chosen by --workers"),
    "random_state random_seed": ("it is seed=", "it is --seed"),
}  # fmt: skip
"""Name in other packages of something that is not a setting here -> the answer in Python and on the command line."""

_ALGORITHMS: dict[str, str] = {
    "maml": "MAML has a name for each outer step: maml_trpo (robust), maml_ppo, maml_vpg",
    "ppo trpo vpg a2c reinforce pg": "it is no meta-learner; with it as the outer step there are maml_{same}, and "
    "promp and rl2 with PPO",
    "sac td3 ddpg dqn pearl varibad ad dpt mate snail lstm gru": "it is not in this package; a recurrent policy that "
    "adapts within its episodes is rl2",
    "maml++ mamlpp": "it is maml_plus_plus",
    "metasgd msgd": "it is meta_sgd",
    "rl^2 rl² rlsquared": "it is rl2",
    "emaml": "it is e_maml",
    "lvc dice": "it is an inner gradient of the other algorithms: inner_gradient={same!r}",
}


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the most similar known names, or all of them if they are
    few."""
    known = list(known)
    close = nearest(str(word), known)
    if len(close) == 1:
        return f"; did you mean {close[0]!r}?"
    if close:
        return f"; did you mean {', '.join(map(repr, close[:-1]))} or {close[-1]!r}?"
    return f"; known are {known}" if len(known) <= _FEW else f"; none of the {len(known)} known names is like it"


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` names that resemble or contain `word`, the most similar first; only the first if it is very similar."""
    plain = {_plain(name): name for name in known}
    own = _plain(word)
    likeness = {name: difflib.SequenceMatcher(None, own, name).ratio() for name in plain}
    ranked = sorted(plain, key=lambda name: (-likeness[name], name))
    if ranked and likeness[ranked[0]] >= _SURE:
        return [plain[ranked[0]]]
    base = re.sub(r"_v\d+$", "", own)  # of CartPole-v1, whose family is CartPoleParams-v0
    found = [name for name in ranked if len(base) > 2 and name.startswith(base)]
    found = found or [name for name in ranked if likeness[name] >= _SIMILAR or (len(own) > 2 and own in name)]
    return [plain[name] for name in found[:n]]


def setting_hint(name: str, known: Iterable[str], command_line: bool = False) -> str:
    """The end of a message about a setting that does not exist, among those that are `known`."""
    known = list(known)
    settings = {setting.replace("-", "_"): setting for setting in known}

    def shown(setting: str) -> str:
        return f"--{settings[setting]}" if command_line else settings[setting]

    for kind in (_ELSEWHERE, _ARGUMENTS):
        for words, answers in kind.items():
            if _plain(name) not in map(_plain, words.split()):
                continue
            if kind is _ARGUMENTS:
                parts = [answers[command_line]]
            else:
                parts = [part for part in answers if all(n in settings for n in re.findall(r"{(\w+)}", part))]
                parts = [part.format_map({n: shown(n) for n in settings}) for part in parts]
            if any(parts):
                return "; " + ", ".join(filter(None, parts))
    return did_you_mean(name, known)


def config_from(kind: Callable[..., R], values: Mapping[str, Any], of: str, remedy: str = "") -> R:
    """`kind`, a dataclass of the settings of `of`, from a mapping. Raises ValueError for a setting that `of` does not
    have, naming the nearest known one; `remedy` ends the message."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ValueError(f"{of} has no setting {name!r}{setting_hint(name, known)}{remedy}")
    return kind(**values)


def algorithm_hint(name: object, known: Iterable[str]) -> str:
    """The end of a message about an algorithm that does not exist."""
    if not isinstance(name, str):
        return f"; known are {list(known)}, as words"
    if re.search(r"-v\d+$", name) or name.startswith(("gym:", "visible:")):
        return f"; it looks like a task family, and the algorithm comes first: maml_trpo {name}"
    for words, answer in _ALGORITHMS.items():
        if name.lower().replace("-", "_") in words.split():
            same = name.lower() if name.lower() in ("ppo", "trpo", "vpg", "lvc", "dice") else "trpo"
            return "; " + answer.format(same=same)
    return did_you_mean(name, known)


def known_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose TypeError for an unknown keyword says what was probably meant."""
    parameters = inspect.signature(function).parameters
    names = [name for name in parameters if name != "self"]

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        unknown: Mapping[str, object] = {name: value for name, value in kwargs.items() if name not in parameters}
        for name in unknown:
            raise TypeError(f"{function.__name__} has no argument {name!r}{setting_hint(name, names)}")
        return function(*args, **kwargs)

    return wrapped


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
