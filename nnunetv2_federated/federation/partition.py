"""Partition the cases of one dataset into sites: seeded, disjoint and complete.

The unit that is dealt is a group: the cases of one patient, or a single case where patients are not
known. Each method gives every group to exactly one site, so that no case is lost, doubled or
separated from its patient.

==========  ========================================================================================
iid         groups shuffled and dealt out one by one; sites of equal size
stratified  the same within every class, so that each site has the same mix
dirichlet   per class, the shares of the sites are drawn from Dirichlet(alpha)
hybrid      a stratified share of every class for every site first, the rest by Dirichlet(alpha)
column      the site of each case stands in a column of the case table, for instance the hospital
==========  ========================================================================================
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field

from nnunetv2_federated.federation.choice import (
    DEFAULT_SEED,
    Allowed,
    Choice,
    Choices,
    Count,
    Seed,
    record,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import few

Sites = dict[str, list[str]]
"""Site name to its cases, both sorted."""

Method = Literal["iid", "stratified", "dirichlet", "hybrid", "column"]
METHODS: tuple[str, ...] = get_args(Method)

MAX_DRAWS = 100
"""How many partitions are drawn in search of one in which every site has `min_cases`."""

MIN_ALPHA = 1e-3
"""Below this a class sits at one site anyway, and gamma variates underflow to 0/0."""

_Alpha = Annotated[
    float,
    Field(ge=MIN_ALPHA, allow_inf_nan=False),
    Allowed(f"a finite number of at least {MIN_ALPHA}, for instance 0.5"),
]
_Share = Annotated[float, Field(ge=0, le=1), Allowed("0 to 1, for instance 0.3")]


@record
class PartitionSettings(Choices):
    """How to deal the cases of a dataset to sites."""

    group: ClassVar[str] = "sites"

    sites: Annotated[
        Count, Choice("number of sites; for --partition column those of the table", "N")
    ] = 3
    method: Annotated[
        Method,
        Choice(
            "how cases are dealt to sites: 'iid' at random, 'stratified' with the same mix of "
            "classes, 'dirichlet' with shares of each class drawn from Dirichlet(alpha), 'hybrid' "
            "with a stratified share of each class and the rest by Dirichlet(alpha), 'column' as "
            "the column --by of the case table says",
            flag="--partition",
            key="partition",
        ),
    ] = "hybrid"
    alpha: Annotated[
        _Alpha, Choice("Dirichlet concentration: small is skewed, large is even", "X")
    ] = 0.5
    stratified_fraction: Annotated[
        _Share, Choice("share of each class that 'hybrid' deals evenly", "SHARE")
    ] = 0.3
    min_cases: Annotated[Count, Choice("fewest cases of a site", "N")] = 1
    seed: Seed = DEFAULT_SEED


class _Group(NamedTuple):
    """Cases that stay together, and the class for which they count."""

    cases: tuple[str, ...]
    label: str


_Assignment = list[list[_Group]]  # one list per site
_Draw = Callable[[Sequence[_Group], PartitionSettings, np.random.Generator], _Assignment]


def partition_cases(
    cases: Sequence[str],
    settings: PartitionSettings,
    classes: Mapping[str, str] | None = None,
    patients: Mapping[str, str] | None = None,
    column: Mapping[str, str] | None = None,
) -> Sites:
    """Assign every case to one site.

    The result depends on the settings and on the arguments, never on the order of their items.

    Parameters
    ----------
    cases
        Case identifiers, each once.
    settings
        Method, number of sites, seed and the other parameters.
    classes
        Case to class; needed by stratified, dirichlet and hybrid. A patient counts for the most
        frequent class among its cases, on a tie for the alphabetically first.
    patients
        Case to patient; the cases of a patient go to the same site.
    column
        Case to site name; needed by column.

    Returns
    -------
    Sites
        ``site_01``, ``site_02``, ... or the values of the column, to their cases.

    Raises
    ------
    SettingsError
        If there are more sites than cases or patients, a case has no class, patient or site, or no
        draw gave every site `min_cases`.
    """
    repeated = sorted(case for case, count in Counter(cases).items() if count > 1)
    if repeated:
        raise SettingsError(
            f"cases are listed twice: {few(map(repr, repeated))}; list each case once"
        )
    if settings.method == "column":
        return _partition_by_column(sorted(cases), settings, patients, column)
    if settings.method == "iid":
        classes = dict.fromkeys(cases, "")
    else:
        classes = _complete(
            classes, cases, "class", "--case-table and --by, or use --partition iid"
        )
    groups = _group(cases, classes, patients)
    _check_enough(len(cases), len(groups), settings)
    width = max(2, len(str(settings.sites)))
    return {
        f"site_{number:0{width}d}": sorted(case for group in site for case in group.cases)
        for number, site in enumerate(_draw_until_filled(groups, settings), start=1)
    }


def check_sites(sites: Mapping[str, Sequence[str]], known: Iterable[str]) -> None:
    """Refuse sites, as written by hand in a sites file, on which no training is possible.

    Parameters
    ----------
    sites
        Site name to its cases.
    known
        All cases of the dataset; not all of them need a site.

    Raises
    ------
    SettingsError
        If there are no sites, or a site has an unusable name, no cases, an unknown case, or a case
        that another site has as well.
    """
    if not sites:
        raise SettingsError("there are no sites; name at least one site with its cases")
    known = set(known)
    owner: dict[str, str] = {}
    for site, cases in sites.items():
        _check_site_name(site)
        if not cases:
            raise SettingsError(f"site '{site}' has no cases; give it some or remove it")
        unknown = [case for case in cases if case not in known]
        if unknown:
            raise SettingsError(
                f"site '{site}' has cases that the dataset does not have: "
                f"{few(map(repr, unknown))}; use the identifiers of the dataset's {len(known)} "
                "cases"
            )
        for case in cases:
            if case in owner:
                where = "twice" if owner[case] == site else f"also at site '{owner[case]}'"
                raise SettingsError(
                    f"case '{case}' of site '{site}' is there {where}; give each case to one site"
                )
            owner[case] = site


def _draw_until_filled(groups: Sequence[_Group], settings: PartitionSettings) -> _Assignment:
    """Draw partitions from one generator until every site has at least `min_cases`."""
    draws: dict[str, _Draw] = {
        "iid": _stratified,  # the caller put all cases into one class
        "stratified": _stratified,
        "dirichlet": _dirichlet,
        "hybrid": _hybrid,
    }
    # PCG64 by name: NumPy may change what default_rng uses, and a seed must keep its meaning
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    fullest = 0
    for _ in range(MAX_DRAWS):
        drawn = draws[settings.method](groups, settings, rng)
        smallest = min(map(_num_cases, drawn))
        if smallest >= settings.min_cases:
            return drawn
        fullest = max(fullest, smallest)
    remedy = "lower --min-cases or --sites"
    if settings.method in {"dirichlet", "hybrid"}:
        remedy += f", or raise --alpha above {settings.alpha:g}"
    raise SettingsError(
        f"{MAX_DRAWS} draws of the {settings.method} partition into {settings.sites} sites gave "
        f"the smallest site at most {fullest} cases, wanted are {settings.min_cases}; {remedy}"
    )


def _stratified(
    groups: Sequence[_Group], settings: PartitionSettings, rng: np.random.Generator
) -> _Assignment:
    sites: _Assignment = [[] for _ in range(settings.sites)]
    for members in _by_class(groups):
        _deal(_shuffled(members, rng), sites)
    return sites


def _dirichlet(
    groups: Sequence[_Group], settings: PartitionSettings, rng: np.random.Generator
) -> _Assignment:
    sites: _Assignment = [[] for _ in range(settings.sites)]
    for members in _by_class(groups):
        _scatter(_shuffled(members, rng), sites, settings.alpha, rng)
    return sites


def _hybrid(
    groups: Sequence[_Group], settings: PartitionSettings, rng: np.random.Generator
) -> _Assignment:
    """Deal a stratified share of every class first, then scatter the rest by Dirichlet(alpha).

    The share is at least one group per site where the class has so many, whatever the fraction, so
    that no class is missing at any site.
    """
    sites: _Assignment = [[] for _ in range(settings.sites)]
    rests: list[list[_Group]] = []
    for members in _by_class(groups):
        shuffled = _shuffled(members, rng)
        share = max(round(settings.stratified_fraction * len(members)), settings.sites)
        _deal(shuffled[:share], sites)
        rests.append(shuffled[share:])
    for rest in rests:
        _scatter(rest, sites, settings.alpha, rng)
    return sites


def _deal(members: Sequence[_Group], sites: _Assignment) -> None:
    """Deal the groups of one class to the sites so that each gets about as many cases.

    Patients have different numbers of cases, so cases are counted, not groups. Large patients come
    first, so that small ones can level them out. Each group goes to the site with the fewest cases
    of this class, on a tie to the one with the fewest of all classes, then to the first: the
    left-over cases of several classes do not pile up at the first sites.
    """
    dealt = [0] * len(sites)
    total = [_num_cases(site) for site in sites]
    for group in sorted(members, key=lambda group: -len(group.cases)):
        index = min(range(len(sites)), key=lambda i: (dealt[i], total[i], i))
        sites[index].append(group)
        dealt[index] += len(group.cases)
        total[index] += len(group.cases)


def _scatter(
    members: Sequence[_Group], sites: _Assignment, alpha: float, rng: np.random.Generator
) -> None:
    """Spread groups of one class by shares of the sites drawn from Dirichlet(alpha).

    The Dirichlet partition of Hsu et al. 2019 (arXiv:1909.06335) in its widespread form, in which
    each class draws the shares of the sites (Yurochkin et al. 2019, arXiv:1905.12022), so that all
    cases are used; Hsu et al. draw the mix of classes of each site.
    """
    shares = rng.dirichlet(np.full(len(sites), alpha))
    # the borders are rounded, not the shares: so the parts add up to all groups
    borders = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int).tolist()
    starts, stops = [0, *borders], [*borders, len(members)]
    for site, start, stop in zip(sites, starts, stops, strict=True):
        site.extend(members[start:stop])


def _partition_by_column(
    cases: Sequence[str],
    settings: PartitionSettings,
    patients: Mapping[str, str] | None,
    column: Mapping[str, str] | None,
) -> Sites:
    column = _complete(column, cases, "site", "--case-table and --by")
    sites: Sites = {site: [] for site in sorted(set(column.values()))}
    for case in cases:
        sites[column[case]].append(case)
    check_sites(sites, cases)
    if patients is not None:
        for group in _group(cases, column, patients):
            visited = sorted({column[case] for case in group.cases})
            if len(visited) > 1:
                raise SettingsError(
                    f"patient '{patients[group.cases[0]]}' has cases at several sites "
                    f"({few(map(repr, visited))}), allowed is one; correct the column that --by "
                    "names or the column patient"
                )
    small = [site for site, members in sites.items() if len(members) < settings.min_cases]
    if small:
        raise SettingsError(
            f"sites with fewer than {settings.min_cases} cases: {few(map(repr, small))}; "
            "lower --min-cases or merge sites in the case table"
        )
    return sites


def _group(
    cases: Sequence[str], classes: Mapping[str, str], patients: Mapping[str, str] | None
) -> list[_Group]:
    """Put the cases of each patient together, sorted by patient."""
    if patients is None:
        return [_Group((case,), classes[case]) for case in sorted(cases)]
    patients = _complete(patients, cases, "patient", "the column patient, or remove that column")
    members: dict[str, list[str]] = {}
    for case in sorted(cases):
        members.setdefault(patients[case], []).append(case)
    groups = []
    for _, of_patient in sorted(members.items()):
        votes = Counter(classes[case] for case in of_patient)
        groups.append(
            _Group(tuple(of_patient), min(votes, key=lambda label: (-votes[label], label)))
        )
    return groups


def _by_class(groups: Sequence[_Group]) -> list[list[_Group]]:
    members: dict[str, list[_Group]] = {}
    for group in groups:
        members.setdefault(group.label, []).append(group)
    return [of_class for _, of_class in sorted(members.items())]


def _shuffled(members: Sequence[_Group], rng: np.random.Generator) -> list[_Group]:
    return [members[index] for index in rng.permutation(len(members)).tolist()]


def _num_cases(site: Iterable[_Group]) -> int:
    return sum(len(group.cases) for group in site)


def _complete(
    values: Mapping[str, str] | None, cases: Iterable[str], what: str, source: str
) -> dict[str, str]:
    """Return the values of exactly these cases; a blank value counts as missing."""
    values = values or {}
    missing = sorted(case for case in cases if not values.get(case, "").strip())
    if missing:
        raise SettingsError(
            f"{len(missing)} cases have no {what}: {few(map(repr, missing))}; give each one by "
            f"{source}"
        )
    return {case: values[case] for case in cases}


def _check_enough(num_cases: int, num_groups: int, settings: PartitionSettings) -> None:
    if settings.sites * settings.min_cases > num_cases:
        raise SettingsError(
            f"{settings.sites} sites with at least {settings.min_cases} cases each do not fit "
            f"{num_cases} cases; lower --sites or --min-cases"
        )
    if settings.sites > num_groups:
        raise SettingsError(
            f"{settings.sites} sites do not fit {num_groups} patients, whose cases stay together; "
            f"set --sites to {num_groups} or less"
        )


def _check_site_name(name: str) -> None:
    # the name of a site becomes the name of its folder
    if not name.strip() or name.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        raise SettingsError(
            f"site name {name!r} cannot be a folder name; use letters, digits, '_' and '-'"
        )
