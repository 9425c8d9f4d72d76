"""From what the user chose to a run."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.options import Options, partition_settings, pick
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import RUN_FILE, Run, SiteCases, read_run
from nnunetv2_federated.federation.settings import FederationSettings, setting_names
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, check_listening
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_configuration,
    check_planned,
    load_dataset,
)
from nnunetv2_federated.nnunet.data.folds import draw_by_table
from nnunetv2_federated.nnunet.data.site_cases import (
    partition_dataset,
    read_sites_file,
    saved_partition,
    sites_from_datasets,
    sites_of_fold,
)
from nnunetv2_federated.nnunet.training.result_folder import federation_folder, no_earlier_run
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

DEFAULT_CREDENTIALS = Path("credentials", "server")

_PARTITION_FLAGS = (
    "sites",
    "partition",
    "alpha",
    "stratified_fraction",
    "min_cases",
    "case_table",
    "by",
)

_OF_THE_BOUND = ("max_update_norm", "oversized_update")
"""What may change when a run goes on: otherwise one that refused a site would refuse it again."""


def build_run(
    options: Options, dataset_name: str | None, configuration: str, fold: int | str, device: str
) -> Run:
    """Resolve every choice, or find the first that cannot be.

    Raises
    ------
    SettingsError
        With one line about what came, what is allowed and how to mend it.
    """
    plans = options.get("plans", "nnUNetPlans")
    dataset = load_dataset(str(dataset_name), plans)
    trainer = options.get("trainer", "nnUNetTrainerFederated")
    options = _with_defaults(options, federated_trainer(trainer), dataset)
    settings = _settings(options)
    remote = remote_sites(options)
    if remote:
        check_planned(dataset, configuration)
    else:
        check_configuration(dataset, configuration)
    weights = options.get("pretrained_weights")
    if weights is not None and not Path(weights).is_file():
        raise SettingsError(f"-pretrained_weights {weights}: no such file.")
    run = Run(
        dataset=dataset.name,
        configuration=configuration,
        fold=fold,
        trainer=trainer,
        plans_name=plans,
        device=device,
        settings=settings if not options.get("c") else FederationSettings(),
        sites=() if remote else _sites(options, dataset, configuration, fold),
        disable_checkpointing=bool(options.get("disable_checkpointing")),
        pretrained_weights=weights,
        remote_sites=remote,
        run_id=uuid.uuid4().hex if remote else "",
    )
    if options.get("c"):
        return _continued(options, run)
    if options.get("val") and (federation_folder(run) / RUN_FILE).is_file():
        return dataclasses.replace(read_run(federation_folder(run)), device=device)
    return run


def remote_sites(options: Options) -> tuple[str, ...]:
    """Names of the sites on other machines; none without ``--server``.

    Raises
    ------
    SettingsError
        If a site has no key, or flags for sites on this machine are given too.
    """
    if not networked(options):
        return ()
    for name in (*_chosen(options), "backend", "prepare_only"):
        if name in options:
            raise SettingsError(
                f"--{name.replace('_', '-')} with --server: the sites are on other machines, each "
                "with a dataset of its own; keep one of the two."
            )
    return sites_with_keys(options)


def networked(options: Options) -> bool:
    """Whether the sites are on other machines.

    Raises
    ------
    SettingsError
        If a flag makes sense only then, and they are not.
    """
    for name in ("credentials", "listen", "remote_sites", "superlink_database", "force"):
        if name in options and "server" not in options:
            raise SettingsError(f"--{name.replace('_', '-')}: is for --server HOST:PORT only.")
    return "server" in options


def sites_with_keys(options: Options) -> tuple[str, ...]:
    """Return the remote sites that were chosen, by default all that have a key.

    Raises
    ------
    SettingsError
        If one has none.
    """
    known = server_settings(options).site_keys()
    chosen = tuple(sorted(options.get("remote_sites", known)))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SettingsError(
            f"--remote-sites {unknown[0]}: has no key; known are {', '.join(known)}."
        )
    return chosen


def server_settings(options: Options) -> ServerSettings:
    """Where the server listens, and with which credentials.

    Raises
    ------
    SettingsError
        If it would be open to others than its sites, or its keys are.
    """
    public = Address.of(options["server"])
    default = public if public.loopback else public.behind_proxy
    listen = Address.of(options["listen"]) if "listen" in options else default
    check_listening(listen, force=bool(options.get("force")))
    settings = ServerSettings(
        Path(options.get("credentials", DEFAULT_CREDENTIALS)),
        listen,
        options.get("superlink_database"),
    )
    settings.check()
    return settings


def _with_defaults(options: Options, trainer: type, dataset: Dataset) -> Options:
    """Add the flags a trainer suggests in its attribute ``federation_defaults``.

    Its sites only where nothing else says who has which cases.
    """
    defaults: Mapping[str, Any] = getattr(trainer, "federation_defaults", {})
    if options.get("c") or options.get("val"):
        return options
    if _chosen(options) or saved_partition(dataset).is_file():
        of_its_sites = (*_PARTITION_FLAGS, "sites_per_round")
        defaults = {k: v for k, v in defaults.items() if k not in of_its_sites}
    return {**defaults, **options}


def _settings(options: Options) -> FederationSettings:
    chosen = pick(options, setting_names())
    given = chosen.get("strategy_options", {})
    if isinstance(given, list):
        chosen["strategy_options"] = dict(_key_value(text) for text in given)
    return FederationSettings(**chosen)


def _key_value(text: str) -> tuple[str, float]:
    key, separator, value = text.partition("=")
    try:
        number = int(value) if value.lstrip("+-").isdecimal() else float(value)
    except ValueError:
        separator = ""
        number = 0
    if not separator:
        raise SettingsError(f"--strategy-option {text}: write key=number, as in proximal_mu=0.1.")
    return key, number


def _chosen(options: Options) -> list[str]:
    """Return the flags that say which cases a site has: those of a partition count as one."""
    explicit = [name for name in ("site_datasets", "sites_file") if name in options]
    return explicit + [name for name in _PARTITION_FLAGS if name in options][:1]


def _sites(
    options: Options, dataset: Dataset, configuration: str, fold: int | str
) -> tuple[SiteCases, ...]:
    """Sites from datasets, a file, flags, the saved partition, or three hybrid sites."""
    chosen = _chosen(options)
    draw_by_table(dataset, configuration, [fold], options.get("case_table"))
    if len(chosen) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in chosen)
        raise SettingsError(f"{flags} both say which cases a site has: keep one of them.")
    if "site_datasets" in options:
        names: Sequence[str] = [str(name) for name in options["site_datasets"]]
        plans = options.get("plans", "nnUNetPlans")
        return sites_from_datasets(names, configuration, fold, plans)
    if "sites_file" in options:
        sites = read_sites_file(options["sites_file"])
    elif not chosen and saved_partition(dataset).is_file():
        sites = read_sites_file(saved_partition(dataset))
    else:
        sites, _ = partition_dataset(
            dataset,
            configuration,
            partition_settings(options),
            options.get("case_table"),
            options.get("by"),
        )
    return sites_of_fold(dataset, configuration, fold, sites)


def _same_sites(options: Options, run: Run, stored: Run) -> bool:
    """Whether the remote sites are those of the stored run, but for those revoked since."""
    if not stored.remote_sites or not run.remote_sites:
        return run.remote_sites == stored.remote_sites
    known = server_settings(options).site_keys()
    return set(run.remote_sites) == {name for name in stored.remote_sites if name in known}


def _continued(options: Options, run: Run) -> Run:
    """Return the run as it was started; a flag that says otherwise is refused."""
    folder = federation_folder(run)
    if not (folder / RUN_FILE).is_file():
        raise no_earlier_run(folder)
    stored = read_run(folder)
    asked = _settings(options)
    bound = pick(options, _OF_THE_BOUND)
    for name in pick(options, setting_names()):
        if name in ("resident_trainers", *bound):
            continue
        if getattr(asked, name) != getattr(stored.settings, name):
            raise SettingsError(
                f"--{name.replace('_', '-')} {getattr(asked, name)}: the run to continue has "
                f"{getattr(stored.settings, name)}; leave the flag out, or start anew without --c."
            )
    if not _same_sites(options, run, stored):
        raise SettingsError(
            f"--c: the run to continue has {', '.join(stored.remote_sites) or 'no'} remote sites; "
            "name the same."
        )
    if _chosen(options) and run.sites != stored.sites:
        raise SettingsError(
            "--c: these sites are not those of the run to continue; leave the site flags out."
        )
    settings = dataclasses.replace(stored.settings, **bound)
    return dataclasses.replace(stored, device=run.device, settings=settings)
