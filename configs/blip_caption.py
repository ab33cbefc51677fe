r"""BLIP's fine-tune for captions, which is CapFilt's captioner too (arXiv 2201.12086, section 5.2 and Table 14).

  python -m coca.train --config=configs/blip_caption.py:init_from=DIR --workdir=runs/blip_captioner
  python -m coca.train --config=configs/blip_caption.py:init_from=DIR,tiny               # DIR as of blip_tiny
  python -m coca.train --config=configs/blip_caption.py:init_from=DIR,runlocal        # a few steps
  python -m coca.train --config=configs/blip_caption.py:init_from=DIR,scst=mean       # DIR as of one of these

DIR is a BLIP model: a run of configs/blip_base.py or what `python -m coca.convert` wrote. LM alone, 5 epochs, rate 1e-5
(ViT-L 2e-6), batch 256, images of 384 pixels, texts of 40 tokens that begin with "a picture of ", which is no part of
the loss. Captions are evaluated as for the paper's tables, whose code divides a beam's score by the length with the
prompt (small models: as long as they can). The same on the command line:

  python -m coca.caption photos --model=runs/blip_captioner --strategy=beam --beams=3 --max_length=20 --min_length=5 \
    --length_normalisation=whole

It trains on the built-in corpus, `tiny` on scenes; other data as in configs/finetune_caption.py, with
--config.steps='2.8e6 examples' for five epochs of COCO. The rate falls each step and not each epoch. `scst` is as in
configs/finetune_caption.py; BLIP does without it.
"""

from dataclasses import replace

from coca.commands import arguments
from coca.decoding.decode import own_prompt
from coca.interop.blip.settings import PROMPT
from coca.recipes import blip as blip_recipes
from coca.recipes.coca import self_critical
from coca.storage.workdir import read_workdir


def get_config(arg=None):
  args = arguments(arg, runlocal=False, init_from="", tiny=False, scst="")
  config = blip_recipes.finetuning(args, lr=1e-5, large_lr=2e-6, epochs=5, size=384, tiny_steps=200, tiny_lr=3e-4)
  config.name = "blip_caption" + "_runlocal" * args.runlocal
  config.model.text.unimodal_layers = 0
  if config.model.image.size >= 224:
    config.model.text.length = 40
  config.data.prompt = PROMPT
  tokenizer = read_workdir(args.init_from)[1]
  config.captioning.update(weight=1.0, prompt_tokens=own_prompt(config, tokenizer, 1)[1] - 1)
  decoding = replace(blip_recipes.CAPTIONS, max_length=min(blip_recipes.CAPTIONS.max_length, config.model.text.length))
  blip_recipes.evaluate(config, args, "captions", kind="captions", decoding=decoding)
  self_critical(config, args.scst)
  return config
