"""What an adaptation is judged by: the numbers of an evaluation, and what they are called in tables and files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number per task and step, and the share of successes beside it where there is one."""

    name: str
    """Of the number: "return" or "loss"."""
    higher_is_better: bool
    values: str
    """The plural of `name`: all tasks' numbers in the JSON file."""
    column: str
    """The mean over tasks in tables and in the CSV file."""
    digits: int
    """Decimals in tables."""
    interquartile: bool
    """Whether the mean of the middle half of the tasks is shown too: returns have outliers."""
    rate: str
    """Of the share: "success" or "accuracy"; its column in the CSV file."""
    rates: str
    """All tasks' shares in the JSON file."""
    rate_digits: int
    """Decimals of its percentage in tables."""
    tasks: str
    """What tells the tasks apart in the JSON file."""
    file: str
    """The stem of the files' names."""


RETURN = Measure("return", True, "returns", column="mean", digits=2, interquartile=True, rate="success",
                 rates="success_rates", rate_digits=0, tasks="tasks", file="adaptation")  # fmt: skip
"""Of reinforcement learning: undiscounted returns of episodes, and the share of episodes that were a success."""
LOSS = Measure("loss", False, "losses", column="loss", digits=3, interquartile=False, rate="accuracy",
               rates="accuracies", rate_digits=1, tasks="parameters", file="few_shot")  # fmt: skip
"""Of few-shot learning: losses on query sets, and the share of the examples that are predicted right."""
