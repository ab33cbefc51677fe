"""BLIP beside transformers', in turns in one run with the same weights: captions a second, and a fine-tuning step.

    python tests/benchmarks/blip.py --peer_python=PEER/bin/python

PEER is an environment with torch, transformers and open_clip_torch. It makes a BlipForConditionalGeneration with
ViT-B/16 at 384 pixels and random weights, which are converted for us (`coca.convert`). Both write 20 tokens for 16
random pictures, fp32, two threads, with 3 beams and with nucleus sampling (p 0.9), from caches; both make fine-tuning
steps (LM loss over 40 tokens, no dropout, AdamW). While one side works, the other waits. The share of identical texts
says whether both did the same; samples differ.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from turns import Worker, limit_threads, serve

TASKS = ("beam", "nucleus", "step")
TOKENS, TEXT, PIXELS, VOCAB = 20, 40, 384, 30_524


def pictures(batch: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (batch, PIXELS, PIXELS, 3), np.uint8)


def texts(batch: int) -> np.ndarray:
  ids = np.random.default_rng(1).integers(1000, VOCAB - 2, (batch, TEXT))
  ids[:, 0], ids[:, -1] = VOCAB - 2, 102
  return ids


def theirs(args) -> None:
  """transformers' side; leaves its weights, settings and a vocabulary for us."""
  limit_threads(args.threads)
  from peer_open_clip import import_open_clip

  torch = import_open_clip()[1]  # it makes torchvision importable beside a CPU torch
  from transformers import BlipConfig, BlipForConditionalGeneration

  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  sizes = {"num_attention_heads": 12, "hidden_size": 768}
  config = BlipConfig(vision_config={**sizes, "image_size": PIXELS}, text_config={**sizes, "intermediate_size": 3072})
  model = BlipForConditionalGeneration(config)
  for x in model.parameters():  # as they are made, all captions are one word: livelier ones
    if x.ndim > 1:
      torch.nn.init.normal_(x, std=0.05)
  folder = Path(args.folder) / "transformers"
  if not folder.exists():
    model.save_pretrained(folder)
    names = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*names, *(f"w{i}" for i in range(VOCAB - 2 - len(names)))]) + "\n")
  mean, std = (torch.tensor(x) for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
  image = ((torch.from_numpy(pictures(args.batch)) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

  def write():
    how = {"num_beams": 3} if args.task == "beam" else {"do_sample": True, "top_p": 0.9, "top_k": 0}
    with torch.no_grad():
      ids = model.generate(image, max_length=TOKENS, min_length=TOKENS - 1, **how)
    np.save(Path(args.folder) / "theirs.npy", ids.numpy())
    return float(ids.shape[1])

  def step():
    ids = torch.from_numpy(texts(args.batch))
    loss = model(pixel_values=image, input_ids=ids, labels=ids).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  if args.task == "step":
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)
  else:
    model.eval()
  serve(step if args.task == "step" else write, parameters=sum(x.numel() for x in model.parameters()))


def ours(args) -> None:
  limit_threads(args.threads)
  import coca

  folder = Path(args.folder) / "coca"
  serve(training(folder, args) if args.task == "step" else writing(coca.load(folder), args))


def writing(model, args):
  from coca.config.special import Special
  from coca.decoding.settings import Decoding

  writer = model.forward.writer(model.params)
  how = {"strategy": "beam", "beams": 3} if args.task == "beam" else {"strategy": "sample", "top_p": 0.9}
  decoding = Decoding(min_length=TOKENS - 1, max_length=TOKENS, **how)
  images, special = pictures(args.batch), Special(model.tokenizer.bos, model.tokenizer.eos)
  ids = np.arange(args.batch, dtype=np.uint32)

  def write():
    batch = model.forward.put({"image": images, "ids": ids})
    encoded = model.forward.encode(model.params, batch["image"])
    out = np.asarray(model.forward.caption(writer, encoded, decoding, special=special, ids=batch["ids"]).text)
    np.save(Path(args.folder) / "ours.npy", out[:, 0])
    return float(out.shape[-1])

  return write


def training(folder: Path, args):
  from dataclasses import replace

  from train_step import changed

  from coca.config import parse, to_dict
  from coca.devices import sharding
  from coca.devices.host import put_batch
  from coca.storage.workdir import read_config
  from coca.training.init_from import initial_params
  from coca.training.state import Setup
  from coca.training.step import TrainStep

  config = to_dict(read_config(folder))
  config.model.med.dropout = 0.0
  config.captioning.update(prompt_tokens=0, label_smoothing=0.0)
  config.optim.update(name="adamw", lr=1e-5, schedule="constant", warmup="0", weight_decay=0.05, decay_mask="all")
  config.data.batch = args.batch
  config = parse(changed(config, args.set))
  mesh = sharding.make_mesh(config.mesh)
  setup = Setup(config, mesh)
  state = setup.init_state()
  state = replace(state, params=initial_params(folder, config, state.params, mesh)[0])
  train_step = TrainStep(setup)
  batch = put_batch(
    {
      "image": pictures(args.batch),
      "text": texts(args.batch).astype(np.int32),
      "hashes": np.arange(2 * args.batch, dtype=np.uint32).reshape(-1, 2),
      "weight": np.ones(args.batch, np.float32),
    },
    mesh,
  )

  def step():
    nonlocal state
    state, metrics = train_step(state, batch)
    return float(metrics["loss"])

  return step


def compare(args, task: str, folder: str) -> None:
  common = [
    f"--batch={args.batch}",
    f"--threads={args.threads}",
    f"--task={task}",
    f"--folder={folder}",
    *(f"--set={x}" for x in args.set),
  ]
  peer = Worker("transformers", [args.peer_python, __file__, "--worker=transformers", *common])
  if not (Path(folder) / "coca").exists():
    subprocess.run([args.python, "-m", "coca.convert", f"{folder}/transformers", f"{folder}/coca"], check=True)
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
  memory = [w.peak / 2**30 for w in workers]
  print(
    f"{task}: {args.batch / seconds[0]:.2f} pictures/s, transformers {args.batch / seconds[1]:.2f}: "
    f"{seconds[1] / seconds[0]:.2f} x; peak memory {memory[0]:.2f} and {memory[1]:.2f} GiB",
    flush=True,
  )
  if task == "beam":
    texts = [np.load(f"{folder}/{name}.npy")[:, : TOKENS - 1] for name in ("ours", "theirs")]
    print(f"identical texts: {np.mean([(a == b).all() for a, b in zip(*texts, strict=True)]):.0%}")
  if task == "step":
    print(f"losses: {json.dumps([w.losses[:2] for w in workers])}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--peer_python", help="a Python with these")
  parser.add_argument("--python", default=sys.executable, help="a Python with coca")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--task", choices=TASKS, help="only this one")
  parser.add_argument("--set", action="append", default=[], help="of our training step, such as model.remat=dots")
  parser.add_argument("--worker", choices=("coca", "transformers"), help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return {"coca": ours, "transformers": theirs}[args.worker](args)
  with tempfile.TemporaryDirectory() as folder:
    for task in (args.task,) if args.task else TASKS:
      compare(args, task, folder)


if __name__ == "__main__":
  main()
