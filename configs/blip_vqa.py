r"""BLIP's fine-tune for visual question answering (arXiv 2201.12086, section 5.3 and Table 14).

  python -m coca.train --config=configs/blip_vqa.py:init_from=DIR --workdir=runs/blip_vqa
  python -m coca.train --config=configs/blip_vqa.py:init_from=DIR,tiny               # DIR as of blip_tiny
  python -m coca.train --config=configs/blip_vqa.py:init_from=DIR,runlocal            # a few steps
  python -m coca.train --config=configs/blip_vqa.py:init_from=DIR,vqa=data/vqa,vg=data/visual_genome

DIR is a BLIP model: a run of configs/blip_base.py or what `python -m coca.convert` wrote. The image-grounded encoder
reads the question, a decoder of its own the encoder's states; 10 epochs, rate 2e-5, batch 256, images of 480 pixels,
questions of 35 tokens. Each answer weighs as many of the annotators as gave it.

It trains on questions that are made of the names in the built-in corpus (coca/data/sources/name_questions.py), with
`tiny` on questions about scenes (docs/scenes.md).

`vqa` is a folder with VQA v2 in `train` and `val`: COCO's images beside its question and annotation files
(docs/own-data.md), and `vg` one with Visual Genome's images and question_answers.json, whose answers weigh 0.2 as in
BLIP's code; each question is as frequent as another. The epochs are those of VQA v2's 443,757 questions: with Visual
Genome's, and with `val`, which BLIP trains on too (a third source), --config.steps='N examples' has to count them.
--config.evals.vqa.answers=FILE ranks the 3,128 answers in it, one a line, instead of writing answers.

The rate falls each step and not each epoch; no stochastic depth in the ViT (BLIP's code: 0.1); an answer does not see
its question's padding.
"""

from coca.commands import arguments
from coca.recipes import blip as blip_recipes
from coca.recipes.questions import QUESTIONS, visual_genome, vqa_v2


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False, vqa="", vg="")
  config = blip_recipes.finetuning(args, lr=2e-5, large_lr=2e-5, epochs=10, size=480, tiny_steps=500, tiny_lr=3e-4)
  config.name = "blip_vqa" + "_runlocal" * args.runlocal
  if config.model.image.size >= 224:
    config.model.text.length = 35
  config.answering.update(weight=1.0, answers=1)  # the corpus has one answer a question
  config.data.flip = False  # as BLIP: some questions are about left and right
  asked = [{"question_key": "name"}] * 2
  if args.tiny:
    asked = [{"split": f"scenes_questions{part}", "question_key": "question"} for part in ("", "_val")]
  config.data.sources.pairs.update(asked[0])
  blip_recipes.evaluate(config, args, "vqa", kind="vqa", source=asked[1])
  if args.vqa:
    config.answering.answers = 10
    config.data.sources = {"vqa": vqa_v2(args.vqa, "train")}
    config.evals.vqa.source = vqa_v2(args.vqa, "val")
    if not args.tiny and not args.runlocal:
      config.steps = f"{10 * QUESTIONS} examples"
  if args.vg:
    visual_genome(config, args.vg)
  return config
