r"""Other people's weights as a model directory, and back.

    python -m coca.convert SOURCE OUT         # a folder with config, weights and tokenizer, or hf://org/name
    python -m coca.convert WEIGHTS OUT --model=coca_ViT-B-32           # a file of open_clip's weights alone
    python -m coca.convert WEIGHTS OUT --tokenizer=vocab.txt           # one of BLIP's original files
    python -m coca.convert VIT OUT --bert=BERT             # what BLIP's pre-training starts from; ALBEF's: --kind=albef
    python -m coca.convert SOURCE OUT --to=open_clip       # a model directory or a workdir: a folder for open_clip
    python -m coca.convert SOURCE OUT --to=transformers    # of a BLIP, a CLIP or a SigLIP

OUT then works wherever a workdir does: coca.load(OUT), config.init_from=OUT. What converts: open_clip's CoCa and its
CLIP, SigLIP, CLIPA, OpenVision, MetaCLIP 2, PE-Core, EVA01 and EVA02-E models with ViTs
(coca/interop/open_clip/settings.py; docs/weights.md has the list); transformers'
CLIPModel and SiglipModel (coca/interop/clip_transformers.py); BLIP's pre-trained models, captioners, retrieval and VQA
models, in their original files and as transformers has them (coca/interop/blip/settings.py); ALBEF's pre-trained and
retrieval models, in their original files (coca/interop/blip/albef.py). Weights are read from .safetensors; from .bin,
.pt and .pth only where torch is installed, and never by running code that is in them. OUT appears as a whole or not at
all.
"""

import argparse

from coca.config.command_line import one_line
from coca.interop.blip import weights as blip_weights
from coca.interop.convert import (
  from_blip,
  from_open_clip,
  from_transformers,
  from_vit_and_bert,
  kind_of,
  to_open_clip,
  to_transformers,
)
from coca.interop.open_clip import models as open_clip_models
from coca.storage.checkpoint import CheckpointError
from coca.storage.hub import local_folder


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("source", help="a folder or a file of weights, or hf://org/name")
  parser.add_argument("out", help="the directory to write")
  parser.add_argument("--model", default="", help=f"open_clip: one of {', '.join(open_clip_models.MODELS)}")
  parser.add_argument("--config", default="", help="a file like open_clip_config.json, or transformers' config.json")
  parser.add_argument("--tokenizer", default="", help="CLIP's or BERT's tokenizer files, if not beside the weights")
  parser.add_argument("--bert", default="", help="BLIP: uncased BERT as transformers has it; the source is timm's ViT")
  parser.add_argument("--kind", default="blip", choices=("blip", "albef"), help="with --bert: what is to start")
  parser.add_argument(
    "--matching_token",
    default="enc",
    choices=("enc", "cls"),
    help="BLIP: what a text to match and a question begin with; cls is what transformers has there",
  )
  for side in ("image", "text"):
    parser.add_argument(f"--{side}_heads", type=int, default=0, help="BLIP: attention heads, if not of width 64")
  parser.add_argument("--to", default="coca", choices=("coca", "open_clip", "transformers"))
  parser.add_argument(
    "--architecture",
    default="",
    choices=("", *blip_weights.CLASSES),
    help="transformers: its class, for a model with the parts of several",
  )
  args = parser.parse_args()
  if args.kind != "blip" and not args.bert:
    parser.error(f"--kind={args.kind} is for --bert=BERT, which is not given")
  if args.architecture and args.to != "transformers":
    parser.error("--architecture is for --to=transformers")
  unused = [x for x in ("model", "config", "tokenizer", "bert", "image_heads", "text_heads") if getattr(args, x)]
  if args.to != "coca" and unused:
    parser.error(f"--{unused[0]} is for weights that come here; --to={args.to} takes none")
  with one_line(ValueError, OSError, ImportError, CheckpointError):
    args.source, args.bert = (local_folder(path, torch=True) for path in (args.source, args.bert))
    use = f'coca.load("{args.out}")'
    if args.to == "open_clip":
      to_open_clip(args.source, args.out)
      use = f'open_clip.create_model("local-dir:{args.out}")'
    elif args.to == "transformers":
      use = f'{to_transformers(args.source, args.out, args.architecture)}.from_pretrained("{args.out}")'
    elif args.bert:
      heads = {"image_heads": args.image_heads, "text_heads": args.text_heads}
      from_vit_and_bert(args.source, args.bert, args.out, args.tokenizer, args.kind, **heads)
    elif (kind := "open_clip" if args.model else kind_of(args.source, args.config)) == "transformers":
      from_transformers(args.source, args.out, args.config, args.tokenizer)
    elif kind == "blip":
      from_blip(
        args.source,
        args.out,
        args.config,
        args.tokenizer,
        matching_token=args.matching_token,
        image_heads=args.image_heads,
        text_heads=args.text_heads,
      )
    else:
      from_open_clip(args.source, args.out, args.model, args.config, args.tokenizer)
  print(f"wrote {args.out}; use it with {use}")


if __name__ == "__main__":
  main()
