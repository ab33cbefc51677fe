"""Writes captions for images: JSON lines, text files beside the images, and a page to look at.

    python -m coca.caption photos/ cat.jpg gs://bucket/more --model=runs/tiny --out=captions.jsonl --html=captions.html
    python -m coca.caption photos/ --model=runs/tiny --txt

A line for each image, in the order given: {"image": "photos/cat.jpg", "caption": "a cat"}; with --n above 1
"captions" lists all, best first; an image that can't be read has "error" instead. Killed, the same command goes on
with OUT.partial and ends with the same bytes. Without --out, path and caption are printed.

With --txt the (best) caption goes into photos/cat.txt beside photos/cat.jpg, where trainers of diffusion models and the
folder source look for it. A text that is there already may be somebody's work: it stays and is counted, unless
--overwrite is given.
"""

import argparse
import sys

from coca import inference
from coca.config.command_line import one_line
from coca.decoding.settings import add_flags, from_flags, unknown
from coca.inference.caption_files import caption
from coca.storage.checkpoint import CheckpointError


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.caption", description="Write captions for images.")
  parser.add_argument("images", nargs="+", metavar="IMAGE", help="image, URL, or folder of images")
  parser.add_argument("--model", required=True, help="working directory, converted model, or hf://org/name")
  parser.add_argument("--out", help="JSON lines, one an image; left out: printed")
  parser.add_argument("--html", help="a page with the images")
  parser.add_argument("--txt", action="store_true", help="write the caption into NAME.txt beside each image, too")
  parser.add_argument("--overwrite", action="store_true", help="also where there is a NAME.txt with another text")
  parser.add_argument("--prompt", help="what every caption begins with")
  how = parser.add_argument_group("how captions are written", "see coca/config/decoding.py")
  add_flags(how)
  args, rest = parser.parse_known_args(argv)
  if rest:
    parser.error(unknown(rest[0].split("=")[0].removeprefix("--")))
  args = vars(args)
  with one_line(ValueError, ImportError, OSError, CheckpointError):
    from_flags(args)  # before the model is loaded, which takes long
    good, bad, left = caption(inference.load(args.pop("model")), **args)
  if left:
    print(
      f"{left} text files beside the images say something else and were left as they are; --overwrite replaces them",
      file=sys.stderr,
    )
  if bad:
    print(f"{bad} of {good + bad} images could not be read; each has an error in its line", file=sys.stderr)
  if not good:
    sys.exit(1)


if __name__ == "__main__":
  main()
