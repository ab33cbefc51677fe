r"""Captions a second beside open_clip's `generate`, in turns in one run: the same weights, pictures and settings.

    python tests/benchmarks/captions.py --peer_python=PEER/bin/python
    python tests/benchmarks/captions.py --peer_python=PEER/bin/python --strategy=sample --model=coca_ViT-L-14 \
      --tokens=77

PEER is an environment with torch, open_clip_torch and transformers below 4.56 (`generate` refuses newer ones). It makes
the model with random weights, which are converted for us (`coca.convert`); both write 30 tokens for 16 random pictures,
fp32, two threads, greedily and with 6 beams. While one side works, the other waits. The share of identical texts says
whether both did the same.

The second line is how people caption anew: samples of a nucleus of 0.9, whose draws are each side's own; so all of them
have as many tokens as there may be.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from turns import Worker, limit_threads, serve

TOKENS, LEAST = 30, 5  # generate's own seq_len and min_seq_len
TOP_P = 0.9


def pictures(batch: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)


def theirs(args) -> None:
  """open_clip's side; leaves its weights, config and vocabulary for us."""
  limit_threads(args.threads)
  from peer_open_clip import import_open_clip

  open_clip, torch = import_open_clip()
  import json

  from safetensors.torch import save_file

  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  model = open_clip.create_model(args.model).eval()
  # As it is made, the vocabulary head has the standard deviation 1 and every caption one word: spread it out.
  torch.nn.init.normal_(model.text_decoder.text_projection, std=0.1)
  folder = Path(args.folder) / "open_clip"
  folder.mkdir(exist_ok=True)
  save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
  (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config(args.model)}))
  shutil.copy(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"), folder)

  mean, std = (torch.tensor(x) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
  image = ((torch.from_numpy(pictures(args.batch)) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
  how = {
    "greedy": {"generation_type": "top_k", "top_k": 1},
    "beam": {"generation_type": "beam_search", "num_beams": args.beams, "num_beam_groups": 1},
    "sample": {"generation_type": "top_p", "top_p": TOP_P},
  }[args.strategy]

  def step():
    ids = model.generate(image, seq_len=args.tokens, min_seq_len=least(args), fixed_output_length=True, **how).numpy()
    np.save(Path(args.folder) / "theirs.npy", ids)
    return float(ids.shape[1])

  serve(step)


def ours(args) -> None:
  limit_threads(args.threads)
  import coca
  from coca.config.special import Special
  from coca.decoding.settings import Decoding

  model = coca.load(Path(args.folder) / "coca")
  writer = model.forward.writer(model.params)
  images, special = pictures(args.batch), Special(model.tokenizer.bos, model.tokenizer.eos)
  decoding = Decoding(
    strategy=args.strategy,
    beams=args.beams if args.strategy == "beam" else 1,
    top_p=TOP_P if args.strategy == "sample" else 1.0,
    min_length=least(args),
    max_length=args.tokens,
  )

  def step():
    batch = model.forward.put({"image": images})["image"]
    encoded = model.forward.encode(model.params, batch)
    found = model.forward.caption(writer, encoded, decoding, special=special, ids=np.arange(args.batch)).text
    np.save(Path(args.folder) / "ours.npy", found)
    return float(found.shape[-1])

  serve(step)


def least(args) -> int:
  return args.tokens - 1 if args.strategy == "sample" else LEAST


def same(folder: str, tokens: int) -> float:
  """Share of texts that are equal up to their end; generate's last token is always EOS."""

  def words(name):
    ids = np.load(Path(folder) / name)
    for row in ids.reshape(ids.shape[0], -1, ids.shape[-1])[:, 0]:
      row = row.tolist()[1:]
      yield row[: row.index(49407)] if 49407 in row[: tokens - 2] else row[: tokens - 2]

  return float(np.mean([a == b for a, b in zip(words("ours.npy"), words("theirs.npy"), strict=True)]))


def compare(args, strategy: str, folder: str) -> None:
  common = [
    f"--batch={args.batch}",
    f"--threads={args.threads}",
    f"--beams={args.beams}",
    f"--strategy={strategy}",
    f"--model={args.model}",
    f"--tokens={args.tokens}",
    f"--folder={folder}",
  ]
  peer = Worker("open_clip", [args.peer_python, __file__, "--worker=open_clip", *common])
  if not (Path(folder) / "coca").exists():
    subprocess.run(
      [args.python, "-m", "coca.convert", str(Path(folder) / "open_clip"), str(Path(folder) / "coca")], check=True
    )
  workers = [Worker("coca", [args.python, __file__, "--worker=coca", *common]), peer]
  workers[0].step()
  print(f"coca: {workers[0].seconds.pop():.1f} s with compilation", flush=True)
  for _ in range(args.rounds):
    for w in workers:
      w.step()
    print("  ".join(f"{w.name} {w.seconds[-1]:6.2f} s" for w in workers), flush=True)
  for w in workers:
    w.close()
  seconds = [statistics.median(w.seconds) for w in workers]
  name = f"{args.beams} beams" if strategy == "beam" else strategy
  peaks = f"{workers[0].peak / 2**30:.2f} and {peer.peak / 2**30:.2f} GiB"
  alike = "" if strategy == "sample" else f"; identical texts {same(folder, args.tokens):.0%}"
  print(
    f"{name}: {args.batch / seconds[0]:.2f} captions/s, open_clip {args.batch / seconds[1]:.2f}: "
    f"{seconds[1] / seconds[0]:.1f} x; peak memory {peaks}{alike}",
    flush=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--peer_python", help="a Python with torch and open_clip_torch")
  parser.add_argument("--python", default=sys.executable, help="a Python with coca")
  parser.add_argument("--model", default="coca_ViT-B-32", help="%(default)s")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--tokens", type=int, default=TOKENS, help="of a caption, %(default)s")
  parser.add_argument("--beams", type=int, default=6)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--strategy", choices=("greedy", "beam", "sample"), help="only this one")
  parser.add_argument("--worker", choices=("coca", "open_clip"), help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return {"coca": ours, "open_clip": theirs}[args.worker](args)
  with tempfile.TemporaryDirectory() as folder:
    for strategy in (args.strategy,) if args.strategy else ("greedy", "beam"):
      compare(args, strategy, folder)


if __name__ == "__main__":
  main()
