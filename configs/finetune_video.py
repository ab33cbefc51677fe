r"""Action recognition in videos by any model with a ViT, frozen or whole (CoCa, arXiv 2205.01917, section 4.2.1).

  python -m coca.train --config=configs/finetune_video.py:init_from=DIR,frozen --workdir=runs/kinetics400
  python -m coca.train --config=configs/finetune_video.py:init_from=DIR,data=moments --workdir=runs/moments
  python -m coca.train --config=configs/finetune_video.py:init_from=DIR,frozen,tiny       # DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_video.py:init_from=DIR,runlocal          # a few steps

DIR is a workdir or a converted model directory; the image encoder is taken over and the text side is left out. Frames
of a video go through it one by one, and one query of a new attentional pooler attends to the tokens of all of them; a
linear head reads what it finds. `frozen` trains these two alone.

Table 9: Adafactor without weight decay, rate 5e-4 for encoder and pooler (frozen: 0 for the encoder), cosine decay to 0
after 1,000 steps of warm-up, 120,000 steps of 128, label smoothing 0.1 on Kinetics and 0 on Moments in Time, clipping
at 1.0, average with decay 0.9999, no RandAugment. Section 4.2.1 has a rate of 1e-4 for the whole model.

Of these the paper says nothing: 16 frames, as many as it takes for retrieval (`frames=8` changes it), evenly spread,
the same ones each time; the central square, resized to the model's size. Nor does it say that the pooler knows which
frame is which; with --config.classification.frame_positions=True it does.

`data` is kinetics400, kinetics600, kinetics700 or moments: a folder of that name in data/, with Kinetics' train.csv and
val.csv, or trainingSet.csv and validationSet.csv of Moments in Time, and the videos anywhere below (docs/transfer.md).
"""

from dataclasses import replace

from coca.commands import arguments
from coca.config import Eval, Source, to_dict
from coca.recipes.coca import finetuning, shorten
from coca.recipes.tiny import scenes

CLASSES = {"kinetics400": 400, "kinetics600": 600, "kinetics700": 700, "moments": 339}
ACTIONS = 10  # of the built-in world


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", frozen=False, tiny=False, data="kinetics400", frames=16)
  if args.data not in CLASSES:
    raise ValueError(f"data={args.data}: this config takes {', '.join(CLASSES)}")
  config = finetuning(args.init_from, runlocal=False)
  config.name = "finetune_video" + "_tiny" * args.tiny + "_runlocal" * args.runlocal
  if config.model.kind not in ("coca", "blip", "albef"):
    raise ValueError(f"{args.init_from} is of kind {config.model.kind!r}, which has no ViT of its own to classify with")
  config.model.kind = "coca"  # BLIP's and ALBEF's image encoders are CoCa's, with a class token
  config.model.text.update(unimodal_layers=0, multimodal_layers=0)
  config.contrastive.weight = config.captioning.weight = 0.0
  small, moments = args.tiny or args.runlocal, args.data == "moments"
  frames = min(args.frames, 8) if small else args.frames
  config.classification.update(weight=1.0, images=frames, classes=ACTIONS if small else CLASSES[args.data])
  config.classification.label_smoothing = 0.0 if moments else 0.1
  config.optim.update(lr=5e-4, weight_decay=0.0, ema=0.9999)
  config.optim.lr_scale = {"image_encoder": 0.0 if args.frozen else 1.0}
  config.steps = "120000"
  config.data.update(batch=128, flip=False, tokenizer_texts=10_000)  # a run keeps a tokenizer, even one without texts
  folder, names = f"data/{args.data}", ("trainingSet", "validationSet") if moments else ("train", "val")
  train, val = (Source(kind="folder", path=folder, texts=f"{folder}/{name}.csv", videos=True) for name in names)
  if small:
    train, val = (replace(scenes(split), videos=True) for split in ("scenes_videos", "scenes_videos_val"))
    config.data.update(batch=32, threads=1, tokenizer_texts=500)
    config.optim.update(lr=2e-3, warmup="5%", ema=0.0)
    config.update(steps="500", log_every="20")
  config.data.sources = {"videos": to_dict(train)}
  config.evals = {
    "actions": to_dict(Eval(kind="classification", source=val, frames=frames, every="" if small else "5%"))
  }
  if args.tiny:
    config.evals.actions.update(limit=1000)
  if args.runlocal:
    shorten(config, steps=4, batch=8)
  return config
