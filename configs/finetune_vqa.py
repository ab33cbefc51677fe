r"""Visual question answering of any CoCa by its class head (arXiv 2205.01917, section 4.2.3 and Table 10).

  python -m coca.train --config=configs/finetune_vqa.py:init_from=DIR --workdir=runs/vqa
  python -m coca.train --config=configs/finetune_vqa.py:init_from=DIR,tiny       # DIR as of coca_tiny
  python -m coca.train --config=configs/finetune_vqa.py:init_from=DIR,runlocal   # a few steps
  python -m coca.train --config=configs/finetune_vqa.py:init_from=DIR,vg=data/visual_genome

DIR is a workdir or a converted model directory with a multimodal decoder. The decoder reads the question over the
image; a new attentional pooler with one query and a linear head read its outputs, and choose among the 3,129 answers
that are most frequent. Beside it the decoder learns to write the question and an answer, one annotator's; being causal,
it has not seen that where the head looks.

Table 10: Adafactor with decoupled weight decay 0.1, rate 5e-4 for the pooler and the head and 2e-5 for all else, cosine
decay to 0 after 1,000 steps of warm-up, 100,000 steps of 64, clipping at 1.0, RandAugment 1, 10.

Of the loss and of the weight of the generative one the paper says nothing: the target is the annotators' answers by
their shares, and both weigh 1 (--config.captioning.weight). The generative loss is the mean over the tokens of question
and answer. RandAugment's operations are those of Google's other code (coca/data/augment.py).

It reads VQA v2 as a folder of COCO's images beside its question and annotation files (docs/own-data.md), in data/vqa.
The paper names no others. With `vg`, a folder with Visual Genome's images and question_answers.json, its questions come
beside them, each as frequent as another, and their answers weigh 0.2 for the class head, as in BLIP's code, and are
words as all others for the decoder; --config.classification.answers=FILE then keeps the 3,129 answers those of VQA v2.
SNLI-VE and other pairs with labels train in the same way, without `question_key` and with their number of classes.
"""

from dataclasses import replace

from coca.commands import arguments
from coca.config import Eval, to_dict
from coca.recipes.coca import finetuning, shorten
from coca.recipes.questions import visual_genome, vqa_v2
from coca.recipes.tiny import scenes


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False, vg="")
  config = finetuning(args.init_from, runlocal=False)
  config.name = "finetune_vqa" + "_tiny" * args.tiny + "_runlocal" * args.runlocal
  config.model.text.length = max(config.model.text.length, 32)  # of scenes' questions and their answers
  config.contrastive.weight = 0.0
  config.captioning.weight = config.classification.weight = 1.0
  config.classification.update(pool="text", classes=3129)
  config.optim.update(lr=2e-5, lr_scale={"class_pooler": 25.0, "class_head": 25.0})
  config.steps = "100000"
  config.data.update(batch=64, rand_augment=(1, 10), rand_augment_kind="google", flip=False, tokenizer_texts=100_000)
  train, val = (vqa_v2("data/vqa", split) for split in ("train", "val"))
  if args.tiny or args.runlocal:
    train, val = (
      to_dict(replace(scenes(split), question_key="question")) for split in ("scenes_questions", "scenes_questions_val")
    )
    config.classification.classes = 40
    config.data.update(rand_augment=(0, 0), threads=1, tokenizer_texts=2000)
    config.optim.update(lr=1e-3, lr_scale={}, warmup="5%")
    config.update(steps="600", log_every="20")
  config.data.sources = {"vqa": train}
  if args.vg:
    visual_genome(config, args.vg)
  config.evals = {"vqa": to_dict(Eval(kind="vqa", every="" if args.tiny else "10%"))}
  config.evals.vqa.source = val
  if args.tiny:
    config.evals.vqa.limit = 2000
  if args.runlocal:
    shorten(config, steps=4, batch=8)
  return config
