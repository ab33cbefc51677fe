r"""CoCa in minutes on two cores: scenes with sentences about them, and emoji with their names, both in the package.

  python -m coca.train --config=configs/coca_tiny.py --workdir=runs/tiny
  python -m coca.train --config=configs/coca_tiny.py:runlocal        # a minute, to see that all of it works

The scenes (coca/data/scenes) are composed of the first 26 objects, the animals: all 100 take longer to learn. What is
true of one is known, so captions are judged: in four of the six styles of training, in one that it never saw, twemoji,
and in scenes of pairs, numbers and sides that training lacks. The emoji teach 1,940 names, most of which are in no
scene, and are tested on twemoji, too. Beside each figure stands what the nearest image in 16x16 pixels would say.

With `emoji` behind the colon there are the emoji alone. `human`, `web` and `capfilt=DIR` are BLIP's loop in small
(launch/bootstrap_tiny.sh), with BLIP's three losses: 2,000 scenes with true captions alone; with them 20,000 whose
texts are the web's, of which 40 % are not true; or these with the texts that a CapFilt job in DIR kept.

The architecture is the paper's ([CLS] last, as many unimodal as multimodal layers), in small. Not the paper's: all
sizes; that the decoder sees all image tokens, as in a row of its Table 8f; LayerNorms before the contrastive pooler;
Muon, with which so few steps go more than twice as far as with AdamW; positions that begin as sines and cosines, four
times as large, and a quarter of the rate for what Muon leaves to AdamW, patches before all, beside which positions get
lost otherwise, so that left and right are not learned in time; and that equal texts in a batch are positives of
each other.
"""

from coca.commands import arguments
from coca.config import Eval, SceneNoise, Source, default, to_dict
from coca.data.scenes.sprites import MORE_STYLES, STYLES
from coca.recipes.coca import shorten
from coca.recipes.tiny import evaluate, scenes, sources


def get_config(arg=None):
  args = arguments(arg, runlocal=False, emoji=False, human=False, web=False, capfilt="")
  config = default()
  config.name = "coca_tiny"
  config.update(steps="4050", log_every="20")

  config.model.image.update(size=60, patch=10, layers=4, width=128, mlp=512, heads=4)
  config.model.image.update(position_init="sincos2d", position_scale=4.0)
  config.model.poolers.update(n_query=0, norm_inputs=True)
  config.model.text.update(vocab=1600, length=17, unimodal_layers=2, multimodal_layers=2, width=128, mlp=512, heads=4)
  config.model.unroll = 4

  config.contrastive.equal_texts = "positives"  # a name stands beside up to four images
  config.optim.update(name="muon", lr=4e-3, b2=0.98, weight_decay=0.05, schedule="linear", warmup="5%", clip=1.0)
  config.optim.adamw_scale = 0.25

  config.data.batch = 48
  sources(config)
  for source in (config.data.sources.scenes, config.data.sources.single):
    source.scenes.styles = STYLES + MORE_STYLES
  new_style = Source(kind="builtin", split="twemoji")
  if not args.emoji:
    for name, held_out, limit in (
      ("", scenes("scenes_val"), 1000),
      ("_in_new_style", scenes("scenes_new_style"), 1000),
      ("_of_new_pairs", scenes("scenes_new_pairs"), 300),
      ("_of_new_counts", scenes("scenes_new_counts"), 300),
      ("_of_new_relations", scenes("scenes_new_relations"), 300),
    ):
      evaluate(config, name, held_out, limit=limit, pixel_neighbours="scenes")
  else:
    del config.data.sources.scenes, config.data.sources.single
    config.data.crop = (0.8, 1.0)  # there are few
    evaluate(config, "", new_style)
  config.evals.twemoji = to_dict(Eval(kind="zero_shot", source=new_style, every="20%", pixel_neighbours="emoji"))
  config.checkpoint.every = "10%"
  if args.human or args.web or args.capfilt:
    in_loop(config, args)

  if args.runlocal:
    config.name += "_runlocal"
    config.model.image.update(size=48, patch=12, layers=2, width=64, mlp=256)
    config.model.text.update(vocab=1000, width=64, mlp=256, unimodal_layers=1, multimodal_layers=1)
    config.data.tokenizer_texts = 3000
    for source in config.data.sources.values():
      if source.split == "scenes":
        source.scenes.count = 1000
    config.evals = {name: config.evals[name] for name in ("captions", "retrieval", "twemoji") if name in config.evals}
    for settings in config.evals.values():
      settings.beams = 1
    shorten(config)
  return config


def in_loop(config, args) -> None:
  """Human pairs with true captions, up to five a scene, as COCO has, and ten times as many web pairs with one text."""
  human = to_dict(scenes("scenes", weight=0.0, count=2000))  # weights of 0: an image is as frequent as another
  noise = SceneNoise(wrong=0.2, other=0.1, title=0.05, file_name=0.05)
  web = to_dict(scenes("scenes", weight=0.0, count=20_000, seed=1, texts=1, noise=noise))
  human.origin, web.origin, web.sidecars = "human", "web", args.capfilt
  config.data.sources = {"human": human} if args.human else {"human": human, "web": web}
  config.evals = {
    f"{kind}{style}": config.evals[f"{kind}{style}"]
    for kind in ("captions", "retrieval")
    for style in ("", "_in_new_style")
  }
  for settings in config.evals.values():
    settings.pixel_neighbours = "human"
  # A matching head that begins with the filter's few steps tells nothing from nothing.
  config.captioning.weight = 1.0
  config.matching.update(weight=1.0, floor=1e-4)
