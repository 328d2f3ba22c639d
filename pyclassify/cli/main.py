"""The command line: where the parts are put together."""

import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from pyclassify.cli.options import COMMANDS, expand_options
from pyclassify.tracking import run
from pyclassify.utils import launcher, options
from pyclassify.utils.signals import stop_on_signals, stop_with_parent

_TURN_SECONDS = 3.0  # that another process may take to run into the same error
# How many times as long a process that trains several seeds has to stop: it waits for its child,
# which may have a checkpoint to write before it leaves.
SEEDS_GRACE_FACTOR = 60.0

_LOST_PROCESS = "another process of this run has ended; its own message says why"


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        args: The verb and its options; the process's own without it.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in COMMANDS:
        return _run_command(given[0], given[1:])
    if run.adopt_run() or not launcher.is_rank_zero():
        stop_with_parent()
    status = "FAILED"
    grace_factor = SEEDS_GRACE_FACTOR if options.has_seeds_option(given) else 1.0
    with stop_on_signals(partial(_report_stop, given), grace_factor):
        try:
            _train(given)
            status = "FINISHED"
            return 0
        except KeyboardInterrupt as stop:
            status = "KILLED"
            return _get_exit_code(stop)
        except SystemExit as leaving:
            cause = leaving.__context__
            if isinstance(cause, KeyboardInterrupt):  # Lightning's exit on a stop
                status = "KILLED"
                return _get_exit_code(cause)
            if leaving.code in (0, None):
                status = "FINISHED"
            raise
        except Exception as error:
            words = _format_error(error)
            if words is None:
                raise
            return _print_error(
                words, turn=int(not launcher.is_rank_zero()) + 2 * int(words == _LOST_PROCESS)
            )
        finally:
            run.end_run(status)


def _get_exit_code(stop: KeyboardInterrupt) -> int:
    """75 tells a job's script to have it started again; any other stop is a failure's."""
    return launcher.REQUEUE_EXIT_CODE if str(stop) == "SIGUSR1" else 1


def _run_command(verb: str, given: list[str]) -> int:
    """Run a verb that leaves the run of MLFLOW_RUN_ID, if there is one, to whoever made it."""
    try:
        code: int = resolve_name(COMMANDS[verb])(given)
        return code
    except KeyboardInterrupt:
        return _print_error("stopped by SIGINT")
    except Exception as error:
        words = _format_error(error)
        if words is None:
            raise
        return _print_error(words)


def sync(argv: list[str]) -> int:
    """Run `pyclassify sync`, with the registry to make the versions that runs asked for."""
    from pyclassify.registry.champion import register_and_promote
    from pyclassify.spool import sync

    return sync.main(argv, register_and_promote)


def _report_stop(given: list[str], signal_name: str) -> None:
    """Tell who watches and who looks later that this is no failure, and how to go on."""
    if launcher.is_rank_zero():
        run_id = run.get_resumable_run()
        goes_on = run_id is not None and not {"fit", "train"}.isdisjoint(given)
        how = f"; `pyclassify resume {run_id}` goes on with it" if goes_on else ""
        _print_error(f"stopped by {signal_name}{how}")
        run.set_final_status("KILLED")


def _train(given: list[str]) -> None:
    """Run one of the training verbs, which alone pay for importing torch, or several such runs."""
    words = given
    if options.has_seeds_option(given):
        from pyclassify.runs import seeds  # loads MLflow and SciPy

        count, words = seeds.read_seed_count(given)
        if count > 1:
            expand_options(words)  # refuses a wrong command line before any run is made
            seeds.train_seeds(words, count)
            return
    args = expand_options(words)
    # Pages of 2 MB where the kernel gives them to who asks: AlexNet's gradients are 228 MB, taken
    # anew each step. torch reads it when it first allocates, which some imports do.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from pyclassify.cli import lightning_cli

    lightning_cli.run_training_command(args, words)


def _format_error(error: BaseException | None) -> str | None:
    """Find the words of an error that needs no stack trace, among its causes too.

    Returns:
        One line, or nothing where the reader is better served with the stack trace.
    """
    while error is not None:
        kind = type(error).__name__
        if kind == "MisconfigurationException" or (
            isinstance(error, (ValueError, OSError)) and _is_ours(error)
        ):
            # A data worker's error arrives with its stack trace before it.
            return " ".join(str(error).rsplit("MisconfigurationException: ", 1)[-1].split())
        if re.search("(closed|reset) by peer", str(error)) or kind in (
            "DistBackendError",
            "DistNetworkError",
        ):
            return _LOST_PROCESS
        if str(error).startswith("Error(s) in loading state_dict"):
            detail = str(error).partition("\n")[2].split("\n")[0]
            return (
                f"the checkpoint's weights are another network's ({detail.strip()}); give the "
                "--config and options of the run that it is of (its artifact config.yaml)"
            )
        error = error.__cause__
    return None


def _is_ours(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def _print_error(text: str, turn: int = 0) -> int:
    """Say in one line what went wrong.

    Args:
        text: The line.
        turn: How many others may speak before. What goes wrong in every process is said by the
            first, which ends the others while they wait; one that only lost another speaks last.

    Returns:
        The exit code of a failure.
    """
    who = "pyclassify"
    if not launcher.is_rank_zero():
        who += f" (rank {os.environ.get('RANK') or os.environ.get('LOCAL_RANK')})"
    with suppress(KeyboardInterrupt):
        time.sleep(turn * _TURN_SECONDS)
        sys.stderr.write(f"{who}: error: {text}\n")
    return 1
