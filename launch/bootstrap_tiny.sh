#!/usr/bin/env bash
# BLIP's bootstrapping (arXiv 2201.12086, Figure 3) from beginning to end on two cores, with the corpus in the package:
# pre-train on human pairs (emoji and their names) and web pairs (clip art and its titles), fine-tune captioner and
# filter on the human ones, write and filter texts for the web's images, pre-train a new model on what is left, compare.
#
#   bash launch/bootstrap_tiny.sh [FOLDER] [STEPS]
#
# FOLDER (runs/bootstrap) keeps everything; stopped, it goes on where it was. STEPS (1200) is of each pre-training.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/bootstrap}
steps=${2:-1200}
python=${PYTHON:-python3}

train() { "$python" -m coca.train "$@"; }

echo "== 1/6 pre-training on human pairs and raw web pairs"
train --config=configs/coca_tiny.py:web --config.steps="$steps" --workdir="$out/noisy"

echo "== 2/6 captioner: captioning loss on the human pairs"
train --config=configs/capfilt_captioner.py:tiny,init_from="$out/noisy" --workdir="$out/captioner"

echo "== 3/6 filter: contrastive and matching loss on the human pairs"
train --config=configs/capfilt_filter.py:tiny,init_from="$out/noisy" --workdir="$out/filter"

echo "== 4/6 CapFilt on the web pairs"
"$python" -m coca.capfilt --config=configs/capfilt.py --config.captioner="$out/captioner" \
  --config.filter="$out/filter" --config.shard=500 --workdir="$out/capfilt"

echo "== 5/6 a new model on human pairs and what CapFilt kept"
train --config="configs/coca_tiny.py:capfilt=$out/capfilt" --config.steps="$steps" --workdir="$out/bootstrapped"

echo "== 6/6 for comparison: the human pairs alone"
train --config=configs/coca_tiny.py:emoji --config.steps="$steps" --workdir="$out/human"

"$python" - "$out" <<'PYTHON'
import sys
from coca.training.metrics import read

metrics = ["twemoji/top1", "twemoji/top5", "retrieval/i2t_r1", "retrieval/t2i_r1", "captions/exact_match", "captions/bleu1"]
columns = {"raw web texts": "noisy", "after CapFilt": "bootstrapped", "no web": "human"}
print(f"\n{'on twemoji, a style never trained on':38}" + "".join(f"{name:>15}" for name in columns))
runs = [{k: v for row in read(f"{sys.argv[1]}/{run}/metrics.jsonl") for k, v in row.items()} for run in columns.values()]
for name in metrics:
  print(f"{name:38}" + "".join(f"{run[f'eval/{name}']:15.3f}" for run in runs))
print(f"\nThe texts, their scores and the images: {sys.argv[1]}/capfilt/report.html")
PYTHON
