#!/usr/bin/env bash
# From nothing to a federated nnU-Net: environment, small real dataset, training at three sites,
# prediction and evaluation with nnU-Net's own commands. Minutes on two CPU cores, no GPU needed.
#
#   bash examples/quickstart.sh [WORK_FOLDER]     (default: ./nnunetv2-federated-quickstart)
#
# QUICKSTART_VENV=/path/to/venv uses that environment, where the project with its extra "demo" is
# installed already, instead of making one. PYTHON names the interpreter for a new one (python3).
# QUICKSTART_ROUNDS=3 is enough to see that all works; the model is better after ten, the default.
# The images are slices of one template brain: a demonstration, not clinical evidence.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="${1:-./nnunetv2-federated-quickstart}"
mkdir -p "$work"
work="$(cd "$work" && pwd)"

step() { printf '\n[%4d s] %s\n' "$SECONDS" "$*"; }

if [[ -n "${QUICKSTART_VENV:-}" ]]; then
    venv="$(cd "$QUICKSTART_VENV" && pwd)"
else
    venv="$work/venv"
    step "Installing into $venv (the longest download is PyTorch)"
    [[ -x "$venv/bin/python" ]] || "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install -qq "${repo}[demo]" -c "$repo/constraints.txt"
fi
export PATH="$venv/bin:$PATH"
export nnUNet_raw="$work/nnUNet_raw"
export nnUNet_preprocessed="$work/nnUNet_preprocessed"
export nnUNet_results="$work/nnUNet_results"
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
# Planning refuses 0 and prediction must need no plug-in: neither may come from the caller's shell.
unset nnUNet_n_proc_DA nnUNet_extTrainer

dataset="$nnUNet_raw/Dataset501_MNI152Slices"
step "Preparing $dataset"
[[ -f "$dataset/dataset.json" ]] || python "$repo/examples/segmentation/prepare_mni152.py" 501

step "Planning and preprocessing with nnU-Net"
nnUNetv2_plan_and_preprocess -d 501 -c 2d --verify_dataset_integrity -npfp 2 -np 2 \
    >"$work/plan.log" 2>&1 || { cat "$work/plan.log" >&2; exit 1; }

rounds="${QUICKSTART_ROUNDS:-10}"
step "Training: three sites, $rounds rounds"
# 0: augment in this process instead of starting worker processes for every site.
nnUNet_n_proc_DA=0 nnUNetv2_train_federated 501 2d 0 -device cpu \
    --case-table "$dataset/cases.csv" --partition column --by site \
    --rounds "$rounds" --iterations-per-epoch 20 --val-iterations 5

step "Predicting the test slices with nnU-Net"
nnUNetv2_predict -i "$dataset/imagesTs" -o "$work/predictions" -d 501 -c 2d -f 0 \
    -tr nnUNetTrainerFederated -device cpu -npp 1 -nps 1 \
    >"$work/predict.log" 2>&1 || { cat "$work/predict.log" >&2; exit 1; }

step "Evaluating with nnU-Net"
model="$nnUNet_results/Dataset501_MNI152Slices/nnUNetTrainerFederated__nnUNetPlans__2d"
nnUNetv2_evaluate_folder "$dataset/labelsTs" "$work/predictions" \
    -djfile "$model/dataset.json" -pfile "$model/plans.json" -np 1
python - "$work/predictions/summary.json" <<'PYTHON'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    summary = json.load(file)
for label, name in (("1", "grey matter"), ("2", "white matter")):
    print(f"Dice of {name} on the test slices: {summary['mean'][label]['Dice']:.3f}")
print(f"Mean Dice: {summary['foreground_mean']['Dice']:.3f}")
PYTHON

step "Done"
echo "Curves of the federation: $model/fold_0/federation.png"
echo "Global model:             $model/fold_0/checkpoint_final.pth"
echo "Predictions:              $work/predictions"
