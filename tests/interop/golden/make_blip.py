"""Makes the golden files of test_blip_weights.py: run it on a Python with torch and transformers.

    PYTHONPATH=tests/benchmarks python tests/interop/golden/make_blip.py

In `blip/` a folder for each of transformers' BLIP classes as it saves them (random weights, all parts of the layout in
small, in half precision), and `outputs.npz`: what it computes from these weights in fp32. Decoder of the captioner and
encoder of the retrieval model share what BLIP's pre-training shares, so that the tests can put its file together.
"""

import shutil
from pathlib import Path

import numpy as np
from peer_open_clip import import_open_clip

torch = import_open_clip()[1]  # it makes torchvision importable beside a CPU torch
from transformers import (  # noqa: E402
  BertTokenizerFast,
  BlipConfig,
  BlipForConditionalGeneration,
  BlipForImageTextRetrieval,
  BlipForQuestionAnswering,
  BlipImageProcessor,
  BlipProcessor,
)

HERE = Path(__file__).parent / "blip"
TOKENIZERS = HERE.parents[2] / "data" / "tokenizers" / "golden"
CLASSES = {
  "captioner": BlipForConditionalGeneration,
  "retrieval": BlipForImageTextRetrieval,
  "vqa": BlipForQuestionAnswering,
}
CLS, SEP, DEC, ENC, VOCAB = 4, 5, 123, 124, 125  # of wordpiece/vocab.txt
VISION = {
  "hidden_size": 32,
  "intermediate_size": 36,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "image_size": 12,
  "patch_size": 4,
  "layer_norm_eps": 1e-3,
}
TEXT = {
  "vocab_size": VOCAB,
  "hidden_size": 24,
  "intermediate_size": 28,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 40,
  "layer_norm_eps": 1e-4,
  "bos_token_id": DEC,
  "sep_token_id": SEP,
  "label_smoothing": 0.1,
}
SIZE, LENGTH = VISION["image_size"], 9


def randomize(model) -> None:
  """Nothing at a value that would hide it; all of it exact in half precision."""
  with torch.no_grad():
    for key, x in model.named_parameters():
      is_norm = "norm" in key.lower() and key.endswith("weight")
      scale = 0.5 if "embedding" in key else x.shape[-1] ** -0.5 if x.ndim > 1 else 0.2
      x.copy_((torch.randn(x.shape) * scale + is_norm).half())
    if hasattr(model, "text_decoder"):
      bias = model.text_decoder.cls.predictions.bias
      bias[[0, DEC]] = -20.0  # never written here
      bias[SEP] = 5.0


def main() -> None:
  shutil.rmtree(HERE, ignore_errors=True)
  torch.manual_seed(1)
  # Where one answers questions, both text towers are built for one width, so pictures and texts have to have the same.
  widths = {"vqa": {"hidden_size": 24, "num_attention_heads": 3}}
  models = {
    name: cls(
      BlipConfig(vision_config=VISION | widths.get(name, {}), text_config=TEXT, image_text_hidden_size=16)
    ).eval()
    for name, cls in CLASSES.items()
  }
  for model in models.values():
    randomize(model)
  encoder, decoder = models["retrieval"].text_encoder, models["captioner"].text_decoder.bert
  encoder.load_state_dict({k: x for k, x in decoder.state_dict().items() if ".attention." not in k}, strict=False)
  models["retrieval"].vision_model.load_state_dict(models["captioner"].vision_model.state_dict())
  tokenizer = BertTokenizerFast.from_pretrained(TOKENIZERS / "wordpiece")
  processor = BlipProcessor(BlipImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer)
  outputs = run(models, processor)
  for name, model in models.items():
    model.half().save_pretrained(HERE / name)
    processor.save_pretrained(HERE / name)
  for file in [*HERE.glob("*/tokenizer*"), *HERE.glob("*/generation*")]:  # the tests take those of wordpiece/
    file.unlink()
  np.savez_compressed(HERE / "outputs.npz", **outputs)


def run(models, processor) -> dict:
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
  text = rng.integers(7, 120, (4, LENGTH)).astype(np.int64)
  text[:, 0] = CLS
  for row, end in enumerate((3, 5, 7, 8)):
    text[row, end], text[row, end + 1 :] = SEP, 0
  answer = text[:, :5].copy()
  answer[:, 0], answer[1, 2:], answer[2:, -1] = DEC, (SEP, 0, 0), SEP
  mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{n}")) for n in ("mean", "std"))
  pixels = ((torch.tensor(image) / 255 - mean) / std).permute(0, 3, 1, 2)
  ids, given = torch.tensor(text), torch.tensor(text != 0).long()
  written = ids.clone()
  written[:, 0] = DEC
  answers = torch.tensor(answer)
  labels = torch.where(answers == 0, -100, answers)
  questions = [row[row != 0][None] for row in ids]
  beams = {"num_beams": 3, "max_length": 12, "min_length": 4}
  prompt = torch.tensor(processor.tokenizer(["a picture of "] * 4).input_ids)
  captioner, retrieval, vqa = (models[name] for name in CLASSES)
  with torch.no_grad():
    return {
      "image": image,
      "text": text.astype(np.int32),
      "answer": answer.astype(np.int32),
      "similarity": retrieval(ids, pixels, use_itm_head=False, attention_mask=given).itm_score.numpy(),
      "matching": retrieval(ids, pixels, attention_mask=given).itm_score.numpy(),
      "logits": captioner(pixels, written).logits.numpy(),
      "captions": captioner.generate(pixels, **beams).numpy(),
      "prompted": captioner.generate(pixels, prompt, **beams).numpy(),
      # One question at a time, without padding: transformers 5.23 lets answers look at it, whatever the mask says.
      "answer_losses": np.array(
        [
          vqa(question, pixels[i : i + 1], decoder_input_ids=answers[i : i + 1], labels=labels[i : i + 1]).loss
          for i, question in enumerate(questions)
        ]
      ),
      "answers": np.stack(
        [
          np.pad(vqa.generate(question, pixels[i : i + 1], num_beams=3, max_length=6)[0].numpy(), (0, 6))[:6]
          for i, question in enumerate(questions)
        ]
      ),
    }


if __name__ == "__main__":
  main()
