"""Questions about images as the VQA fine-tunes of CoCa and BLIP read them."""

from coca.config import Draft, Source, to_dict

QUESTIONS = 443_757  # of VQA v2's training


def vqa_v2(folder: str, part: str) -> Draft:
  """VQA v2 as a source: `folder`/`part` holds COCO's images and the files of their questions and answers."""
  return to_dict(Source(kind="folder", path=f"{folder}/{part}", split="", question_key="question"))


def visual_genome(config: Draft, folder: str) -> None:
  """Adds Visual Genome's questions to a config, in place, with each question of any source as frequent as another.

  Args:
    config: with its other sources of questions.
    folder: of the images and question_answers.json. An answer, there is one a question, weighs 0.2 (salesforce/BLIP,
      data/vqa_dataset.py).
  """
  source = Source(kind="folder", path=folder, split="", question_key="question", answer_weight=0.2)
  config.data.sources.visual_genome = to_dict(source)
  for source in config.data.sources.values():
    source.weight = 0.0
