"""Two runs' answers to the same test images: is one better by more than luck?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow.entities import Run

from pyclassify.runs.spread import SEEDS
from pyclassify.runs.stats import mcnemar, paired_interval
from pyclassify.tracking.prediction_table import PREDICTIONS, Answers, read_answers


@dataclass(frozen=True)
class PairedTest:
    """How two runs' answers to the same images compare.

    Args:
        count: How many images there are.
        right: How many each run has right.
        only_first: How many the first run alone has right.
        only_second: How many the second run alone has right.
        p_value: McNemar's exact test of equal accuracy.
        interval: The 95% interval of the accuracies' difference, second minus first.
    """

    count: int
    right: tuple[int, int]
    only_first: int
    only_second: int
    p_value: float
    interval: tuple[float, float]


def pair(first: Answers, second: Answers) -> PairedTest:
    """Compare two runs' answers to the same images."""
    kinds = Counter((first[index][1], second[index][1]) for index in first)
    both, only_first, only_second = kinds[True, True], kinds[True, False], kinds[False, True]
    return PairedTest(
        count=len(first),
        right=(both + only_first, both + only_second),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
        interval=paired_interval(only_first, only_second, len(first)),
    )


def judge(runs: Sequence[Run]) -> tuple[PairedTest | None, list[str]]:
    """Compare what runs predicted.

    Returns:
        The test, where there are two runs with the same images, and what speaks against comparing
        the runs by their test metrics, a sentence each.
    """
    answers: dict[int, Answers] = {}
    lacking: list[int] = []
    notes: list[str] = []
    for number, run in enumerate(runs, 1):
        if SEEDS in run.data.tags:
            continue  # its answers are those of the runs under it
        try:
            found = read_answers(run)
        except Exception as error:  # each kind of artifact store fails in its own way
            reason = " ".join(str(error).split())
            notes.append(f"{PREDICTIONS} of run {number} can't be read: {reason}")
            continue
        if found is None:
            lacking.append(number)
        else:
            answers[number] = found
    if lacking:
        which = ", ".join(map(str, lacking))
        have = f"run {which} has" if len(lacking) == 1 else f"runs {which} have"
        notes.append(f"{have} no {PREDICTIONS}, which shows whether test images are the same")
    others = _others(runs, answers)
    same = not others and len(answers) == len(runs)
    return (pair(*answers.values()) if same and len(runs) == 2 else None), notes + others


def _others(runs: Sequence[Run], answers: dict[int, Answers]) -> list[str]:
    """Name the runs whose test images are not those of the first that kept its answers."""
    notes = []
    first, *rest = answers or [0]
    for number in rest:
        two = (runs[first - 1], runs[number - 1])
        if how := how_images_differ(two, (answers[first], answers[number])):
            notes.append(
                f"the test images of run {number} are not those of run {first} ({how}), so that "
                "their test metrics don't say which network is better"
            )
    return notes


def how_images_differ(
    runs: tuple[Run | None, Run | None], answers: tuple[Answers, Answers]
) -> str | None:
    """Say in what two runs' test images differ: number, indices, labels or content.

    Args:
        runs: The runs; None for answers that are no run's, of which the content can't be told.
        answers: What each one answered.

    Returns:
        None where they don't, as far as the runs tell.
    """
    first, second = answers
    if len(first) != len(second):
        return f"{len(second):,} images, not {len(first):,}"
    if first.keys() != second.keys():
        return "other indices"
    if any(first[index][0] != second[index][0] for index in first):
        return "other labels"
    digests = [list_test_digests(run) if run else set() for run in runs]
    if all(digests) and digests[0] != digests[1]:
        return "other content, by the data's digest"
    return None


def list_test_digests(run: Run) -> set[str]:
    """The digests of a run's test images, or else of all its data; empty where it kept none."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    contexts = [
        "".join(tag.value for tag in each.tags if tag.key == "mlflow.data.context")
        for each in inputs
    ]
    digests = [each.dataset.digest for each in inputs]
    test = {d for d, context in zip(digests, contexts, strict=True) if context.startswith("test")}
    return test or set(digests)
