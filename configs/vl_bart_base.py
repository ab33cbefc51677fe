r"""VL-BART (arXiv 2102.02779) with BART-base: 141.2M parameters, of which 139.4M are BART-base's.

  python -m coca.train --config=configs/vl_bart_base.py --workdir=runs/vl_bart_base                # captions of COCO
  python -m coca.train --config=configs/vl_bart_base.py:task=pretrain --workdir=runs/vl_bart_pretrained
  python -m coca.train --config=configs/vl_bart_base.py:task=vqa,init_from=runs/vl_bart_pretrained --workdir=runs/vqa
  python -m coca.train --config=configs/vl_bart_base.py:runlocal       # a minute on a laptop, regions of scenes
  python -m coca.train --config=configs/vl_bart_base.py:tiny           # minutes on two cores, regions of scenes

All that isn't here is VL-T5's (configs/vl_t5_base.py: recipe, tasks, data, what is whose and what deviates), for the
authors' *_VLBart.sh have it too. Theirs alone: 200 questions and 150 pre-training examples a GPU (four: from memory),
and 30 % of the words hidden (COCOVG_pretrain_VLBart.sh), each span by one <mask>, where the whole text is written
(preprocess.py: corrupt_bart, "denoise text:"). The model is coca/models/vl_bart.py; BART-base's sizes are those of its
config.json.

Not theirs: what is written begins with BOS, where BART's decoder is given </s> and has to write <s> first; LayerNorms
do not decay, where trainer_base.py spares biases and "LayerNorm.weight", as no norm of BART is called. It begins from
nothing, theirs from BART's weights, and the tokenizer is trained on the captions: no converter is here.
"""

import runpy
from pathlib import Path

from coca.commands import arguments

BATCH = {"caption": 320, "vqa": 800, "pretrain": 600}


def get_config(arg=None):
  args = arguments(arg, runlocal=False, tiny=False, task="caption", init_from="")
  config = runpy.run_path(str(Path(__file__).with_name("vl_t5_base.py")))["get_config"](arg)
  config.name = config.name.replace("vl_t5", "vl_bart")
  config.model.update(kind="vl_bart", activation="gelu")
  config.model.med.norm_eps = 1e-5
  config.optim.decay_mask = "kernels"
  if not (args.tiny or args.runlocal):
    config.model.text.update(vocab=50_465, unimodal_layers=6, multimodal_layers=6)
    config.model.med.positions = 1024
    config.data.batch = BATCH[args.task]
  for source in config.data.sources.values():
    source.task = source.task.replace("span prediction", "denoise text")
  return config
