"""A Python for tests that start it often: it has imported coca, which takes two seconds, before it is started.

`python()` is a program that does what Python does with -m MODULE, -c CODE and FILE. It hands its arguments, its
environment, its folder and its standard streams to a server, which forks: the fork has all modules and does the work.
The server has done nothing but import: it has no thread of Python's and no device when it forks. The program
ends as the fork did; both are of one process group, and `signal` reaches both.
"""

import atexit
import contextlib
import functools
import json
import os
import signal as signals
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
# -I and -S: it starts in 20 ms. It waits for the fork: signals are for that one.
PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys
for number in (signal.SIGTERM, signal.SIGINT):
  signal.signal(number, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX) as server:
  server.connect({address!r})
  asked = dict(args=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd(), group=os.getpgrp())
  socket.send_fds(server, [b"streams"], [0, 1, 2])
  server.sendall(json.dumps(asked).encode())
  server.shutdown(socket.SHUT_WR)
  for n in range(3):
    os.close(n)
  status = int(server.recv(16) or 1)
if status < 0:
  if -status in (signal.SIGTERM, signal.SIGINT):
    signal.signal(-status, signal.SIG_DFL)
  os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def python() -> str:
  """The path of the program, which serves until this process ends."""
  folder = tempfile.TemporaryDirectory(prefix="forked")
  address, program = f"{folder.name}/socket", Path(folder.name) / "python"
  program.write_text(PROGRAM.format(python=sys.executable, address=address))
  program.chmod(stat.S_IRWXU)
  listener = socket.socket(socket.AF_UNIX)
  listener.bind(address)
  listener.listen(16)
  environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "TF_CPP_MIN_LOG_LEVEL": "3"}
  server = subprocess.Popen(
    [sys.executable, __file__, str(listener.fileno())],
    env=environment | {"EPATH_USE_TF": "false"},
    stdin=subprocess.PIPE,  # its end tells the server of this process' end
    pass_fds=[listener.fileno()],
    process_group=0,  # no Ctrl-C of a terminal's
  )
  listener.close()

  def end():
    server.communicate()
    folder.cleanup()

  atexit.register(end)
  return str(program)


def signal(process: subprocess.Popen, number: int) -> None:
  """Sends a signal to what was started with `python()`, in a process group of its own, and to its fork.

  After SIGKILL both are gone: who looks for the fork's number finds none.
  """
  os.killpg(process.pid, number)
  if number == signals.SIGKILL:
    process.wait()
    with contextlib.suppress(ProcessLookupError):
      while True:
        os.killpg(process.pid, 0)
        os.sched_yield()


def kill(process: subprocess.Popen) -> None:
  """Ends one that may have ended."""
  with contextlib.suppress(ProcessLookupError):
    signal(process, signals.SIGKILL)


def serve(listener: socket.socket) -> list[str]:
  """Forks for each who asks. Returns in the forks, with their arguments; ends with the standard input."""
  import select

  while sys.stdin not in (ready := select.select([listener, sys.stdin], [], [])[0]) or listener in ready:
    client = listener.accept()[0]
    _, streams, _, _ = socket.recv_fds(client, len(b"streams"), 3)
    with client.makefile("rb") as file:
      asked = json.load(file)
    if os.fork():
      client.close()
      for stream in streams:
        os.close(stream)
      continue
    listener.close()
    if child := os.fork():  # this one waits for it, and tells
      for stream in streams:
        os.close(stream)
      status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
      with contextlib.suppress(BrokenPipeError):  # killed with it
        client.sendall(str(status).encode())
      os._exit(0)
    client.close()
    become(asked, streams)
    return asked["args"]
  while True:
    try:
      os.wait()
    except ChildProcessError:
      os._exit(0)


def become(asked: dict, streams: list[int]) -> None:
  """Environment, folder, standard streams and process group of who asks."""
  import fsspec
  import jax

  for n, stream in enumerate(streams):
    os.dup2(stream, n)
    os.close(stream)
  with contextlib.suppress(PermissionError):  # of a session of its own
    os.setpgid(0, asked["group"])
  signals.signal(signals.SIGINT, signals.default_int_handler)
  os.environ.clear()
  os.environ.update(asked["env"])
  os.chdir(asked["cwd"])
  # What was read when they were imported.
  fsspec.config.set_conf_env(fsspec.config.conf)
  for name, kind in (
    ("jax_compilation_cache_dir", str),
    ("jax_persistent_cache_min_compile_time_secs", float),
    ("jax_enable_compilation_cache", lambda value: value != "false"),
  ):
    if name.upper() in os.environ:
      jax.config.update(name, kind(os.environ[name.upper()]))


def run(how: str, *args: str) -> None:
  """What Python does with its arguments."""
  import runpy
  import types

  if how == "-m":
    sys.argv[:] = args
    sys.path.insert(0, os.getcwd())
    runpy.run_module(args[0], run_name="__main__", alter_sys=True)
  elif how == "-c":
    sys.argv[:] = ["-c", *args[1:]]
    sys.path.insert(0, os.getcwd())
    sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(args[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
  else:
    sys.argv[:] = [how, *args]
    sys.path.insert(0, os.path.dirname(how))
    runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
  import gc
  import importlib

  sys.path.remove(os.path.dirname(__file__))
  for module in ("capfilt.job", "capfilt.report", "evals.contact_sheet", "evals.evaluate", "training.loop"):
    importlib.import_module(f"coca.{module}")
  gc.freeze()  # forks do not copy what the collector would touch
  run(*serve(socket.socket(fileno=int(sys.argv[1]))))
