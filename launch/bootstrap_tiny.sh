#!/usr/bin/env bash
# BLIP's bootstrapping (arXiv 2201.12086, Figure 3) from beginning to end on two cores, with scenes, of which it is known
# what is true: pre-train on human pairs (2,000 scenes, up to five true captions each) and web pairs (20,000, 40 % of
# whose texts are not true), fine-tune captioner and filter on the human ones, write and filter texts for the web's
# images, pre-train a new model on what is left, compare.
#
#   bash launch/bootstrap_tiny.sh [FOLDER] [STEPS]
#
# FOLDER (runs/bootstrap) keeps everything; stopped, it goes on where it was. STEPS (1500) is of each pre-training; the
# fine-tunes have a third of it and a tenth.
set -euo pipefail
root=$(realpath "$(dirname "$0")/..")
out=$(realpath -m "${1:-$root/runs/bootstrap}")
steps=${2:-1500}
((steps >= 10)) || { echo "error: STEPS is $steps; it takes 10 or more" >&2; exit 1; }
cd "$root"
python=${PYTHON:-python3}

train() { "$python" -m coca.train "$@"; }

echo "== 1/6 pre-training on human pairs and raw web pairs"
train --config=configs/coca_tiny.py:web --config.steps="$steps" --workdir="$out/noisy"

echo "== 2/6 captioner: captioning loss on the human pairs"
train --config=configs/capfilt_captioner.py:tiny,init_from="$out/noisy" --config.steps="$((steps / 10))" \
  --workdir="$out/captioner"

echo "== 3/6 filter: contrastive and matching loss on the human pairs"
train --config=configs/capfilt_filter.py:tiny,init_from="$out/noisy" --config.steps="$((steps / 3))" \
  --workdir="$out/filter"

echo "== 4/6 CapFilt on the web pairs"
"$python" -m coca.capfilt --config=configs/capfilt.py:web_of="$out/noisy" --config.captioner="$out/captioner" \
  --config.filter="$out/filter" --config.shard=2000 --workdir="$out/capfilt"

echo "== 5/6 a new model on human pairs and what CapFilt kept"
train --config="configs/coca_tiny.py:capfilt=$out/capfilt" --config.steps="$steps" --workdir="$out/bootstrapped"

echo "== 6/6 for comparison: the human pairs alone"
train --config=configs/coca_tiny.py:human --config.steps="$steps" --workdir="$out/human"

"$python" - "$out" <<'PYTHON'
import sys
from pathlib import Path

from coca.training.metrics import read

sys.path.append("tests/benchmarks")
from capfilt_quality import of_job

out = Path(sys.argv[1])
metrics = [f"{name}{style}/{value}" for style in ("", "_in_new_style")
           for name, value in (("captions", "true"), ("retrieval", "t2i_r1"), ("retrieval", "i2t_r1"))]
columns = {"raw web texts": "noisy", "after CapFilt": "bootstrapped", "human pairs": "human"}
runs = [{k: v for row in read(out / run / "metrics.jsonl") for k, v in row.items()} for run in columns.values()]
print(f"\n{'on new scenes':38}" + "".join(f"{name:>15}" for name in columns))
for name in metrics:
  print(f"{name:38}" + "".join(f"{run[f'eval/{name}']:15.3f}" for run in runs))
found = of_job(out / "capfilt")
print()
for name, title in {
  "web_not_true": "web texts that are not true",
  "not_true_kept": "texts kept that are not true",
  "synthetic_true": "the captioner's texts that are true",
  "web_not_true_kept": "web texts kept that are not true",
  "web_true_rejected": "true web texts that the filter threw out",
  "auc": "the filter's AUC over web texts",
}.items():
  print(f"{title:42}{found[name]:.3f}")
print(f"\nThe texts, their scores and the images: {out}/capfilt/report.html")
PYTHON
