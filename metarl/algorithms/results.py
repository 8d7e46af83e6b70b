"""What an algorithm returned, before anything is done with it: one line where it is not what the contract says.

`check_algorithm` looks deeper, and says how to fix what it finds.
"""

from typing import Any

from metarl.algorithms.contract import STATISTICS

_LOOK = "metarl.check_algorithm says what else the contract asks for"
RESULT = ("returns", "success_rates", "rollouts", "score", "policy_for")
"""What a result has (see `contract.Result`)."""


class ContractError(ValueError):
    """A function of an algorithm returned something else than its contract says."""


def checked_state(algorithm: Any, state: Any, function: str = "init") -> Any:
    """The state. Raises ContractError for anything else."""
    if not isinstance(state, algorithm.State):
        raise ContractError(f"{algorithm.__name__}: {function} returned a {type(state).__name__} where its State is "
                            f"wanted; {_LOOK}")  # fmt: skip
    return state


def checked_step(algorithm: Any, output: Any) -> tuple[Any, dict[str, Any]]:
    """The next state and statistics. Raises ContractError for anything else."""
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[1], dict):
        raise ContractError(f"{algorithm.__name__}: iteration returned a {type(output).__name__} where the next State "
                            f"and a dict of statistics are wanted; {_LOOK}")  # fmt: skip
    state, stats = output
    checked_state(algorithm, state, "iteration")
    if missing := [name for name in STATISTICS if name not in stats]:
        raise ContractError(f"{algorithm.__name__}: the statistics of iteration lack {', '.join(missing)}; {_LOOK}")
    return state, stats


def checked_result(algorithm: Any, result: Any) -> Any:
    """The result of an evaluation. Raises ContractError for what lacks a name."""
    if missing := [name for name in RESULT if not hasattr(result, name)]:
        raise ContractError(f"{algorithm.__name__}: evaluate returned a {type(result).__name__} without "
                            f"{', '.join(missing)}; {_LOOK}")  # fmt: skip
    return result
