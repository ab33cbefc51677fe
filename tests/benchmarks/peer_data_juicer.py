"""CapFilt beside Data-Juicer's image_captioning_mapper and image_text_matching_filter, with the same weights.

    python tests/benchmarks/peer_data_juicer.py --peer_python=PEER/bin/python --out=OUT
    python tests/benchmarks/peer_data_juicer.py --peer_python=PEER/bin/python --out=OUT2 --images=40 --kill

PEER has py-data-juicer 1.6, torch and transformers 4; it makes BLIP's captioner and retrieval model at full size with
random weights (parity_blip.py), which `python -m coca.convert` converts. Both read the same images of scenes with a
caption each, of which one is cut in half and one holds text; both write one caption an image, drawn of the 50 likeliest
words as Data-Juicer has it, and keep texts of P(match) above 0.003, its default. Each is its own command, start and end
included, in turns. With --kill each is then killed at half its time and started again.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAST = 0.003  # image_text_matching_filter's min_score
IMAGE, END = "<__dj__image>", "<|__dj__eoc|>"
BROKEN = 2


def make_models(out: Path, seed: int) -> None:
  """In PEER: both models as transformers has them."""
  import parity_blip
  import torch
  import transformers

  for name in ("captioner", "retrieval"):
    torch.manual_seed(seed)
    text = {"num_attention_heads": 12, "label_smoothing": 0.1, "bos_token_id": parity_blip.DEC}
    model = getattr(transformers, parity_blip.NAMES[name])(transformers.BlipConfig(text_config=text, vision_config={}))
    parity_blip.randomize(torch, model)
    folder = out / "source" / name
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(parity_blip.vocabulary()) + "\n")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    transformers.BlipProcessor(transformers.BlipImageProcessor(), tokenizer).save_pretrained(folder)


def make_images(out: Path, count: int) -> None:
  """Images, captions.jsonl for coca, and pairs.jsonl and recipe.yaml for Data-Juicer."""
  from coca.config import Scenes, Source
  from coca.data.sources import open_source

  scenes = open_source(Source(kind="builtin", split="scenes", scenes=Scenes(pixels=384, texts=1)))
  (out / "images").mkdir(parents=True)
  with open(out / "images" / "captions.jsonl", "w") as ours, open(out / "pairs.jsonl", "w") as theirs:
    for i in range(count):
      record, path = scenes[i], out / "images" / f"{i:04}.png"
      data = {count // 3: record.image[: len(record.image) // 2], 2 * count // 3: b"<html>not found</html>"}
      path.write_bytes(data.get(i, record.image))
      text = record.texts[0].text
      print(json.dumps({"file_name": path.name, "caption": text}), file=ours)
      print(json.dumps({"text": f"{IMAGE} {text} {END}", "images": [str(path)]}), file=theirs)
  recipe = {
    "project_name": "peer",
    "dataset_path": str(out / "pairs.jsonl"),
    "export_path": str(out / "kept" / "kept.jsonl"),
    "np": 1,
    "use_cache": False,
    "open_tracer": False,
    "process": [
      {"image_captioning_mapper": {"hf_img2seq": str(out / "source" / "captioner")}},
      {"image_text_matching_filter": {"hf_blip": str(out / "source" / "retrieval"), "min_score": LEAST}},
    ],
  }
  (out / "recipe.yaml").write_text(json.dumps(recipe))  # YAML reads JSON


class Ours:
  name = "coca.capfilt"

  def __init__(self, out: Path):
    self.made = out / "capfilt"
    self.command = [
      *(sys.executable, "-m", "coca.capfilt", f"--config={ROOT}/configs/capfilt.py", f"--workdir={self.made}"),
      *(f"--config.captioner={out}/models/captioner", f"--config.filter={out}/models/retrieval"),
      *("--config.source.kind=folder", f"--config.source.path={out}/images", "--config.source.split="),
      *("--config.decoding.top_p=1.0", "--config.decoding.top_k=50", "--config.source.origin=web"),
      *(f"--config.min_matching={LEAST}", "--config.batch=40"),
    ]

  def texts(self) -> list[str]:
    """Those that are kept, in order, with their images."""
    import pyarrow.parquet as pq

    rows = pq.read_table(self.made / "texts").to_pylist()
    return [f"{row['key']} {row['text']}" for row in rows if row["kept"]]


class Theirs:
  name = "Data-Juicer"

  def __init__(self, out: Path, python: str):
    self.made = out / "kept"
    self.command = [str(Path(python).with_name("dj-process")), "--config", str(out / "recipe.yaml")]

  def texts(self) -> list[str]:
    rows = map(json.loads, (self.made / "kept.jsonl").read_text().splitlines())
    return [f"{Path(row['images'][0]).name} {row['text']}" for row in rows]


def run(what: Ours | Theirs, log: Path, kill_after: float = 0, is_anew: bool = True) -> float:
  """Seconds that the command took."""
  if is_anew:
    shutil.rmtree(what.made, ignore_errors=True)
  environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent / "hf"), "PYTHONPATH": str(ROOT)}
  started = time.perf_counter()
  with open(log, "w") as file:
    process = subprocess.Popen(what.command, stdout=file, stderr=file, env=environment, process_group=0)
    try:
      process.wait(kill_after or None)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
  if process.returncode and not kill_after:
    sys.exit(f"{what.name} ended with {process.returncode}: {log}")
  return time.perf_counter() - started


def report(what: Ours | Theirs, images: int, seconds: float, after: list[str] | None = None) -> None:
  texts = what.texts()
  seen = len({text.split()[0] for text in texts})
  digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
  same = "" if after is None else f"; the texts of before: {after == texts}"
  print(
    f"{what.name}: {seconds:.0f} s, {images / seconds:.2f} images/s; {len(texts)} texts of {seen} images kept, "
    f"{images - BROKEN - seen} whole images lost; {digest}{same}",
    flush=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--peer_python", default="")
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--images", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kill", action="store_true")
  parser.add_argument("--make_models", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  out = args.out.absolute()
  if args.make_models:
    make_models(out, args.seed)
    return
  if not (out / "models").exists():
    subprocess.run([args.peer_python, __file__, f"--out={out}", f"--seed={args.seed}", "--make_models"], check=True)
    for name in ("captioner", "retrieval"):
      convert = ("-m", "coca.convert", out / "source" / name, out / "models" / name, "--matching_token=cls")
      subprocess.run([sys.executable, *convert], check=True)
  if not (out / "images").exists():
    make_images(out, args.images)
  both = Ours(out), Theirs(out, args.peer_python)
  for _ in range(args.rounds):
    for what in both:
      seconds = run(what, out / f"{what.name}.log")
      report(what, args.images, seconds)
      if args.kill:
        before = what.texts()
        print(f"{what.name}: killed after {run(what, out / 'killed.log', kill_after=seconds / 2):.0f} s", flush=True)
        report(what, args.images, run(what, out / "again.log", is_anew=False), before)


if __name__ == "__main__":
  main()
