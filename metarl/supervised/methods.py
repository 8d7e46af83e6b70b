"""Published methods by name, as settings of `metarl.supervised.maml`."""

from typing import Any


def method(name: str, iterations: int) -> dict[str, Any]:
    """The settings of a published method, for a training run of this many iterations:

    - "maml": Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, algorithm 2
    - "fomaml": its first-order form (section 5.2 there)
    - "reptile": Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999, algorithm 2
    - "anil": Raghu et al. 2020, https://arxiv.org/abs/1909.09157, section 4
    - "meta_sgd": Li et al. 2017, https://arxiv.org/abs/1707.09835, algorithm 1
    - "maml_plus_plus": Antoniou, Edwards, Storkey 2019, https://arxiv.org/abs/1810.09502, section 4, without
      its treatment of batch norm. The paper anneals the multi-step loss over the first 15% of training and uses
      first-order derivatives for half of it; here these are a fifth and a tenth.
    - "pretrained": one network trained on all tasks jointly, as a baseline

    Raises:
        ValueError: no method has that name.
    """
    methods: dict[str, dict[str, Any]] = {
        "maml": {},
        "fomaml": {"first_order": True},
        "reptile": {"outer": "reptile", "inner_steps": 10, "outer_lr": 1.0, "anneal_over": iterations},
        "anil": {"adapts": "head"},
        "meta_sgd": {"learned_lr": "per_parameter"},
        "maml_plus_plus": {
            "inner_steps": 5,
            "learned_lr": "per_layer_and_step",
            "first_order_until": iterations // 10,
            "multi_step_until": iterations // 5,
            "anneal_over": iterations,
        },
        "pretrained": {"inner_steps": 0},
    }
    if name not in methods:
        raise ValueError(f"method must be one of {list(methods)}, got {name!r}")
    return methods[name]
