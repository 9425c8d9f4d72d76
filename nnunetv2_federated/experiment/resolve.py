"""Resolve what a user chose to a run."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

from nnunetv2_federated.experiment.choices import (
    DEALING,
    Checkpoints,
    DealChoices,
    ModelChoices,
    Networked,
    SiteChoices,
    SiteDatasets,
    TrainChoices,
)
from nnunetv2_federated.federation.choice import Choices, names_of, spell_flag, spell_key
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import PartitionSettings, Sites
from nnunetv2_federated.federation.run import RUN_FILE, Run, SiteCases, read_run
from nnunetv2_federated.federation.settings import CHANGEABLE, OF_THE_BOUND, FederationSettings
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
from nnunetv2_federated.nnunet.device import choose_device
from nnunetv2_federated.nnunet.process import prepare_process
from nnunetv2_federated.nnunet.training.ranks import check_gpus
from nnunetv2_federated.nnunet.training.result_folder import federation_folder, no_earlier_run
from nnunetv2_federated.nnunet.training.trainer import federated_trainer


def resolve(choices: TrainChoices) -> Run:
    """Resolve every choice, or find the first that cannot be.

    Parameters
    ----------
    choices
        What to train. With ``c`` or ``val``, the run that began with these choices is returned.

    Raises
    ------
    SettingsError
        With one line about what came, what is allowed and how to fix it.
    """
    if choices.folds is not None:
        raise SettingsError("several trainings (configurations, folds) are a queue, not a run.")
    prepare_process()
    _check_checkpoints(choices)
    device = choose_device(choices.device)
    check_gpus(choices.num_gpus, device)
    dataset = load_dataset(choices.dataset, choices.plans)
    choices = _with_defaults(choices, dataset)
    remote = remote_sites(choices)
    if remote:
        check_planned(dataset, choices.configuration)
    else:
        check_configuration(dataset, choices.configuration)
    run = Run(
        dataset=dataset.name,
        configuration=choices.configuration,
        fold=choices.fold,
        trainer=choices.trainer,
        plans_name=choices.plans,
        device=device,
        settings=FederationSettings() if choices.c else choices.part(FederationSettings),
        sites=() if remote else _sites(choices, dataset),
        disable_checkpointing=choices.disable_checkpointing,
        pretrained_weights=weights_file(choices),
        remote_sites=remote,
        run_id=uuid.uuid4().hex if remote else "",
        npz=bool(remote) and choices.npz,
        num_gpus=choices.num_gpus,
    )
    if choices.c:
        return _continued(choices, run)
    if choices.val and (federation_folder(run) / RUN_FILE).is_file():
        return dataclasses.replace(read_run(federation_folder(run)), device=device)
    return run


def resolve_sites(
    choices: SiteChoices, dataset: Dataset, configuration: str, trainer: str
) -> Sites:
    """Return the sites of a dataset: of a sites file, the saved partition, or dealt anew.

    Parameters
    ----------
    choices
        A chosen sites file is taken; the saved partition unless a field of :data:`.DEALING` is
        chosen; else the cases are dealt.
    dataset
        Dataset whose cases the sites share.
    configuration
        Configuration whose preprocessed cases are dealt.
    trainer
        Name of the trainer, which may suggest how to deal them.

    Raises
    ------
    SettingsError
        If a file and a partition are both chosen, the file cannot be read, or the partition is not
        possible.
    """
    chosen = _sites_chosen(choices)
    if len(chosen) > 1:
        raise SettingsError(
            f"{' and '.join(chosen)} both say which cases a site has: keep one of them."
        )
    if choices.sites_file is not None:
        return read_sites_file(choices.sites_file)
    if not chosen and saved_partition(dataset).is_file():
        return read_sites_file(saved_partition(dataset))
    suggested = {} if chosen else suggestions(trainer, DealChoices)
    own = DealChoices(**{**suggested, **choices.part(DealChoices).given()})
    sites, _ = partition_dataset(
        dataset, configuration, own.part(PartitionSettings), own.case_table, own.by
    )
    return sites


def suggestions(trainer: str, record: type[Choices]) -> dict[str, Any]:
    """Return what a trainer suggests for the fields of a record.

    A trainer suggests by its attribute ``federation_defaults``, spelled as in a settings file.
    """
    suggested: Mapping[str, Any] = getattr(federated_trainer(trainer), "federation_defaults", {})
    keys = {spell_key(record, name): name for name in names_of(record)}
    return {keys[key]: value for key, value in suggested.items() if key in keys}


def weights_file(choices: ModelChoices) -> str | None:
    """Return the checkpoint to start from.

    Raises
    ------
    SettingsError
        If it does not exist.
    """
    if choices.pretrained_weights is None:
        return None
    if not choices.pretrained_weights.is_file():
        raise SettingsError(f"-pretrained_weights {choices.pretrained_weights}: no such file.")
    return str(choices.pretrained_weights)


def remote_sites(choices: TrainChoices) -> tuple[str, ...]:
    """Return the names of the sites on other machines; none without ``--server``.

    Raises
    ------
    SettingsError
        If a site has no key, or choices for sites on this machine are made, too.
    """
    if not networked(choices):
        return ()
    local = [name for name in ("backend", "prepare_only") if name in choices.chosen]
    for flag in (*_sites_chosen(choices), *(spell_flag(TrainChoices, name) for name in local)):
        raise SettingsError(
            f"{flag} with --server: the sites are on other machines, each with a dataset of its "
            "own; keep one of the two."
        )
    return sites_with_keys(choices)


def networked(choices: Networked) -> bool:
    """Return whether the sites are on other machines.

    Raises
    ------
    SettingsError
        If something is chosen that needs a server, and no server is.
    """
    for name in ("credentials", "listen", "remote_sites", "superlink_database", "force"):
        if name in choices.chosen and choices.server is None:
            flag = spell_flag(Networked, name)
            raise SettingsError(f"{flag}: is for --server HOST:PORT only.")
    return choices.server is not None


def sites_with_keys(choices: Networked) -> tuple[str, ...]:
    """Return the remote sites that were chosen, by default all that have a key.

    Raises
    ------
    SettingsError
        If one has none.
    """
    known = server_settings(choices).site_keys()
    chosen = tuple(sorted(known if choices.remote_sites is None else choices.remote_sites))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SettingsError(
            f"--remote-sites {unknown[0]}: has no key; known are {', '.join(known)}."
        )
    return chosen


def server_settings(choices: Networked) -> ServerSettings:
    """Return where the server listens, and with which credentials.

    Raises
    ------
    SettingsError
        If it would be open to others than its sites, or its keys are.
    """
    public = Address.of(str(choices.server))
    default = public if public.loopback else public.behind_proxy
    listen = default if choices.listen is None else Address.of(choices.listen)
    check_listening(listen, force=choices.force)
    settings = ServerSettings(choices.credentials, listen, choices.superlink_database)
    settings.check()
    return settings


def _check_checkpoints(choices: Checkpoints) -> None:
    if choices.c and choices.val:
        raise SettingsError("--c --val: continue the training, or only validate; not both.")
    if choices.val_best and choices.disable_checkpointing:
        raise SettingsError("--val_best needs checkpoints: leave --disable_checkpointing out.")


def _with_defaults(choices: TrainChoices, dataset: Dataset) -> TrainChoices:
    """Add the settings a trainer suggests; those of its sites only if it suggests the sites."""
    if choices.c or choices.val:
        return choices
    suggested = suggestions(choices.trainer, FederationSettings)
    if _sites_chosen(choices) or saved_partition(dataset).is_file():
        suggested.pop("sites_per_round", None)
    return TrainChoices(**{**suggested, **choices.given()})


def _sites_chosen(choices: SiteChoices) -> list[str]:
    """Return the flags that say which cases a site has; those of a partition count as one."""
    record = type(choices)
    names = [*names_of(SiteDatasets), "sites_file", *DEALING]
    chosen = [name for name in names if name in choices.chosen]
    dealing = [name for name in chosen if name in DEALING][1:]
    return [spell_flag(record, name) for name in chosen if name not in dealing]


def _sites(choices: TrainChoices, dataset: Dataset) -> tuple[SiteCases, ...]:
    """Return the sites of a fold: datasets of their own, or cases of one dataset."""
    configuration, fold = choices.configuration, choices.fold
    draw_by_table(dataset, configuration, [fold], choices.case_table)
    if choices.site_datasets is not None and len(_sites_chosen(choices)) == 1:
        return sites_from_datasets(choices.site_datasets, configuration, fold, choices.plans)
    sites = resolve_sites(choices, dataset, configuration, choices.trainer)
    return sites_of_fold(dataset, configuration, fold, sites)


def _same_sites(choices: Networked, run: Run, stored: Run) -> bool:
    """Return whether the remote sites are those of the stored run, but for those revoked since."""
    if not stored.remote_sites or not run.remote_sites:
        return run.remote_sites == stored.remote_sites
    known = server_settings(choices).site_keys()
    return set(run.remote_sites) == {name for name in stored.remote_sites if name in known}


def _continued(choices: TrainChoices, run: Run) -> Run:
    """Return the run as it was started; a flag that says otherwise is refused."""
    folder = federation_folder(run)
    if not (folder / RUN_FILE).is_file():
        raise no_earlier_run(folder)
    stored = read_run(folder)
    asked = choices.part(FederationSettings)
    for name in sorted(asked.chosen - set(CHANGEABLE)):
        if getattr(asked, name) != getattr(stored.settings, name):
            raise SettingsError(
                f"{spell_flag(FederationSettings, name)} {getattr(asked, name)}: the run to "
                f"continue has {getattr(stored.settings, name)}; leave the flag out, or start anew "
                "without --c."
            )
    if not _same_sites(choices, run, stored):
        raise SettingsError(
            f"--c: the run to continue has {', '.join(stored.remote_sites) or 'no'} remote sites; "
            "name the same."
        )
    if _sites_chosen(choices) and run.sites != stored.sites:
        raise SettingsError(
            "--c: these sites are not those of the run to continue; leave the site flags out."
        )
    bound = {name: getattr(asked, name) for name in OF_THE_BOUND if name in asked.chosen}
    settings = dataclasses.replace(stored.settings, **bound)
    return dataclasses.replace(_on_this_machine(choices, run, stored), settings=settings)


def _on_this_machine(choices: TrainChoices, run: Run, stored: Run) -> Run:
    """Return the stored run with the device and the GPUs to go on with."""
    num_gpus = run.num_gpus if "num_gpus" in choices.chosen else stored.num_gpus
    check_gpus(num_gpus, run.device)
    return dataclasses.replace(stored, device=run.device, num_gpus=num_gpus)
