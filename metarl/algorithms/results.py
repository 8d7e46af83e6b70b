"""Checks of what an algorithm returned, before it is used: one-line errors for a violation of the contract.

`check_algorithm` checks more thoroughly and says how to fix what it finds.
"""

from typing import Any

from metarl.algorithms.contract import STATISTICS
from metarl.training.metrics import OWN

_LOOK = "metarl.check_algorithm says what else the contract asks for"
RESULT = ("returns", "success_rates", "rollouts", "score", "policy_for")
"""Names that a result must have (see `contract.Result`)."""


class ContractError(ValueError):
    """A function of an algorithm returned something other than its contract says."""


def checked_state(algorithm: Any, state: Any, function: str = "init") -> Any:
    """`state`, if it is one of the algorithm's states. Raises ContractError for anything else."""
    if not isinstance(state, algorithm.State):
        raise ContractError(f"{algorithm.__name__}: {function} returned a {type(state).__name__} instead of its "
                            f"State; {_LOOK}")  # fmt: skip
    return state


def checked_step(algorithm: Any, output: Any) -> tuple[Any, dict[str, Any]]:
    """The next state and statistics in `output`. Raises ContractError for anything else."""
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[1], dict):
        raise ContractError(f"{algorithm.__name__}: iteration returned a {type(output).__name__} instead of the next "
                            f"State and a dict of statistics; {_LOOK}")  # fmt: skip
    state, stats = output
    checked_state(algorithm, state, "iteration")
    if missing := [name for name in STATISTICS if name not in stats]:
        raise ContractError(f"{algorithm.__name__}: the statistics of iteration lack {', '.join(missing)}; {_LOOK}")
    if taken := [name for name in stats if OWN.fullmatch(str(name))]:
        raise ContractError(f"{algorithm.__name__}: the statistics of iteration have {', '.join(taken)}, which "
                            "training writes itself: give them another name")  # fmt: skip
    return state, stats


def checked_result(algorithm: Any, result: Any) -> Any:
    """`result`, if it has every name that a result needs. Raises ContractError otherwise."""
    if missing := [name for name in RESULT if not hasattr(result, name)]:
        raise ContractError(f"{algorithm.__name__}: evaluate returned a {type(result).__name__} without "
                            f"{', '.join(missing)}; {_LOOK}")  # fmt: skip
    return result
