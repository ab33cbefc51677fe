"""Our outputs beside transformers' BLIP with the same full-size random weights, in fp32, and the way back.

    python tests/benchmarks/parity_blip.py --peer_python=PEER/bin/python

PEER is an environment with torch and transformers. It makes BlipForConditionalGeneration, BlipForImageTextRetrieval and
BlipForQuestionAnswering with random weights (ViT-B/16 at 384, BERT-base with 30,524 tokens), saves each with
`save_pretrained` and says what it computes from random pictures and texts; here that is converted with
`python -m coca.convert --matching_token=cls`, run and compared: similarities, matching logits, logits of words,
captions by 3 beams without and with the prompt, scores of given answers and written answers. Then each is exported with
`--to=transformers` and has to load there without a missing or unexpected name and give the same, bit for bit. Needs
about 8 GB of memory, and 4 of disk in a temporary folder.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

NAMES = {
  "captioner": "BlipForConditionalGeneration",
  "retrieval": "BlipForImageTextRetrieval",
  "vqa": "BlipForQuestionAnswering",
}
CLS, SEP, DEC = 101, 102, 30_522
CAPTION = {"max_length": 20, "min_length": 5}
ANSWER_LENGTH, ANSWERS = 10, 6
PROMPT = "a picture of "


def peer(args) -> None:
  """transformers' side: makes one model and its outputs, or loads an exported one."""
  from peer_open_clip import import_open_clip

  torch = import_open_clip()[1]  # it makes torchvision importable beside a CPU torch
  import transformers

  folder, name = Path(args.folder), args.name
  cls = getattr(transformers, NAMES[name])
  if args.peer == "again":
    model, loading = cls.from_pretrained(folder / "exported" / name, output_loading_info=True)
    assert not any(loading.values()), loading
  else:
    torch.manual_seed(args.seed)
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12, "label_smoothing": 0.1}, vision_config={})
    model = cls(config)
    randomize(torch, model)
    model.save_pretrained(folder / "source" / name)
    (folder / "source" / name / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
  processor = (
    transformers.BlipProcessor.from_pretrained(folder / "exported" / name)
    if args.peer == "again"
    else transformers.BlipProcessor(
      transformers.BlipImageProcessor(), transformers.BertTokenizerFast.from_pretrained(folder / "source" / name)
    )
  )
  arrays = inputs(args) | {"prompt": np.array(processor(text=PROMPT).input_ids)}
  with torch.no_grad():
    outputs = {k: v.numpy() for k, v in run(torch, model.eval(), name, arrays, processor.image_processor).items()}
  if args.peer == "first":
    print(f"{cls.__name__}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    np.savez(folder / f"{name}.npz", **outputs)
  else:
    saved = np.load(folder / f"{name}.npz")
    differing = [key for key, x in outputs.items() if not np.array_equal(x, saved[key])]
    print(
      f"exported, loaded as {cls.__name__}, no missing or unexpected names: "
      f"{', '.join(differing) + ' differ' if differing else 'all outputs bit for bit the same'}",
      flush=True,
    )
    sys.exit(bool(differing))


def randomize(torch, model) -> None:
  """Projections that keep the size of what goes in, so that the outputs depend on all of the inputs."""
  with torch.no_grad():
    for key, x in model.named_parameters():
      is_norm = "norm" in key.lower() and key.endswith("weight")
      std = 0.1 if "embeddings." in key or x.ndim < 2 else x[0].numel() ** -0.5
      x.normal_(0, std).add_(float(is_norm))
    if hasattr(model, "text_decoder"):
      model.text_decoder.cls.predictions.bias[SEP] = 8.0  # so that texts end


def vocabulary() -> list[str]:
  """As many pieces as BERT has, the special ones and those of the prompt where BERT has them."""
  pieces = [f"w{i}x" for i in range(DEC)]
  for i, piece in (
    (0, "[PAD]"),
    (100, "[UNK]"),
    (CLS, "[CLS]"),
    (SEP, "[SEP]"),
    (103, "[MASK]"),
    (1037, "a"),
    (3861, "picture"),
    (1997, "of"),
  ):
    pieces[i] = piece
  return pieces


def inputs(args) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(args.seed)

  def texts(rows, length, first, shortest):
    out = rng.integers(1000, DEC, (rows, length), np.int32)
    out[:, 0] = first
    for row, end in enumerate(rng.integers(shortest, length, rows)):
      out[row, end], out[row, end + 1 :] = SEP, 0
    return out

  return {
    "image": rng.integers(0, 256, (args.images, 384, 384, 3), np.uint8),
    "text": texts(args.images, 35, CLS, 4),
    "answers": texts(ANSWERS, ANSWER_LENGTH, DEC, 2),
  }


def run(torch, model, name: str, arrays: dict, images) -> dict:
  mean, std = torch.tensor(images.image_mean), torch.tensor(images.image_std)
  pixels = ((torch.tensor(arrays["image"]) / 255 - mean) / std).permute(0, 3, 1, 2)
  text, prompt = torch.tensor(arrays["text"]).long(), torch.tensor(arrays["prompt"])[None]
  given = (text != 0).long()
  if name == "retrieval":
    return {
      "similarity": model(text, pixels, use_itm_head=False, attention_mask=given).itm_score,
      "matching": model(text, pixels, attention_mask=given).itm_score,
    }
  if name == "captioner":
    words = text.clone()
    words[:, 0] = DEC
    return {
      "logits": model(pixels, words).logits,
      "captions": model.generate(pixels, num_beams=3, **CAPTION),
      "prompted": model.generate(pixels, prompt.repeat(len(text), 1), num_beams=3, **CAPTION),
    }
  # One question at a time, without padding: transformers 5.23 lets answers look at it, whatever the mask says.
  answers, scores, written = torch.tensor(arrays["answers"]).long(), [], []
  for question, picture in zip(text, pixels, strict=True):
    question, picture = question[question != 0][None], picture[None]
    for answer in answers:
      answer = answer[answer != 0][None]
      loss = model(question, picture, decoder_input_ids=answer, labels=answer).loss  # the mean over an answer's words
      scores.append(-loss * (answer.shape[1] - 1))
    row = model.generate(question, picture, num_beams=3, max_length=ANSWER_LENGTH)[0]
    written.append(torch.nn.functional.pad(row, (0, ANSWER_LENGTH - len(row)), value=SEP))
  return {"scores": torch.stack(scores).reshape(len(text), -1), "answers": torch.stack(written)}


def compare(folder: Path, name: str, args) -> bool:
  """Our side: loads the converted directory and compares. Returns whether all is well."""
  import jax

  jax.config.update("jax_default_matmul_precision", "highest")
  from flax import nnx

  import coca
  from coca.config.special import Special
  from coca.decoding.decode import prompts
  from coca.decoding.rank import rank_answers
  from coca.decoding.settings import Decoding

  model = coca.load(folder / "converted" / name)
  expected, arrays = np.load(folder / f"{name}.npz"), inputs(args)
  image, text, forward, params = arrays["image"], arrays["text"], model.forward, model.params
  special, good = Special(model.tokenizer.bos, model.tokenizer.eos), True

  def ours(function, *inputs):
    return jax.tree.map(
      np.asarray, jax.jit(lambda params, *a: function(nnx.merge(forward.graphdef, params), *a))(params, *inputs)
    )

  def close(what, found, wanted):
    nonlocal good
    difference = np.abs(found - wanted).max()
    print(f"{what}: largest difference {difference:.1e}, of a deviation of {np.std(wanted):.2g}", flush=True)
    good &= bool(difference <= 1e-4)

  def equal(what, found, wanted):
    """Up to the first [SEP]: behind it, transformers writes more of these."""
    nonlocal good
    ended = np.cumsum(wanted == SEP, axis=1) - (wanted == SEP) > 0
    rows = ((np.asarray(found)[:, 0, : wanted.shape[1]] == wanted) | ended).all(axis=1)
    lengths = (~ended).sum(axis=1)
    print(
      f"{what}: {rows.sum()} of {len(rows)} identical, {len(np.unique(wanted, axis=0))} distinct ones of "
      f"{lengths.min()} to {lengths.max()} tokens",
      flush=True,
    )
    good &= bool(rows.all())

  if name == "retrieval":
    close(
      "similarities (ITC)",
      np.asarray(forward.embed_images(params, image)) @ np.asarray(forward.embed_texts(params, text)).T,
      expected["similarity"],
    )
    logits = ours(lambda m, image, text: m.match(m.ground(None, text, m.image_encoder(image)), text), image, text)
    close("matching logits (ITM)", logits.reshape(-1, 2), expected["matching"])
    return good
  writer, encoded = forward.writer(params), forward.encode(params, image)
  if name == "captioner":
    words = np.where(np.arange(text.shape[1]) == 0, DEC, text)
    logits = ours(lambda m, image, text: m.logits(m(image, text, contrast=False).states), image, words)
    close("logits of words (LM)", logits[text != 0], expected["logits"][text != 0])
    decoding = Decoding(strategy="beam", beams=3, **CAPTION)
    equal("captions by 3 beams", forward.caption(writer, encoded, decoding, special=special).text, expected["captions"])
    start, lengths = prompts(model.tokenizer, [PROMPT] * len(image), CAPTION["max_length"])
    decoded = forward.caption(writer, encoded, decoding, special=special, prompt=start, lengths=lengths)
    equal(f"captions by 3 beams, prompt {PROMPT!r}", decoded.text, expected["prompted"])
    return good
  _, chosen, scores = ours(
    lambda m, tokens, text, answers: rank_answers(m, m.ask(tokens, text), answers, ANSWERS, 0.1),
    encoded.tokens,
    text,
    arrays["answers"],
  )
  close("scores of answers (VQA)", scores, np.take_along_axis(expected["scores"], chosen, axis=1))
  decoding = Decoding(strategy="beam", beams=3, max_length=ANSWER_LENGTH)
  decoded = forward.answer(writer, encoded, text, decoding, special=special)
  equal("answers by 3 beams", decoded.text, expected["answers"])
  return good


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--peer_python", help="a Python with torch and transformers")
  parser.add_argument("--images", type=int, default=4, help="pictures, texts and questions")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--peer", default="", help=argparse.SUPPRESS)
  parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
  parser.add_argument("--name", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.peer:
    return peer(args)
  if not args.peer_python:
    parser.error("--peer_python is needed")

  def run(*command, check=True):
    return subprocess.run(list(map(str, command)), check=check).returncode == 0

  good = True
  for name in NAMES:
    with tempfile.TemporaryDirectory() as folder:
      folder = Path(folder)
      own = [
        args.peer_python,
        __file__,
        f"--images={args.images}",
        f"--seed={args.seed}",
        f"--folder={folder}",
        f"--name={name}",
      ]
      run(*own, "--peer=first")
      run(
        sys.executable,
        "-m",
        "coca.convert",
        folder / "source" / name,
        folder / "converted" / name,
        "--matching_token=cls",
      )
      good &= compare(folder, name, args)
      (folder / "exported").mkdir()
      run(
        sys.executable,
        "-m",
        "coca.convert",
        folder / "converted" / name,
        folder / "exported" / name,
        "--to=transformers",
      )
      good &= run(*own, "--peer=again", check=False)
  print("all within 1e-4, all texts and exported outputs identical" if good else "NOT the same")
  sys.exit(not good)


if __name__ == "__main__":
  main()
