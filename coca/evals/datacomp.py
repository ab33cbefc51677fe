"""DataComp's list of tasks (mlfoundations/datacomp, tasklist.yml), and its eval_results.jsonl.

Its numbers are those of eval_utils/ there: accuracy, the mean over classes of their recall, of WILDS and the fairness
sets the worst group's accuracy or the F1 score, of retrieval the mean of both directions at 1. The average over 38
tasks is DataComp's score: of 40, FairFace and UTKFace have no main metric. WinoGAViL, which is no folder of
CLIP_benchmark, is not measured here.
"""

import io
from collections.abc import Iterator

import numpy as np

from coca.evals.zero_shot import Answers

RECALL, RETRIEVAL, F1 = "mean_per_class_recall", "mean_recall@1", "F1-macro_all"
WORST = {"wilds/fmow": "acc_worst_region", "fairness/dollar_street": "acc_top5_wg", "fairness/geode": "acc_wg"}
OF_ALL = 38  # tasks with a main metric
# Key of the task -> its name; and the main metric, where it is not acc1.
TASKS = {
  "vtab/caltech101": "Caltech-101",
  "cifar10": "CIFAR-10",
  "vtab/cifar100": "CIFAR-100",
  "vtab/clevr_count_all": "CLEVR Counts",
  "vtab/clevr_closest_object_distance": "CLEVR Distance",
  "country211": "Country211",
  "vtab/dtd": "Describable Textures",
  "vtab/eurosat": "EuroSAT",
  "fgvc_aircraft": "FGVC Aircraft",
  "food101": "Food-101",
  "gtsrb": "GTSRB",
  "imagenet1k": "ImageNet 1k",
  "imagenet_sketch": "ImageNet Sketch",
  "imagenetv2": "ImageNet v2",
  "imagenet-a": "ImageNet-A",
  "imagenet-o": "ImageNet-O",
  "imagenet-r": "ImageNet-R",
  "vtab/kitti_closest_vehicle_distance": "KITTI Vehicle Distance",
  "mnist": "MNIST",
  "objectnet": "ObjectNet",
  "vtab/flowers": "Oxford Flowers-102",
  "vtab/pets": "Oxford-IIIT Pet",
  "voc2007": "Pascal VOC 2007",
  "vtab/pcam": "PatchCamelyon",
  "renderedsst2": "Rendered SST2",
  "vtab/resisc45": "RESISC45",
  "cars": "Stanford Cars",
  "stl10": "STL-10",
  "sun397": "SUN397",
  "vtab/svhn": "SVHN",
  "retrieval/flickr_1k_test_image_text_retrieval": "Flickr",
  "retrieval/mscoco_2014_5k_test_image_text_retrieval": "MSCOCO",
  "misc/winogavil": "WinoGAViL",
  "wilds/iwildcam": "iWildCam",
  "wilds/camelyon17": "Camelyon17",
  "wilds/fmow": "FMoW",
  "fairness/dollar_street": "Dollar Street",
  "fairness/geode": "GeoDE",
  "fairness/fairface": "FairFace",
  "fairness/utkface": "UTKFace",
}
MAIN = (
  dict.fromkeys(("vtab/caltech101", "fgvc_aircraft", "vtab/flowers", "vtab/pets"), RECALL)
  | dict.fromkeys((key for key in TASKS if key.startswith("retrieval/")), RETRIEVAL)
  | {"wilds/iwildcam": F1}
  | WORST
)
UNMEASURED = ("fairness/fairface", "fairness/utkface")  # several labels an image, told in texts of a form of their own
# CLIP_benchmark's names for the two sets whose folders DataComp does not read as tars.
_ALIASES = {
  "flickr30k": "retrieval/flickr_1k_test_image_text_retrieval",
  "mscoco_captions": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
}
_KEYS = {name: key for key in TASKS for name in (key.replace("/", "-"), key.rpartition("/")[2])} | _ALIASES


def task_of(folder: str) -> str:
  """'wds_vtab-caltech101_test', 'wds_caltech101' -> 'vtab/caltech101'; '' for what is not in the list."""
  return _KEYS.get(folder.removeprefix("wds_").removesuffix("_test"), "")


def metrics(key: str, numbers: dict[str, float], answers: Answers | None, groups: np.ndarray | None) -> dict:
  """A task's metrics under DataComp's names, 'main_metric' among them.

  Args:
    key: of the task; '' for one that is not in the list, whose main metric is that of its kind.
    numbers: what the evaluator told.
    answers: of a zero_shot evaluator.
    groups: int [N], the group of each answer, of the tasks in `WORST`; None: unknown.
  """
  if answers is None:
    found = {
      f"{name}_retrieval_recall@{k}": numbers[f"{way}_r{k}"]
      for name, way in (("image", "t2i"), ("text", "i2t"))
      for k in (1, 5, 10)
    }
    found[RETRIEVAL] = (numbers["t2i_r1"] + numbers["i2t_r1"]) / 2
  else:
    found = {
      "acc1": numbers["top1"],
      "acc5": numbers["top5"] if answers.classes >= 5 else None,
      RECALL: numbers[RECALL],
    }
    if key == "wilds/iwildcam":
      found[F1] = f1_macro(answers.label, answers.best[:, 0])
    if groups is not None:
      depth = 5 if "top5" in WORST[key] else 1
      found[WORST[key]] = min(float(np.mean(answers.rank[groups == g] < depth)) for g in np.unique(groups))
  main = MAIN.get(key, RETRIEVAL if answers is None else "acc1")
  return found | {"main_metric": found.get(main)}


def f1_macro(label: np.ndarray, taken: np.ndarray) -> float:
  """The mean of the F1 scores of the classes that have images: int [N], int [N] -> share."""
  count = max(label.max(), taken.max()) + 1
  images, answers, hits = (np.bincount(x, minlength=count) for x in (label, taken, label[taken == label]))
  return float(np.mean((2 * hits / np.maximum(images + answers, 1))[images > 0]))


def groups_of(source, index: np.ndarray) -> np.ndarray:
  """The groups of records of a WebDataset source: the first number of the .npy of each, int [N].

  Raises:
    ValueError: a record lacks it.
  """
  found = list(_first_numbers(source.members("npy")))
  if any(found[i] is None for i in index):
    raise ValueError(f"'{source.name}': this task is scored by groups, and not all records have theirs, a .npy")
  return np.array([found[i] for i in index], np.int64)


def _first_numbers(members) -> Iterator[int | None]:
  for data in members:
    yield None if data is None else int(np.load(io.BytesIO(data), allow_pickle=False).reshape(-1)[0])
