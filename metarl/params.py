"""Parameters as data: dicts of tensors, with a leading task axis once every task has its own."""

from torch import Tensor

Params = dict[str, Tensor]


def expand(params: Params, n_tasks: int) -> Params:
    """One copy of the meta-parameters per task, [...] -> [K, ...]; gradients flow back to the original."""
    return {name: value.expand(n_tasks, *value.shape) for name, value in params.items()}
