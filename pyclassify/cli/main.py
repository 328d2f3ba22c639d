"""The entry point: dispatch the command, end its run, and turn errors into lines and exit codes.

Exit codes: 0 for success, 1 for a failure or a stop, 2 for an invalid command line, and 75
(EX_TEMPFAIL) where the job script is to start the command again. Commands are imported when they
run: only those that train load torch.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pkgutil import resolve_name

from pyclassify.cli.help import COMMANDS, format_help
from pyclassify.cli.options import expand_options
from pyclassify.spool.store_errors import format_store_error, is_store_error
from pyclassify.tracking import run
from pyclassify.utils import launch_check, launcher, options
from pyclassify.utils.files import describe_disk_error, is_disk_error
from pyclassify.utils.masking import mask
from pyclassify.utils.signals import stop_on_signals, stop_with_parent
from pyclassify.utils.text import format_error, format_reason, is_own_error

_TURN_SECONDS = 3.0  # in which another process may run into the same error
# How many times as long a process that trains several seeds has to stop: it waits for its child,
# which may have a checkpoint to write before it exits.
_SEEDS_GRACE_FACTOR = 60.0

_MAX_REASON = 200  # characters of another library's message
_LOST_PROCESS = "another process of this run ended; see its error message for the cause"


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command and its options; the arguments of this process by default.

    Returns:
        The exit code: 0, 1 after a failure or a stop, 2 where the command line is invalid, or 75
        where the job script is to start the command again.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if text := format_help(argv):
        sys.stdout.write(text)
        return 0
    if argv[0] in COMMANDS and COMMANDS[argv[0]].function:
        return _run_command(argv[0], argv[1:])
    launch_check.drop_ranks_beside_srun()
    if args is None:  # this process makes one run at most, and ends with `main`
        run.watch_exit()
    if run.adopt_run() or not launcher.is_rank_zero():
        stop_with_parent()
    grace_factor = _SEEDS_GRACE_FACTOR if options.has_seeds_option(argv) else 1.0
    with stop_on_signals(partial(_report_stop, argv), grace_factor):
        try:
            _train(argv)
            run.set_final_status("FINISHED")
        except BaseException as error:
            exit_code = _end_failed_run(argv, error)
            if exit_code is None:
                raise
            return exit_code
        run.end_run("FINISHED")
        failures = run.describe_failures()
        return _print_error(failures) if failures else 0


def _end_failed_run(argv: list[str], error: BaseException) -> int | None:
    """Print what ended a training, and give its run the status that follows.

    Returns:
        The exit code; None where the error is to be raised again: it needs its stack trace, or
        it is a SystemExit with an exit code.
    """
    if stop := _find_stop(error):
        _end_run("KILLED", format_reason(stop))
        return _get_exit_code(stop)
    if isinstance(error, SystemExit):
        if error.code in (0, None) and options.only_shows(argv):
            _end_run("FINISHED", "")
            return None
        if error.code in (0, None):  # of a user's code, before the training has ended
            message: str | None = "sys.exit() was called before the end of the training"
        else:
            message = None
    else:
        message = _format_error(error)
    if message is not None:
        turn = int(not launcher.is_rank_zero()) + 2 * int(message == _LOST_PROCESS)
        _print_error(message, turn)
    _end_run("FAILED", str(mask(message)) if message else format_reason(error))
    return None if message is None else _get_failure_code(error)


def _get_failure_code(error: BaseException) -> int:
    return options.USAGE_EXIT_CODE if isinstance(error, options.UsageError) else 1


def _end_run(status: str, reason: str) -> None:
    """End this process's run; if that fails too, the run's monitor does it."""
    try:
        run.end_run(status, reason)
    except (Exception, SystemExit) as error:  # of the disk, the server or a user's code
        _print_error(f"can't set the status of the run ({format_reason(error)})")


def _find_stop(error: BaseException | None) -> KeyboardInterrupt | None:
    """Find the stop that caused an error: the error itself, or one that it was raised after."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _get_exit_code(stop: KeyboardInterrupt) -> int:
    """Get the exit code after a stop: SIGUSR1, near a job's time limit, asks for a requeue."""
    return launcher.REQUEUE_EXIT_CODE if str(stop) == "SIGUSR1" else 1


def _run_command(command: str, argv: list[str]) -> int:
    """Run a command that does not train; the run of MLFLOW_RUN_ID is left alone."""
    try:
        if command in ("rerun", "resume"):
            launch_check.check_single(command)
        exit_code: int = resolve_name(COMMANDS[command].function)(argv)
        return exit_code
    except KeyboardInterrupt:
        return _print_error("stopped by SIGINT")
    except Exception as error:
        message = _format_error(error)
        if message is None:
            raise
        _print_error(message)
        return _get_failure_code(error)


def sync(argv: list[str]) -> int:
    """Run `pyclassify sync`, which also registers the model versions that runs asked for."""
    from pyclassify.registry.champion import register_and_promote
    from pyclassify.spool import sync

    return sync.main(argv, register_and_promote)


def _report_stop(argv: list[str], signal_name: str) -> None:
    """Print that a signal stopped the run, and how to resume it; set its status to KILLED."""
    if launcher.is_rank_zero():
        run_id = run.get_resumable_run()
        resumable = run_id is not None and not {"fit", "train"}.isdisjoint(argv)
        hint = f"; resume with: pyclassify resume {run_id}" if resumable else ""
        _print_error(f"stopped by {signal_name}{hint}")
        run.set_final_status("KILLED", signal_name)


def _train(argv: list[str]) -> None:
    """Run a training command, or several of them with --seeds."""
    count = 1
    if options.has_seeds_option(argv):
        from pyclassify.runs import seeds

        count, argv = seeds.read_seed_count(argv)
    args = expand_options(argv)  # refuses an invalid command line before any run is made
    if not options.only_shows(args) and args[0] != "prepare":
        settings = dict(options.list_settings(args))
        launch_check.check_settings(settings)
        save_dir = options.find_logger_settings(settings).get("save_dir") or "runs"
        launcher.adopt_restarted_run(run.find_spool_root(save_dir))
        run.adopt_run()
    if count > 1:
        seeds.train_seeds(argv, count)
        return
    # Pages of 2 MB where the kernel gives them on request: AlexNet's gradients are 228 MB, and
    # allocated in each step. torch reads it when it first allocates, which some imports do.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # torch writes a C++ stack trace as a warning where another process of the run ended.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pyclassify.cli import lightning_cli

    lightning_cli.run_training_command(args, argv)


def _format_error(error: BaseException | None) -> str | None:
    """Format an expected error, or the first one among its causes, in one line.

    Returns:
        The line; None for an unexpected error, whose stack trace is needed.
    """
    if reason := _find_lost_worker(error):
        return (
            f"a data loading process ended ({reason}); if memory ran out, reduce "
            "--data.num_workers or --data.batch_size"
        )
    while error is not None:
        kind = type(error).__name__
        if is_disk_error(error):
            return describe_disk_error(error)
        if kind in ("MisconfigurationException", "UsageError") or (
            isinstance(error, (ValueError, OSError)) and is_own_error(error)
        ):
            # A data worker's error arrives with its stack trace before it.
            return " ".join(str(error).rsplit("MisconfigurationException: ", 1)[-1].split())
        if is_store_error(error):
            return format_store_error(error)
        if re.search("(closed|reset) by peer", str(error)) or kind in (
            "DistBackendError",
            "DistNetworkError",
        ):
            return _LOST_PROCESS
        if kind == "DistStoreError":
            return (
                f"the other processes of this run did not connect ({error}); check that all of "
                "them were started"
            )
        if kind in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in str(error):
            reason = format_error(error, _MAX_REASON)
            return (
                f"out of memory ({reason}); reduce --data.batch_size "
                "(--trainer.accumulate_grad_batches keeps the images per step) or --data.crop, or "
                "give --trainer.precision bf16-mixed"
            )
        if str(error).startswith("Error(s) in loading state_dict"):
            detail = str(error).partition("\n")[2].split("\n")[0]
            return (
                f"the checkpoint does not fit the network ({detail.strip()}); give --config with "
                "the config.yaml among the artifacts of the run that saved the checkpoint"
            )
        error = error.__cause__
    return None


def _find_lost_worker(error: BaseException | None) -> str:
    """Find how a worker process of a DataLoader ended, with the signal if it is known."""
    reason = ""
    while error is not None:
        found = re.search(r"DataLoader worker \(pid.*?\) (is killed by|exited)[^.;]*", str(error))
        reason = found[0] if found and isinstance(error, RuntimeError) else reason
        error = error.__cause__
    return reason


def _print_error(message: str, turn: int = 0) -> int:
    """Print an error in one line to stderr.

    Args:
        message: The line.
        turn: How many other processes may print first. An error of all processes is printed by
            rank zero, which ends the others while they wait; a lost connection is printed last.

    Returns:
        The exit code of a failure.
    """
    who = "pyclassify"
    if not launcher.is_rank_zero():
        who += f" (rank {os.environ.get('RANK') or os.environ.get('LOCAL_RANK')})"
    with suppress(KeyboardInterrupt, OSError, ValueError):  # stderr may be closed
        time.sleep(turn * _TURN_SECONDS)
        sys.stderr.write(f"{who}: error: {message}\n")
    return 1
