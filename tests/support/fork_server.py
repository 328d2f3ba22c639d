"""A process that has imported what trainings import, and forks for each one that is asked for.

To import torch, Lightning and MLflow takes 5 to 15 s of a processor, and tests start trainings by
the hundred. What it forks is a process like any other: it has its own session, folder, environment
and output, it is stopped by signals, and at its end it waits for its threads and calls its exit
handlers. Neither pyclassify nor a test's own module is imported before the fork, so that a process
finds them by its own folder and PYTHONPATH, as `python -m` does.

Started by `tests.support.processes`, with one end of a Unix socket as its standard input. A request
is a JSON object, the arguments of `become`, with the file descriptors of stdin, stdout and stderr
and of a pipe. Into the pipe go the process's id and, once it has ended, its exit status, each as a
line.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import types

PRELOADED = (
    "boto3",
    "jsonargparse",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.cli",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "pandas",
    "psutil",
    "scipy.stats",
    "torch.distributed.run",
    "torch.export",
    "torch.utils.data",
    "torchmetrics.classification",
    "torchvision.transforms.v2",
    "yaml",
)
MAX_REQUEST_BYTES = 1 << 20
IMPORTED_FIRST = "PYCLASSIFY_TESTS_IMPORT"  # names a module that each process imports first


def main():
    with without_entry_points_of("pyclassify"):
        for name in PRELOADED:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each process would copy what there is, to count references
    if (threads := threading.active_count()) != 1:
        raise RuntimeError(f"{threads} threads after imports: a process with threads can't fork")
    with socket.socket(fileno=os.dup(0)) as requests:
        request = serve(requests)
    if request is None:
        os._exit(0)
    become(**request)


@contextlib.contextmanager
def without_entry_points_of(name):
    """Keep a package from being imported by MLflow, which loads its plugins with itself."""
    found = importlib.metadata.entry_points

    def others(**chosen):
        points = found(**chosen)
        if not str(chosen.get("group", "")).startswith("mlflow."):
            return points
        return importlib.metadata.EntryPoints(each for each in points if each.dist.name != name)

    importlib.metadata.entry_points = others
    try:
        yield
    finally:
        importlib.metadata.entry_points = found


def load_entry_points():
    """Do what was kept from MLflow's import."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    _tracking_store_registry.register_entrypoints()
    _artifact_repository_registry.register_entrypoints()


def serve(requests):
    """Fork until the other end is closed; in a forked process, return what it was asked to be."""
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    pipes = {}
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            report_ended(pipes)
        if requests in ready:
            content, descriptors, *_ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
            if not content:
                kill_all(pipes)
                return None
            *streams, pipe = descriptors
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                announce(pipe)
                for each in (*pipes.values(), pipe):
                    os.close(each)
                for each in (selector, woken, wake):
                    each.close()
                return {**json.loads(content), "streams": streams}
            pipes[pid] = pipe
            for each in streams:
                os.close(each)


def announce(pipe):
    """Send the id of this process once it can be stopped like any other."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        os.write(pipe, f"{os.getpid()}\n".encode())
    except BrokenPipeError:  # the process that asked was killed meanwhile
        os._exit(1)


def kill_all(pids):
    """Kill the processes that still run when pytest has ended, and their groups."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def report_ended(pipes):
    """Tell the status of each process that has ended."""
    while pipes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        pipe = pipes.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os.close(pipe)


def silence():
    """Say no more: frozen objects stay, and triton's library calls that a leak when unloaded."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def become(argv, cwd, env, streams, executable=None, finalizes=False):
    """Be `python *argv` for the rest of this process.

    Args:
        argv: The arguments of `python`: `-m MODULE`, `-c CODE` or a file, and more.
        cwd: The folder to be in.
        env: The environment.
        streams: The file descriptors that become stdin, stdout and stderr.
        executable: What the process starts where it starts `sys.executable`.
        finalizes: Destroy all objects at the end as an interpreter does, which takes half a second
            of a processor.
    """
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = cwd
    sys.path[1:1] = [each for each in env.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.executable = executable or sys.executable
    load_entry_points()
    if IMPORTED_FIRST in env:
        importlib.import_module(env[IMPORTED_FIRST])
    if finalizes:
        atexit.register(silence)  # the last of what is called at the end
        execute(argv)
    else:
        leave(argv)


def leave(argv):
    """Execute `python *argv` and end as Python does, except that objects are left as they are."""
    code = 0
    try:
        execute(argv)
    except SystemExit as leaving:
        code = leaving.code
        if code is not None and not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 255)


def execute(argv):
    """Execute `python *argv` in this process."""
    kind, *rest = argv[1:] if argv[0] == "-u" else argv
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(kind))
        sys.argv = argv
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
