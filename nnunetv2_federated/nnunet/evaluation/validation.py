"""nnU-Net's full validation of the global model."""

from __future__ import annotations

import json
import shutil

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.summary import join_summaries
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, move_output
from nnunetv2_federated.nnunet.training.global_model import GlobalModel


def validate(
    run: Run, model: GlobalModel, *, best: bool = False, npz: bool = False
) -> tuple[str, float]:
    """Predict every validation case of the fold and write ``validation/summary.json``.

    Where sites are separate datasets, each dataset's cases go to ``validation/<Dataset>`` and the
    summary joins them. nnU-Net exports and measures the predictions in worker processes, as many
    as :func:`.workers.bound_workers` allows.

    Parameters
    ----------
    run
        Run of the federation.
    model
        Global model of the run.
    best
        Whether the best weights are validated, not the final ones.
    npz
        Whether probabilities are saved, too.

    Returns
    -------
    tuple
        Name and value of the headline metric; nnU-Net's is Dice.
    """
    datasets = sorted({site.dataset for site in run.sites})
    if datasets == [run.dataset]:
        return model.validate(best=best, npz=npz)
    model.load_checkpoint(best=best)
    folder = model.folder / "validation"
    shutil.rmtree(folder, ignore_errors=True)
    summaries = []
    for name in datasets:
        training, validation = _cases(run, name)
        if not validation:
            continue
        with quiet():
            trainer = build_trainer(run, load_dataset(name, run.plans_name))
            # the next stage of a cascade looks for predictions in the dataset's own folder
            next_stage = trainer.output_folder_base
            move_output(trainer, folder / name)
            trainer.output_folder_base = next_stage
            trainer.site_cases = (training, validation)
            trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
            trainer.network, trainer.was_initialized = model.trainer.network, True
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            trainer.perform_actual_validation(npz)
        nested = folder / name / "validation"
        summaries.append(json.loads((nested / "summary.json").read_text()))
        for path in nested.iterdir():
            path.replace(folder / name / path.name)
        nested.rmdir()
    # a trainer with another summary joins summaries itself
    join = getattr(model.trainer, "join_summaries", join_summaries)
    (folder / "summary.json").write_text(json.dumps(join(summaries), indent=4))
    return model.log_headline()


def _cases(run: Run, dataset: str) -> tuple[list[str], list[str]]:
    """Return training and validation cases of all sites of a dataset."""
    sites = [site for site in run.sites if site.dataset == dataset]
    return (
        sorted({case for site in sites for case in site.training_cases}),
        sorted({case for site in sites for case in site.validation_cases}),
    )
