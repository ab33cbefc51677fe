r"""CapFilt (BLIP, arXiv 2201.12086, section 3.3) as the paper has it: one nucleus sample an image, p = 0.9, and every
text kept whose probability of a match is 0.5 or more.

  python -m coca.capfilt --config=configs/capfilt.py --config.captioner=runs/captioner --config.filter=runs/filter \
    --config.source.kind=webdataset --config.source.path='data/web/*.tar' --workdir=runs/capfilt

With --preview=64 behind it, a look at 64 pairs before anyone pays for the rest. Without a source of one's own it works
on the clip art of the built-in corpus and its titles from the web, and with configs/capfilt.py:web_of=DIR on the source
of origin 'web' that the run in DIR was trained on. All settings: coca/capfilt/settings.py, how captions are written
coca/config/decoding.py; beam search (Table 2), as the authors' code has it, is

  --config.decoding.strategy=beam --config.decoding.beams=3 --config.decoding.top_p=1. \
    --config.decoding.length_normalisation=whole
"""

from coca.capfilt.settings import default
from coca.commands import arguments
from coca.recipes.coca import of_origin
from coca.storage.workdir import read_config


def get_config(arg=None):
  args = arguments(arg, web_of="")
  config = default()
  config.source.update(kind="builtin", split="openclipart")
  if args.web_of:
    web = of_origin("web", read_config(args.web_of))
    if not web:
      raise ValueError(f"{args.web_of} was trained on no source of origin 'web'; leave web_of out")
    config.source = next(iter(web.values()))
  return config
