"""Flower's strategies by the names of ``--strategy``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from flwr.serverapp import strategy as flwr_strategy
from flwr.serverapp.strategy import FedAvg

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.tasks import DEFAULT_PROXIMAL_MU

_AVERAGING: dict[str, type[FedAvg]] = {
    "fedavg": flwr_strategy.FedAvg,
    "fedavgm": flwr_strategy.FedAvgM,
    "fedprox": flwr_strategy.FedProx,
    "fedadam": flwr_strategy.FedAdam,
    "fedyogi": flwr_strategy.FedYogi,
    "fedadagrad": flwr_strategy.FedAdagrad,
}
"""These see the replies only through their weighted mean, which can be taken as they arrive."""

_ROBUST: dict[str, type[FedAvg]] = {
    "fedmedian": flwr_strategy.FedMedian,
    "fedtrimmedavg": flwr_strategy.FedTrimmedAvg,
    "krum": flwr_strategy.Krum,
}

_DEFAULTS: dict[str, dict[str, float]] = {
    "fedprox": {"proximal_mu": DEFAULT_PROXIMAL_MU},
    "fedavgm": {"server_momentum": 0.9},
}
"""Flower's own defaults make these two equal to FedAvg."""


def averages(name: str) -> bool:
    """Whether a strategy needs only the weighted mean of the replies."""
    return name in _AVERAGING


def build_strategy(name: str, options: Mapping[str, float]) -> FedAvg:
    """Construct a Flower strategy.

    Parameters
    ----------
    name
        One of ``settings.STRATEGIES``.
    options
        Keyword arguments of its own, as ``--strategy-option`` gives them.

    Raises
    ------
    SettingsError
        If the strategy has no such option, or refuses its value.
    """
    cls = {**_AVERAGING, **_ROBUST}[name]
    common = set(inspect.signature(FedAvg.__init__).parameters)
    parameters = inspect.signature(cls.__init__).parameters
    own = sorted(set(parameters) - common)
    for option in options:
        if option not in own:
            raise SettingsError(
                f"--strategy-option {option}: {name} has {', '.join(own) if own else 'no options'}."
            )
        if parameters[option].annotation is int and type(options[option]) is not int:
            raise SettingsError(f"--strategy-option {option}={options[option]}: a whole number.")
    arguments = {**_DEFAULTS.get(name, {}), **options}
    if arguments.get("proximal_mu", 0) < 0:
        raise SettingsError(
            f"--strategy-option proximal_mu={arguments['proximal_mu']}: at least 0."
        )
    if arguments.get("num_malicious_nodes", 0) < 0:
        raise SettingsError(
            f"--strategy-option num_malicious_nodes={arguments['num_malicious_nodes']}: at least 0."
        )
    try:
        return cls(
            min_train_nodes=1,
            min_available_nodes=1,
            **arguments,  # type: ignore[arg-type]  # options are checked above
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"--strategy-option {dict(options)}: {name} says: {error}") from error


def check_replies(name: str, options: Mapping[str, float], fewest: int) -> None:
    """Refuse a robust strategy that tolerates nothing with so few replies in a round.

    Parameters
    ----------
    name, options
        As :func:`build_strategy` takes them.
    fewest
        Replies with which a round may be aggregated.

    Raises
    ------
    SettingsError
        If it would trim no reply, be a plain mean, or have too few honest neighbours to choose by
        (krum: more than 2 f + 2 replies, Blanchard et al. 2017, arXiv:1703.02757).
    """
    strategy = build_strategy(name, options)
    why = None
    if isinstance(strategy, flwr_strategy.FedTrimmedAvg) and int(strategy.beta * fewest) < 1:
        why = f"beta={strategy.beta} trims none of them; beta times their number must be 1 or more"
    elif isinstance(strategy, flwr_strategy.Krum) and fewest < 2 * strategy.num_malicious_nodes + 3:
        needed = 2 * strategy.num_malicious_nodes + 3
        why = f"num_malicious_nodes={strategy.num_malicious_nodes} needs {needed}"
    elif isinstance(strategy, flwr_strategy.FedMedian) and fewest < 3:
        why = "their median is their mean"
    if why is not None:
        raise SettingsError(
            f"--strategy {name}: a round may have no more than {fewest} replies, and {why}. Use "
            "more sites, a larger --sites-per-round or --min-replies, or another strategy."
        )
