"""Everything a user can choose: a record for each command, with help, defaults and checks.

From these records come the flags, the keys of a settings file and ``docs/reference.md``. They
import neither torch nor nnU-Net, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field

from nnunetv2_federated.federation.choice import (
    Allowed,
    Choice,
    Choices,
    Count,
    FromList,
    Texts,
    Whole,
    names_of,
    record,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluation import FEWEST_CASES
from nnunetv2_federated.federation.names import read_fold
from nnunetv2_federated.federation.partition import PartitionSettings
from nnunetv2_federated.federation.payload import MOST_CASES
from nnunetv2_federated.federation.settings import FederationSettings, Strategy, Waits

DEFAULT_CREDENTIALS = Path("credentials", "server")
ArmKind = Literal["local", "ensemble", "federated", "centralised"]
ARM_KINDS: tuple[ArmKind, ...] = get_args(ArmKind)
_USUAL_ARMS: tuple[ArmKind, ...] = ("local", "federated", "centralised")
SAME = "as in nnUNetv2_train"

Device = Literal["cuda", "cpu", "mps"]
Fold = Annotated[int | str, BeforeValidator(read_fold), Allowed("a number from 0, or all")]


def _dataset(value: object) -> object:
    return str(value) if type(value) is int else value


Dataset = Annotated[str, BeforeValidator(_dataset), Allowed("the id or name of a dataset")]
Datasets = Annotated[tuple[Dataset, ...], FromList, Allowed("a list of ids or names of datasets")]
Trainer = Annotated[str, Choice("any nnU-Net trainer", "TRAINER", flag="-tr")]
UsualTrainer = Annotated[
    str | None,
    Choice(
        "trainer",
        "TRAINER",
        flag="-tr",
        unset="nnUNetTrainerFederated; of a classification nnUNetTrainerCls",
    ),
]
Plans = Annotated[str, Choice("plans identifier", "PLANS", flag="-p")]
_Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a number above 0")]


@record
class SettingsFile(Choices):
    """The settings file of a command."""

    group: ClassVar[str] = "settings file"

    settings: Annotated[
        Path | None,
        Choice(
            "TOML file with any of these flags, spelled with underscores; flags win, and relative "
            "paths in the file are relative to it",
            "TOML",
            unset="none",
        ),
    ] = None
    reduced: Annotated[
        bool, Choice("let the table [reduced] of the settings file replace what it names")
    ] = False


@record
class ModelChoices(Choices):
    """Trainer, plans and first weights of a model."""

    group: ClassVar[str] = SAME

    trainer: Trainer = "nnUNetTrainerFederated"
    plans: Plans = "nnUNetPlans"
    pretrained_weights: Annotated[
        Path | None,
        Choice(
            "nnU-Net checkpoint to start from", "FILE", flag="-pretrained_weights", unset="none"
        ),
    ] = None


@record
class DeviceChoices(Choices):
    """Device of a training."""

    group: ClassVar[str] = SAME

    device: Annotated[
        Device | None,
        Choice("device to train on", flag="-device", unset="cuda if there is one, else cpu"),
    ] = None


@record
class Checkpoints(Choices):
    """Use of one training's checkpoints."""

    group: ClassVar[str] = "one training, as in nnUNetv2_train"

    c: Annotated[bool, Choice("continue where an earlier run stopped")] = False
    val: Annotated[bool, Choice("only validate, with checkpoint_final.pth")] = False
    val_best: Annotated[bool, Choice("validate with checkpoint_best.pth", flag="--val_best")] = (
        False
    )
    npz: Annotated[bool, Choice("save softmax outputs of the validation")] = False
    disable_checkpointing: Annotated[
        bool, Choice("write no checkpoint", flag="--disable_checkpointing")
    ] = False


@record
class DealChoices(PartitionSettings):
    """How cases are dealt to sites, and by which table."""

    group: ClassVar[str] = "sites"

    case_table: Annotated[
        Path | None,
        Choice(
            "table with a column 'case' and the one named by --by; a column 'patient' keeps a "
            "patient's cases at one site",
            "CSV",
            unset="none",
        ),
    ] = None
    by: Annotated[
        str | None,
        Choice(
            "column of the table with the class of a case; for --partition column, with its site",
            "COLUMN",
            unset="none",
        ),
    ] = None


DEALING = tuple(name for name in names_of(DealChoices) if name != "seed")
"""Fields that say how cases are dealt; the seed is that of the training, too."""


@record
class SiteChoices(DealChoices):
    """Which site has which cases of a dataset."""

    group: ClassVar[str] = "sites that exist already"

    sites_file: Annotated[
        Path | None, Choice("file with {site: [case, ...]}", "JSON", unset="none")
    ] = None


@record
class SiteDatasets(Choices):
    """Sites that are datasets of their own."""

    group: ClassVar[str] = "sites that exist already"

    site_datasets: Annotated[
        Datasets | None,
        Choice("one dataset for each site, with the same plans", "DATASET", unset="none"),
    ] = None


@record
class Runtime(Choices):
    """How the sites of this machine are run."""

    group: ClassVar[str] = "runtime"

    backend: Annotated[
        Literal["in-process", "ray"],
        Choice(
            "what runs the sites of this machine: one after another, or Ray, each site on a GPU of "
            "its own"
        ),
    ] = "in-process"
    num_gpus: Annotated[
        Count,
        Choice(
            "GPUs on which each site of this machine trains, as in nnUNetv2_train; over a network "
            "give it to nnUNetv2_federated_site",
            "N",
            flag="-num_gpus",
        ),
    ] = 1
    prepare_only: Annotated[
        bool, Choice("check everything, write the run's folder and print the flwr run command")
    ] = False
    until_round: Annotated[
        Count | None,
        Choice(
            "pause after this round, without a result; --c goes on there, to the same weights. The "
            "learning rate is that of all --rounds; not with --server",
            "N",
            unset="none",
        ),
    ] = None


@record
class Networked(Waits):
    """A federation with sites on other machines."""

    group: ClassVar[str] = "sites on other machines"

    server: Annotated[
        str | None,
        Choice("address at which the sites find this server", "HOST[:PORT]", unset="none"),
    ] = None
    credentials: Annotated[
        Path,
        Choice("the folder 'server' that nnUNetv2_federated_provision made", "FOLDER"),
    ] = DEFAULT_CREDENTIALS
    listen: Annotated[
        str | None,
        Choice(
            "address at which the server itself listens",
            "HOST:PORT",
            unset="--server if that is this machine only, else loopback, one port above, for the "
            "proxy of nginx.conf",
        ),
    ] = None
    remote_sites: Annotated[
        Texts | None, Choice("sites that take part", "NAME", unset="all with a key")
    ] = None
    superlink_database: Annotated[
        Path | None,
        Choice(
            "folder for the weights in flight; fastest in memory, as /dev/shm/federation",
            "FOLDER",
            unset="with the SuperLink's log",
        ),
    ] = None
    force: Annotated[bool, Choice("listen beyond this machine, too")] = False


@record
class Quiet(Choices):
    """Amount of output of a command."""

    group: ClassVar[str] = "output"

    quiet: Annotated[bool, Choice("print errors only")] = False


@record
class QueueChoices(Choices):
    """Several trainings, begun by one command."""

    group: ClassVar[str] = "several trainings"

    configurations: Annotated[
        Texts | None,
        Choice(
            "configurations to train, one after another, each on all of -f; needs -f",
            "CONFIGURATION",
            flag="-c",
            unset="none",
        ),
    ] = None
    folds: Annotated[
        Annotated[tuple[Fold, ...], FromList] | None,
        Choice("folds to train, one after another; needs -c", "FOLD", flag="-f", unset="none"),
    ] = None
    parallel: Annotated[
        Count,
        Choice(
            "trainings at a time, each in a process of its own, on the GPUs in turn; not with "
            "--server",
            "N",
        ),
    ] = 1

    def __post_init__(self) -> None:
        if (self.configurations is None) != (self.folds is None):
            given = "-c without -f" if self.folds is None else "-f without -c"
            raise SettingsError(
                f"{given}: give both, as in -c 2d 3d_fullres -f 0 1 2 3 4; or CONFIGURATION FOLD "
                "for one training."
            )
        for flag, values in (("-c", self.configurations), ("-f", self.folds)):
            if values is not None and (not values or len(set(values)) < len(values)):
                shown = " ".join(map(str, values))
                raise SettingsError(f"{flag} {shown}: name each once, and at least one.")
        if self.parallel > 1 and self.folds is None:
            raise SettingsError(f"--parallel {self.parallel}: is for several trainings, -c and -f.")


@record
class TrainChoices(
    QueueChoices,
    ModelChoices,
    DeviceChoices,
    Checkpoints,
    SiteChoices,
    SiteDatasets,
    FederationSettings,
    Runtime,
    Networked,
    Quiet,
    SettingsFile,
):
    """Choices of ``nnUNetv2_train_federated`` and ``nnUNetv2_federated_server``."""

    group: ClassVar[str] = "what to train"

    dataset: Annotated[
        Dataset, Choice("id or name of the dataset; with --server its plans are enough", "DATASET")
    ]
    configuration: Annotated[str, Choice("configuration, such as 2d or 3d_fullres", "NAME")]
    fold: Annotated[Fold, Choice("fold: 0 to 4, or all", "FOLD")]

    def __post_init__(self) -> None:
        QueueChoices.__post_init__(self)
        FederationSettings.__post_init__(self)
        self._check_gpus()
        self._check_pause()

    def _check_gpus(self) -> None:
        for given, what in (
            (self.backend == "ray", "--backend ray"),
            (self.prepare_only, "--prepare-only"),
            (self.parallel > 1, f"--parallel {self.parallel}"),
            (self.server is not None, "--server"),
        ):
            if self.num_gpus > 1 and given:
                raise SettingsError(f"-num_gpus {self.num_gpus} {what}: keep one of the two.")

    def _check_pause(self) -> None:
        if self.until_round is None:
            return
        others = {"-f": self.folds, "--val": self.val, "--prepare-only": self.prepare_only}
        for flag, given in others.items():
            if given:
                raise SettingsError(
                    f"--until-round {self.until_round} {flag}: pauses one training; leave one of "
                    "them out."
                )


@record
class BestChoices(Networked, Quiet):
    """Choices of ``nnUNetv2_find_best_configuration_federated``, named as in nnU-Net."""

    group: ClassVar[str] = "what to choose from"

    dataset: Annotated[Dataset, Choice("id or name of the dataset", "DATASET", positional=True)]
    configurations: Annotated[
        Texts, Choice("trained configurations", "CONFIGURATION", flag="-c", unset="all trained")
    ] = ()
    folds: Annotated[
        Annotated[tuple[Fold, ...], FromList], Choice("trained folds", "FOLD", flag="-f")
    ] = (0, 1, 2, 3, 4)
    trainer: Trainer = "nnUNetTrainerFederated"
    plans: Plans = "nnUNetPlans"
    disable_ensembling: Annotated[
        bool,
        Choice("choose a single configuration, never two of them", flag="--disable_ensembling"),
    ] = False
    min_cases: Annotated[
        Annotated[
            int,
            Field(ge=FEWEST_CASES, le=MOST_CASES),
            Allowed(f"a whole number of at least {FEWEST_CASES}"),
        ],
        Choice("leave out a site with fewer validation cases, by name", "N"),
    ] = 5


@record
class ArmChoices(ModelChoices, FederationSettings):
    """Choices of one arm of a comparison, in the tables ``[centralised]`` and ``[local]``."""

    trainer: Trainer = "nnUNetTrainer"


@record
class FederatedArmChoices(ArmChoices, DealChoices):
    """Choices of a federated arm, in ``[federated.NAME]``: also how the cases are dealt."""


@record
class CompareChoices(
    ModelChoices,
    DeviceChoices,
    SiteChoices,
    FederationSettings,
    Quiet,
    SettingsFile,
):
    """Choices of ``nnUNetv2_federated_compare``."""

    group: ClassVar[str] = "comparison"

    dataset: Annotated[Dataset, Choice("id or name of the dataset", "DATASET", positional=True)]
    configuration: Annotated[str, Choice("configuration", "CONFIGURATION", positional=True)]
    folds: Annotated[
        Annotated[tuple[Fold, ...], FromList], Choice("folds to train", "FOLD", positional=True)
    ]
    trainer: Trainer = "nnUNetTrainer"
    output: Annotated[
        Path | None,
        Choice("folder of the comparison", "FOLDER", flag="-o", unset="below nnUNet_results"),
    ] = None
    arms: Annotated[
        Annotated[tuple[ArmKind, ...], FromList],
        Choice(
            "kinds of arms: each site alone, the ensemble of these models, federations, one model "
            "on all cases",
            "|".join(ARM_KINDS),
        ),
    ] = _USUAL_ARMS
    strategies: Annotated[
        Annotated[tuple[Strategy, ...], FromList] | None,
        Choice("one federated arm for each strategy", unset="--strategy"),
    ] = None
    seeds: Annotated[
        Annotated[tuple[Whole, ...], FromList, Allowed("whole numbers of at least 0")] | None,
        Choice("train each arm with each seed", "N", unset="--seed"),
    ] = None
    partition_by_seed: Annotated[
        bool, Choice("deal the cases anew for each seed: trials with different partitions")
    ] = False
    external_sites: Annotated[
        Texts,
        Choice(
            "site held out of all training, tested by every model; may be repeated",
            "NAME",
            flag="--external-site",
            unset="none",
            repeated=True,
        ),
    ] = ()
    test_set: Annotated[
        bool, Choice("test on imagesTs and its labels in place of the fold's validation cases")
    ] = False
    centralised: Annotated[
        ArmChoices, Choice("what the model on all cases has otherwise", table=True)
    ] = ArmChoices()
    local: Annotated[
        ArmChoices, Choice("what the models of single sites have otherwise", table=True)
    ] = ArmChoices()
    federated: Annotated[
        Mapping[str, FederatedArmChoices],
        Choice("one federated arm for each table, and what it has otherwise", table=True),
    ] = Field(default_factory=dict)


@record
class PartitionChoices(DealChoices, SettingsFile):
    """Choices of ``nnUNetv2_partition``."""

    group: ClassVar[str] = "what to deal"

    dataset: Annotated[Dataset, Choice("dataset id or name", "DATASET", positional=True)]
    configuration: Annotated[
        str | None,
        Choice(
            "configuration whose preprocessed cases are counted",
            "CONFIGURATION",
            flag="-c",
            unset="the first there is",
        ),
    ] = None
    plans: Plans = "nnUNetPlans"


@record
class PlanChoices(Networked):
    """Choices of ``nnUNetv2_plan_and_preprocess_federated``, named as in nnU-Net."""

    group: ClassVar[str] = "planning"

    datasets: Annotated[
        Datasets, Choice("ids or names of the sites' datasets", "DATASET", flag="-d")
    ]
    configurations: Annotated[
        Texts, Choice("configurations to preprocess", "CONFIGURATION", flag="-c")
    ] = ("2d", "3d_fullres", "3d_lowres")
    planner: Annotated[str, Choice("experiment planner", "PLANNER", flag="-pl")] = (
        "ExperimentPlanner"
    )
    gpu_memory_target: Annotated[
        Annotated[_Above0, Allowed("above 0 (GB)")] | None,
        Choice("GPU memory to plan for", "GB", flag="-gpu_memory_target", unset="the planner's"),
    ] = None
    preprocessor_name: Annotated[str, Choice("preprocessor", "NAME", flag="-preprocessor_name")] = (
        "DefaultPreprocessor"
    )
    overwrite_target_spacing: Annotated[
        Annotated[tuple[_Above0, _Above0, _Above0], FromList, Allowed("above 0 (mm)")] | None,
        Choice(
            "target spacing (z, y, x) of 3d_fullres",
            ("MM", "MM", "MM"),
            flag="-overwrite_target_spacing",
            unset="the planner's",
        ),
    ] = None
    overwrite_plans_name: Annotated[
        str | None,
        Choice("name of the plans", "NAME", flag="-overwrite_plans_name", unset="the planner's"),
    ] = None
    npfp: Annotated[
        Count | None,
        Choice(
            "processes for fingerprints",
            "N",
            flag="-npfp",
            unset="8, but at most one for each core",
        ),
    ] = None
    np: Annotated[
        Annotated[tuple[Count, ...], FromList, Allowed("whole numbers of at least 1")] | None,
        Choice(
            "processes for preprocessing, one number or one for each -c",
            "N",
            flag="-np",
            unset="nnU-Net's",
        ),
    ] = None
    verify_dataset_integrity: Annotated[
        bool,
        Choice("check the datasets as nnU-Net does first", flag="--verify_dataset_integrity"),
    ] = False
    no_pp: Annotated[bool, Choice("plan, but do not preprocess", flag="--no_pp")] = False
    fingerprint: Annotated[
        Literal["full", "binned"],
        Choice("'binned' merges bins of a fingerprint until each holds --min-cases cases"),
    ] = "full"
    min_cases: Annotated[Count, Choice("fewest cases of a bin of a binned fingerprint", "N")] = 5
    replace_plans: Annotated[bool, Choice("replace plans of the same name that differ")] = False
