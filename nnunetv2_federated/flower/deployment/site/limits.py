"""What a site gives at most, of one dataset, over all runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.settings import FederationSettings

_NUMBERS = ("max_hours", "max_gpu_gb", "max_epsilon")
"""Limits that need not be whole numbers."""


@dataclass(frozen=True)
class Spent:
    """What a site has given so far of one dataset, over all runs; or to one study."""

    rounds: int = 0
    hours: float = 0.0
    evaluations: int = 0
    gigabytes: float = 0.0
    """Of weights that came and left; counted for studies."""


@dataclass(frozen=True)
class Limits:
    """What a site gives at most, of one dataset, over all runs; ``None`` for no limit."""

    max_rounds: int | None = None
    max_local_epochs: int | None = None
    """Local epochs of one round."""
    max_hours: float | None = None
    """Hours of training and validation."""
    max_evaluations: int | None = None
    """Validations of models that are not trained further: the last round's, the full one, that of
    the personal model, and evaluations of trained models."""
    max_gpu_gb: float | None = None
    max_epsilon: float | None = None
    """Epsilon that all trainings together may cost a patient; none without differential privacy."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            kinds = (int, float) if name in _NUMBERS else (int,)
            fits = value is None or (type(value) in kinds and 0 < value < float("inf"))
            if not fits:
                number = "number" if float in kinds else "whole number"
                raise SettingsError(f"{name} {value}: must be a {number} above 0; or leave it out.")

    def check_federation(
        self, settings: FederationSettings, spent: Spent, to_come: int, site: str
    ) -> None:
        """Raise ``SiteError`` if a federation wants more than the site has left to give.

        Parameters
        ----------
        settings
            Settings of the federation.
        spent
            What the site has given of the dataset so far, over all runs.
        to_come
            Rounds of all its trainings that the site has not given yet.
        site
            Name of the site.
        """
        if self.max_epsilon is not None and not settings.private:
            raise SiteError(
                f"site {site} trains with differential privacy only (its max_epsilon is "
                f"{self.max_epsilon:g}), the federation has none: start it with --dp-epsilon"
            )
        most = self.max_local_epochs
        if most is not None and settings.local_epochs > most:
            raise SiteError(
                f"site {site} takes part in at most {most} local_epochs, the federation has "
                f"{settings.local_epochs}"
            )
        wanted = max(0, to_come)
        if self.max_rounds is not None and spent.rounds + wanted > self.max_rounds:
            raise SiteError(
                f"site {site} takes part in at most {self.max_rounds} rounds with this dataset; "
                f"{spent.rounds} are spent, the federation has {wanted} to come"
            )

    def check_step(self, spent: Spent, site: str, *, is_round: bool) -> None:
        """Raise ``SiteError`` if not even one more round, or evaluation, may be given."""
        if is_round:
            self._check("rounds", spent.rounds, self.max_rounds, site)
        else:
            self._check("evaluations", spent.evaluations, self.max_evaluations, site)
        self.check_hours(spent, site)

    def check_hours(self, spent: Spent, site: str) -> None:
        """Raise ``SiteError`` if the hours are spent."""
        self._check("hours", spent.hours, self.max_hours, site)

    @staticmethod
    def _check(what: str, spent: float, most: float | None, site: str) -> None:
        if most is not None and spent >= most:
            raise SiteError(f"site {site} has given its {most:g} {what} with this dataset")
