"""The command line: where the parts are put together."""

import os
import sys
import traceback
from collections.abc import Sequence
from pkgutil import resolve_name

from pyclassify.options import PLAIN_VERBS, spell_out
from pyclassify.resume import stop_on_signals, stop_with_parent
from pyclassify.tracking import run


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        args: The verb and its options; the process's own without it.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in PLAIN_VERBS:
        return do_plainly(given[0], given[1:])
    if run.adopt() or not run.is_rank_zero():
        stop_with_parent()
    status = "FAILED"
    with stop_on_signals(on_stop):
        try:
            train(given)
            status = "FINISHED"
            return 0
        except KeyboardInterrupt:
            status = "KILLED"
            return 1
        except SystemExit as leaving:
            if isinstance(leaving.__context__, KeyboardInterrupt):  # Lightning's exit on a stop
                status = "KILLED"
            elif leaving.code in (0, None):
                status = "FINISHED"
            raise
        except Exception as error:
            words = explain(error)
            if words is None:
                raise
            return complain(words)
        finally:
            run.end(status)


def on_stop(signal_name: str) -> None:
    """Tell who watches and who looks later that this is no failure."""
    complain(f"stopped by {signal_name}")
    run.mark("KILLED")


def do_plainly(verb: str, words: list[str]) -> int:
    """Run one of the verbs that train nothing themselves."""
    try:
        return int(resolve_name(PLAIN_VERBS[verb])(words))
    except KeyboardInterrupt:
        return 1
    except Exception as error:
        if (text := explain(error)) is None:
            raise
        return complain(text)


def train(given: list[str]) -> None:
    """Run one of the training verbs, which alone pay for importing torch."""
    args = spell_out(given)
    from pyclassify import training

    training.run(args, given)


def explain(error: BaseException | None) -> str | None:
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
        if str(error).startswith("Error(s) in loading state_dict"):
            detail = str(error).partition("\n")[2].split("\n")[0]
            return (
                f"the checkpoint's weights are another network's ({detail.strip()}); give the "
                "--config and options of the run that it is of (its artifact config.yaml)"
            )
        error = error.__cause__
    return None


def _is_ours(error: BaseException) -> bool:
    raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
    return raised_by.startswith(os.path.dirname(__file__))


def complain(text: str) -> int:
    """Say in one line what went wrong.

    Returns:
        The exit code of a failure.
    """
    if run.is_rank_zero():
        sys.stderr.write(f"pyclassify: error: {text}\n")
    return 1
