"""The settings that a tuning varies, and the values that each may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.settings import FederationSettings

Value = str | int | float
Values = Mapping[str, Value]
"""Values of the parameters that a trial has, by name."""


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool
    """Whether its logarithm is what is drawn evenly."""
    whole: bool
    """Whether only whole numbers are meant."""

    def has(self, value: object) -> bool:
        """Whether it has a value."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (not self.whole or float(value).is_integer())


@dataclass(frozen=True)
class OneOf:
    """Some values."""

    values: tuple[Value, ...]

    def has(self, value: object) -> bool:
        """Whether it has a value."""
        return value in self.values


@dataclass(frozen=True)
class Parameter:
    """A setting, or an option of a strategy, that a tuning varies."""

    name: str
    """Name of the setting, or ``STRATEGY.OPTION``."""
    values: Range | OneOf

    @property
    def strategy(self) -> str | None:
        """Strategy whose option it is; ``None`` for a setting."""
        head, dot, _ = self.name.partition(".")
        return head if dot else None

    @property
    def option(self) -> str:
        """Name of the option, or of the setting."""
        return self.name.rpartition(".")[2]

    def value_in(self, settings: FederationSettings) -> Any:  # noqa: ANN401  # of any setting
        """Return what settings have for it; ``None`` where they leave it open."""
        if self.strategy is None:
            return getattr(settings, self.name)
        return settings.strategy_options.get(self.option)


@dataclass(frozen=True)
class SearchSpace:
    """What a tuning varies; read by :func:`.search_table.read_search_space`."""

    parameters: tuple[Parameter, ...]

    def of(self, strategy: str) -> tuple[Parameter, ...]:
        """Return the parameters that trials of a strategy have."""
        return tuple(p for p in self.parameters if p.strategy in (None, strategy))

    def strategies(self, base: FederationSettings) -> tuple[str, ...]:
        """Return the strategies of its trials."""
        for parameter in self.parameters:
            if parameter.name == "strategy" and isinstance(parameter.values, OneOf):
                return tuple(map(str, parameter.values.values))
        return (base.strategy,)

    def apply(self, base: FederationSettings, values: Values) -> FederationSettings:
        """Return the settings of a trial, before its rounds are made those of equal work.

        Parameters
        ----------
        base
            Settings of the default trial; its options of a strategy stay with that strategy.
        values
            Value of each parameter of the trial's strategy.
        """
        strategy = values.get("strategy", base.strategy)
        options: dict[str, Value] = {}
        if strategy == base.strategy:
            options.update(base.strategy_options)
        own = {p.option: values[p.name] for p in self.parameters if p.strategy == strategy}
        changes: dict[str, Any] = {n: v for n, v in values.items() if "." not in n}
        if "strategy" in values or own:
            changes["strategy_options"] = {**options, **own}
        return base.changed(**changes)

    def values_of(self, settings: FederationSettings) -> dict[str, Value]:
        """Return the values by which :meth:`apply` gives settings.

        Raises
        ------
        SettingsError
            If one is not in the space.
        """
        found: dict[str, Value] = {}
        for parameter in self.of(settings.strategy):
            value = parameter.value_in(settings)
            if not parameter.values.has(value):
                raise SettingsError(f"{parameter.name} {value}: is not in the space of the study.")
            found[parameter.name] = value
        return found

    def to_plain(self) -> dict[str, Any]:
        """Return plain JSON, by which two spaces are compared."""
        return {
            p.name: list(p.values.values) if isinstance(p.values, OneOf) else asdict(p.values)
            for p in self.parameters
        }
