r"""VL-T5 (arXiv 2102.02779) with T5-base: 224.5M parameters, of which 222.9M are T5-base's and 0.06M 72 more words.

  python -m coca.train --config=configs/vl_t5_base.py --workdir=runs/vl_t5_base                # captions of COCO
  python -m coca.train --config=configs/vl_t5_base.py:task=pretrain --workdir=runs/vl_t5_pretrained
  python -m coca.train --config=configs/vl_t5_base.py:task=vqa,init_from=runs/vl_t5_pretrained --workdir=runs/vl_t5_vqa
  python -m coca.train --config=configs/vl_t5_base.py:runlocal       # a minute on a laptop, regions of scenes
  python -m coca.train --config=configs/vl_t5_base.py:tiny           # minutes on two cores, regions of scenes

Every task is text to text (coca/data/tasks.py), over the regions of a detector (coca/models/vl_t5.py).

The authors' (j-min/VL-T5, in VL-T5/): scripts/COCOCaption_VLT5.sh and VQA_VLT5.sh: AdamW, 5e-5, 10 % warm-up, a line to
0, clipping at 5, 20 epochs, 80 examples a GPU, 5 beams; COCOVG_pretrain_VLT5.sh: 1e-4, 5 %, clipping at 1, 30 epochs,
five tasks, of which captions are none. src/param.py: 36 regions of 2,048 numbers, 20 tokens read and 20 written (10 of
an answer: vqa_data.py), weight decay 0.01, eps 1e-6, dropout 0.1, 15 % of the words in spans: single words, drawn
(preprocess.py), not T5's three. From memory: 4 GPUs, so batches of 320; how many questions and pre-training pairs.

Not theirs: a box' area is its width times its height; their get_area (modeling_t5.py) takes left, right, top, bottom
and is given left, top, right, bottom, so that theirs is (bottom - right) x (top - left). All weights decay, where
trainer_base.py spares names with "bias", T5's distances among them, and LayerNorm.weight, as no norm of T5 is called.
An answer is one annotator's, drawn, where theirs is drawn and weighed by its score; questions are clean as BLIP's, all
"vqa:", and evaluated with BLIP's 3 beams. Pre-training takes each task as often, and names of regions are the files'
tags, without attributes. There is no second image, and no dropout within a feed-forward. It begins from nothing, theirs
from T5's weights: no converter of these is here, and T5's SentencePiece model, without BOS, is not read.
"""

from coca.commands import arguments
from coca.config import default
from coca.recipes import regions

PRETRAINING = "span prediction", "vqa", "visual grounding", "caption region", "image text match"
EXAMPLES = {"caption": 20 * 566_747, "vqa": 20 * 605_102, "pretrain": 30 * 9_180_000}


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, task="caption", init_from="")
  if args.task not in EXAMPLES:
    raise ValueError(f"task={args.task}: there are {', '.join(EXAMPLES)}")
  pretrains = args.task == "pretrain"
  config = default()
  config.name = "vl_t5_base" + f"_{args.task}" * (args.task != "caption")
  config.init_from = args.init_from
  config.model.update(kind="vl_t5", activation="relu", remat="dots")
  config.model.text.update(vocab=32_200, length=21, unimodal_layers=12, multimodal_layers=12)
  config.model.text.update(width=768, mlp=3072, heads=12)
  config.model.regions.update(width=2048, count=36, tags=20)

  config.contrastive.weight = 0.0
  config.captioning.update(weight=1.0, tokens="mean" if args.task == "caption" else "per_text")
  config.answering.length = 11
  config.optim.update(name="adamw", lr=1e-4 if pretrains else 5e-5, eps=1e-6, weight_decay=0.01, decay_mask="all")
  config.optim.update(warmup="5%" if pretrains else "10%", clip=1.0 if pretrains else 5.0)
  config.steps = f"{EXAMPLES[args.task]} examples"
  config.data.batch = 320
  config.mesh.data, config.mesh.fsdp = -1, 1
  regions.coco(config)
  config.evals.coco_captions.every = "5%"
  if args.tiny or args.runlocal:
    (regions.runlocal if args.runlocal else regions.on_scenes)(config)
    config.model.regions.tags = 20
  regions.pose(config, PRETRAINING if pretrains else (args.task,), small=args.tiny or args.runlocal)
  return config
