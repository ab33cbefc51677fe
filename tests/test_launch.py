"""The scripts in launch/: dry runs as recorded, real runs against tools that check their arguments, restarts.

`python tests/test_launch.py` records the dry runs again. The flags of gcloud are those of its own table (release 528),
with --accelerator-topology-mode and --target-size-policy-mode of 2026; those of xpk come from its parser (1.16).
"""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "golden" / "launch_dry_runs.txt"
ODD = [
  "--config=configs/coca base.py:it's",
  "--workdir=/mnt/coca/$HOME run",
  '--config.data.sources.a.path="{00..09}.tar"*',
]

SETTINGS = {
  "tpu_vm.sh": "NAME=coca ZONE=us-east5-b TYPE=v6e-16 COCA_MOUNT=10.0.0.2:/share",
  "queued_resource.sh": "NAME=coca ZONE=us-west4-a TYPE=v5litepod-64 BUCKET=gs://bucket SPOT=1",
  "mig.sh": "NAME=coca ZONE=us-central1-c MACHINE=tpu7x-standard-4t TOPOLOGY=2x2x4 HOSTS=4 BUCKET=gs://bucket "
  "CLOUDSDK_CORE_PROJECT=project HOST=coca-1wjb MODEL=SPOT",
  "xpk.sh": "NAME=coca CLUSTER=tpus ZONE=us-central1-c TYPE=tpu7x-32 STORAGE=runs SHARE=gs://bucket SLICES=2",
  "slurm.sbatch": "",
  "run_worker.sh": "COCA_PYTHON=python COCA_EXTRA=tpu COCA_MOUNT=10.0.0.2:/share",
}
CALLS = [
  *(("tpu_vm.sh", verb) for verb in ("create", "setup", "run", "stop", "logs", "status", "delete")),
  *(("queued_resource.sh", verb) for verb in ("create", "logs", "status", "delete")),
  *(("mig.sh", verb) for verb in ("create", "logs", "status", "delete")),
  *(("xpk.sh", verb) for verb in ("cluster", "storage", "run", "status", "logs", "delete")),
  ("slurm.sbatch", ""),
  ("run_worker.sh", ""),
]
XPK = {
  "cluster create": "--cluster --zone --project --tpu-type --num-slices --on-demand --spot --reservation "
  "--enable-workload-identity --enable-gcsfuse-csi-driver",
  "storage attach": "--cluster --zone --project --type --bucket --mount-point --readonly --size --auto-mount",
  "workload create": "--cluster --zone --project --workload --tpu-type --num-slices --base-docker-image --script-dir "
  "--max-restarts --storage --command",
  "workload list": "--cluster --zone --project",
  "workload delete": "--cluster --zone --project --workload",
}
FAKE = r"""#!{python}
import json, os, sys
from pathlib import Path
tool, arguments = Path(sys.argv[0]).name, sys.argv[1:]
with open(os.environ["CALLS"], "a") as f:
  f.write(json.dumps([tool, *arguments]) + "\n")
for a in arguments:
  if "startup-script=" in a:  # its folder is gone when the script has ended
    Path(os.environ["CALLS"]).with_name("startup").write_text(Path(a.split("startup-script=")[1]).read_text())
table = json.loads(Path(os.environ["FLAGS"]).read_text()).get(tool)
if table:
  words = [a for a in arguments if not a.startswith("-")]
  command = max((c for c in table if words[:len(c.split())] == c.split()), key=len, default=None)
  if command is None:
    sys.exit(f"{{tool}}: no command {{words}}")
  known = (table[command] + " " + table.get("*", "")).split()
  for a in arguments:
    if a.startswith("--") and a.split("=")[0] not in known:
      sys.exit(f"{{tool}} {{command}}: no flag {{a}}")
answers = Path(os.environ["CALLS"]).with_name("answers")  # "words<TAB>status<TAB>output", the first that fits, once
if answers.exists():
  lines = [line for line in answers.read_text().splitlines() if line]
  for i, line in enumerate(lines):
    words, status, output = line.split("\t")
    if words in " ".join([tool, *arguments]):
      answers.write_text("\n".join(lines[:i] + lines[i + 1:]) + "\n")
      print(output)
      sys.exit(int(status))
"""


def arguments_of(script, verb):
  takes_arguments = verb in ("run", "") or (verb == "create" and script != "tpu_vm.sh")
  return ([verb] if verb else []) + ODD * takes_arguments


def environment(script, **more):
  settings = dict(word.split("=", 1) for word in SETTINGS[script].split())
  return {"PATH": os.environ["PATH"], "HOME": "/home/someone", **settings, **more}


def dry_run(script, verb):
  command = ["bash", f"launch/{script}", "--dry-run", *arguments_of(script, verb)]
  out = subprocess.run(command, cwd=ROOT, env=environment(script), capture_output=True, text=True, check=True).stdout
  return out.replace(str(ROOT), "ROOT")


def record():
  return "".join(f"$ {script} {verb}\n{dry_run(script, verb)}\n" for script, verb in CALLS)


def test_dry_runs_are_as_recorded():
  assert record() == RECORDED.read_text()


@pytest.fixture
def tools(tmp_path):
  """Fakes of all tools, first on the PATH: they write down how they are called and refuse flags they do not know."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for name in ("gcloud", "xpk", "kubectl", "git", "srun", "sbatch", "scontrol"):
    (folder / name).write_text(FAKE.format(python=sys.executable))
    (folder / name).chmod(stat.S_IRWXU)
  flags = tmp_path / "flags.json"
  gcloud = json.loads((Path(__file__).parent / "golden" / "gcloud_flags.json").read_text())
  flags.write_text(json.dumps({"gcloud": gcloud, "xpk": XPK}))
  calls = tmp_path / "calls"
  calls.touch()
  scratch = tmp_path / "scratch"
  scratch.mkdir()
  return {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "FLAGS": str(flags), "TMPDIR": str(scratch)}


def calls(tools):
  return [json.loads(line) for line in Path(tools["CALLS"]).read_text().splitlines()]


def script(name, tools, *arguments, **more):
  return subprocess.run(
    ["bash", f"launch/{name}", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    env=environment(name, **tools, **more),
  )


@pytest.mark.parametrize("name", ["tpu_vm.sh", "queued_resource.sh", "mig.sh", "xpk.sh"])
def test_what_a_dry_run_prints_is_what_is_called(tools, name):
  for _, verb in (call for call in CALLS if call[0] == name):
    Path(tools["CALLS"]).write_text("")
    done = script(name, tools, *arguments_of(name, verb))
    assert done.returncode == 0, done.stderr
    printed = re.sub(r"cat >.*?\nEND\n", "", dry_run(name, verb), flags=re.DOTALL).replace("ROOT", str(ROOT))
    called = [call for call in calls(tools) if call[0] != "git" or "archive" in call]
    called = [[re.sub(rf"{tools['TMPDIR']}/tmp\.\w+", "$scratch", a) for a in call] for call in called]
    lines = [line for line in printed.splitlines() if line != "scratch=$(mktemp -d)"]
    assert called == [shlex.split(line) for line in lines], verb
    assert not os.listdir(tools["TMPDIR"])


def test_an_unknown_flag_would_be_noticed(tools):
  done = subprocess.run(
    ["gcloud", "compute", "tpus", "tpu-vm", "delete", "x", "--zones=a"], env=tools, text=True, capture_output=True
  )
  assert done.returncode == 1 and "no flag --zones=a" in done.stderr


@pytest.mark.parametrize(
  ("name", "verb", "said"),
  [
    ("tpu_vm.sh", "create", "NAME is not set; the head of tpu_vm.sh"),
    ("mig.sh", "", "NAME is not set"),
    ("xpk.sh", "run", "CLUSTER is not set"),
    ("run_worker.sh", "", "give --workdir=FOLDER"),
    ("run_worker.sh", "--workdir=s3://bucket/run", "for s3:// start coca.train itself"),
  ],
)
def test_a_missing_setting_is_named(name, verb, said):
  done = subprocess.run(
    ["bash", f"launch/{name}", verb], cwd=ROOT, env={"PATH": os.environ["PATH"]}, text=True, capture_output=True
  )
  assert done.returncode == 1 and said in done.stderr


WORKER = """#!/bin/bash
printf '%s\\0' "$COCA_MOUNT" "$@" >"$ARGUMENTS"
exit ${STATUS:-0}
"""


@pytest.fixture
def fake_worker(tmp_path):
  """A tree with a run_worker.sh that writes its arguments down."""
  tree = tmp_path / "home" / "coca" / "launch"
  tree.mkdir(parents=True)
  (tree / "run_worker.sh").write_text(WORKER)
  return {"ARGUMENTS": str(tmp_path / "arguments")}


def said_to_worker(fake_worker, seconds=60):
  path, deadline = Path(fake_worker["ARGUMENTS"]), time.monotonic() + seconds
  while not path.exists() or not path.read_text().endswith("\0"):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return path.read_text().split("\0")[:-1]


def test_arguments_reach_the_worker_of_a_tpu_vm(tools, fake_worker, tmp_path):
  script("tpu_vm.sh", tools, "run", *ODD)
  command = next(a for a in calls(tools)[-1] if a.startswith("--command=")).removeprefix("--command=")
  subprocess.run(["bash", "-c", command], cwd=tmp_path / "home", env={**tools, **fake_worker}, check=True)
  assert said_to_worker(fake_worker) == ["10.0.0.2:/share", *ODD]


@pytest.mark.parametrize(("status", "marker"), [(0, "done"), (1, "failed"), (143, None)])
def test_a_startup_script_runs_the_job_and_tells_how_it_ended(tools, fake_worker, tmp_path, status, marker):
  done = script("queued_resource.sh", tools, "create", *ODD, NAME=f"coca{status}", COCA_MOUNT="h:/a b")
  assert done.returncode == 0, done.stderr
  text = Path(tools["CALLS"]).with_name("startup").read_text()
  text = text.replace("/root", str(tmp_path / "home")).replace("/var/log", str(tmp_path))
  subprocess.run(["tar", "-czf", "coca.tar.gz", "coca"], cwd=tmp_path / "home", check=True)
  Path(tools["CALLS"]).write_text("")
  subprocess.run(["bash", "-c", text], env={**tools, **fake_worker, "STATUS": str(status)}, check=True)
  assert said_to_worker(fake_worker) == ["h:/a b", *ODD]
  called = calls(tools)
  assert called[0] == ["gcloud", "storage", "cp", f"gs://bucket/coca/coca{status}.tar.gz", "coca.tar.gz"]
  assert called[1:] == ([["gcloud", "storage", "cp", "-", f"gs://bucket/coca/coca{status}.{marker}"]] if marker else [])


def test_xpk_hands_the_arguments_on(tools, fake_worker, tmp_path):
  script("xpk.sh", tools, "run", *ODD, COCA_MOUNT="x y")
  command = calls(tools)[-1][-1].removeprefix("--command=")
  subprocess.run(
    ["bash", "-c", f"({command}) & wait $!"], cwd=tmp_path / "home" / "coca", env={**tools, **fake_worker}, check=True
  )
  assert said_to_worker(fake_worker) == ["x y", *ODD]


@pytest.mark.parametrize(
  ("name", "describe", "lost"),
  [("queued_resource.sh", "queued-resources describe", "SUSPENDED"), ("mig.sh", "list-instances", "STOPPING")],
)
def test_watch_makes_lost_machines_again_and_deletes_them_when_the_run_is_done(tools, name, describe, lost):
  not_yet = "storage cat\t1\t"
  gone = ["managed delete\t0\t", "managed delete\t0\t", "managed delete\t1\tnot found"]  # the third time
  Path(tools["CALLS"]).with_name("answers").write_text(
    "\n".join(
      [*gone, *[not_yet] * 4, f"{describe}\t0\tACTIVE", f"{describe}\t0\t{lost}", "storage cat\t0\thost-0: status 0"]
    )
    + "\n"
  )
  done = script(name, tools, "watch", *ODD, WATCH_SECONDS="0")
  assert done.returncode == 0, done.stderr
  words = [" ".join(call[3:5]) for call in calls(tools) if {"create", "delete"} & set(call[:5])]
  again = {
    "queued_resource.sh": ["queued-resources delete", "queued-resources create"],
    "mig.sh": ["managed delete", "managed create"],
  }[name]
  assert words[:3] == [*again, again[0]]
  if name == "mig.sh":
    assert [call[2] for call in calls(tools)[-2:]] == ["instance-templates", "resource-policies"]
  assert "host-0: status 0" in done.stdout and "the run is done" in done.stdout


def test_watch_leaves_a_failed_job_alone(tools):
  Path(tools["CALLS"]).with_name("answers").write_text("storage cat\t1\t\nstorage cat\t0\thost-3: status 1\n")
  done = script("queued_resource.sh", tools, "watch", WATCH_SECONDS="0")
  assert done.returncode == 1 and "host-3: status 1" in done.stdout and "needs you" in done.stderr
  assert not [call for call in calls(tools) if "delete" in call]


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (143, True)])
def test_slurm_goes_back_into_the_queue_when_its_time_is_over(tools, status, requeued):
  Path(tools["CALLS"]).with_name("answers").write_text(f"srun\t{status}\t\n")
  done = script("slurm.sbatch", tools, *ODD, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
  assert done.returncode == status
  assert calls(tools)[0] == ["srun", "bash", "launch/run_worker.sh", *ODD]
  assert calls(tools)[1:] == [["scontrol", "requeue", "7"]] * requeued


def test_slurm_options():
  options = re.findall(r"^#SBATCH (--[a-z-]+)", (ROOT / "launch" / "slurm.sbatch").read_text(), re.M)
  assert set(options) == {
    "--job-name",
    "--nodes",
    "--ntasks-per-node",
    "--gpus-per-node",
    "--cpus-per-task",
    "--time",
    "--exclusive",
    "--requeue",
    "--signal",
    "--open-mode",
    "--output",
  }


def test_skypilot_tells_each_node_where_it_is(fake_worker, tmp_path):
  task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
  assert task.keys() == {"name", "resources", "num_nodes", "workdir", "envs", "file_mounts", "run"}
  environment = {
    **os.environ,
    **fake_worker,
    "ARGS": shlex.join(ODD),
    "COCA_MOUNT": "",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
  }
  subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path / "home" / "coca", env=environment, check=True)
  assert said_to_worker(fake_worker)[1:] == [*ODD, "--coordinator=10.0.0.1:8476", "--processes=2", "--process_id=1"]


# --- run_worker.sh ---

PYTHON = """#!/bin/bash
# Ends with the statuses in $STATUSES, one a start; +N makes checkpoint N first.
printf '%s\\0' "$@" >>"$FOLDER/arguments"
n=$(($(cat "$FOLDER/starts" 2>/dev/null || echo 0) + 1))
echo $n >"$FOLDER/starts"
read -r -a statuses <<<"$STATUSES"
status=${statuses[n - 1]:-${statuses[-1]}}
echo "start $n"
if [[ $status == *+* ]]; then mkdir -p "$FOLDER/run/checkpoints/${status#*+}"; fi
if [[ $status == wait ]]; then
  trap 'sleep 0.3; echo saved; exit 143' TERM
  touch "$FOLDER/waits"
  while true; do sleep 0.05; done
fi
exit "${status%+*}"
"""


@pytest.fixture
def worker(tmp_path):
  python = tmp_path / "python"
  python.write_text(PYTHON)
  python.chmod(stat.S_IRWXU)

  def start(statuses, *arguments, **more):
    return subprocess.Popen(
      ["bash", "launch/run_worker.sh", f"--workdir={tmp_path / 'run'}", *arguments],
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env={
        "PATH": os.environ["PATH"],
        "FOLDER": str(tmp_path),
        "STATUSES": statuses,
        "COCA_PYTHON": str(python),
        "COCA_EXTRA": "cpu",
        "COCA_BACKOFF": "0",
        "COCA_RESTARTS": "3",
        **more,
      },
    )

  return start


@pytest.mark.parametrize(
  ("statuses", "starts", "status", "said"),
  [
    ("0", 1, 0, ""),
    ("70 134 0", 3, 0, "ended with status 134 at checkpoint none; restart 2"),
    ("1", 1, 1, "a mistake, which a restart does not mend"),
    ("70", 4, 70, "3 restarts have brought no new checkpoint (last: none); gives up"),
    ("70 70 70+10 70 70 75+20 0", 7, 0, "at checkpoint 20; restart 1"),
    ("73 73 0", 3, 0, "ended with status 73"),
    (
      "73+10 73+20 73+30 73+40",
      4,
      73,
      "another run was in the workdir at each of 4 tries",
    ),  # and its checkpoints go on
    ("143 0", 2, 0, "restart 1"),  # another host was asked to stop
  ],
)
def test_it_restarts_what_may_pass_and_nothing_else(worker, tmp_path, statuses, starts, status, said):
  process = worker(statuses)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == status, out
  assert int((tmp_path / "starts").read_text()) == starts
  assert said in out
  logs = list((tmp_path / "run" / "logs").glob("*.log"))
  assert len(logs) == 1 and f"start {starts}" in logs[0].read_text()


def test_a_sigterm_reaches_the_program_and_ends_the_restarts(worker, tmp_path):
  process = worker("wait")
  while not (tmp_path / "waits").exists():
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 143 and "saved" in out and "stopped as asked" in out


def test_arguments_reach_python_and_each_process_has_its_log(worker, tmp_path):
  process = worker("0", *ODD[::2], "--process_id", "1")
  process.communicate(timeout=60)
  said = (tmp_path / "arguments").read_text().split("\0")[:-1]
  assert said == ["-m", "coca.train", f"--workdir={tmp_path / 'run'}", *ODD[::2], "--process_id", "1"]
  assert [path.name.endswith("-1.log") for path in (tmp_path / "run" / "logs").glob("*.log")] == [True]


@pytest.mark.parametrize(("marker", "status"), [("done", 0), ("stopped", 1)])
def test_it_does_not_restart_after_another_host_has_ended(worker, tmp_path, marker, status):
  process = worker("wait 70")
  while not (tmp_path / "waits").exists():
    time.sleep(0.02)
  (tmp_path / "run" / "logs" / marker).write_text("host-7\n")
  child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  for pid in child:
    if b"coca.train" in Path(f"/proc/{pid}/cmdline").read_bytes():
      os.kill(int(pid), signal.SIGKILL)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == status and "host-7" in out
  assert (tmp_path / "starts").read_text() == "1\n"


BUCKET = """#!/bin/bash
# gcloud storage: the objects of gs:// are files in $FOLDER/store.
object=${*: -1}
path=$FOLDER/store/${object#gs://}
case $2 in
  ls) for found in ${path}; do [[ -e $found ]] && echo "gs://${found#"$FOLDER/store/"}"; done ;;
  cp) mkdir -p "${path%/*}" && cat >"$path" ;;
  cat) cat "$path" ;;
esac
"""


@pytest.fixture
def in_bucket(worker, tmp_path):
  """A worker whose workdir is in a bucket."""
  tool = tmp_path / "bin" / "gcloud"
  tool.parent.mkdir()
  tool.write_text(BUCKET)
  tool.chmod(stat.S_IRWXU)

  def start(statuses, **more):
    return worker(
      statuses, "--workdir=gs://bucket/run", PATH=f"{tool.parent}:{os.environ['PATH']}", HOME=str(tmp_path), **more
    )

  return start


def test_with_a_workdir_in_a_bucket_it_counts_the_checkpoints_there(in_bucket, tmp_path):
  steps = tmp_path / "store" / "bucket" / "run" / "checkpoints"
  for step, name in ((9, "commit_success.txt"), (10, "commit_success.txt"), (11, "_CHECKPOINT_METADATA")):
    (steps / str(step)).mkdir(parents=True)
    (steps / str(step) / name).touch()
  process = in_bucket("70 0")
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 0 and "ended with status 70 at checkpoint 10; restart 1" in out, out
  assert re.fullmatch(r"\d+ \S+\n", (tmp_path / "store/bucket/run/logs/done").read_text())
  assert "start 2" in next((tmp_path / "coca-logs" / "bucket" / "run").glob("*.log")).read_text()
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("marker", "status"), [("done", 0), ("stopped", 1)])
def test_a_marker_in_the_bucket_counts_if_it_is_newer(in_bucket, tmp_path, marker, status):
  logs = tmp_path / "store" / "bucket" / "run" / "logs"
  logs.mkdir(parents=True)
  (logs / marker).write_text("1000 host-7\n")
  assert in_bucket("70 0").wait(60) == 0
  assert (tmp_path / "starts").read_text() == "2\n"
  (tmp_path / "starts").unlink()
  (logs / "done").unlink()
  (logs / marker).write_text(f"{int(time.time()) + 60} host-7\n")
  process = in_bucket("70 0")
  out, _ = process.communicate(timeout=60)
  assert process.returncode == status and "host-7" in out
  assert (tmp_path / "starts").read_text() == "1\n"


@pytest.mark.slow
def test_shellcheck():
  shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  if not shellcheck:
    pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
  files = [*map(str, (ROOT / "launch").glob("*.sh")), "launch/slurm.sbatch", ".ci/run"]
  done = subprocess.run([shellcheck, "--external-sources", *files], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


if __name__ == "__main__":
  RECORDED.write_text(record())
