"""Trainings that finish together leave one champion, and not the worse one."""

import os
import socket

import pytest

from pyclassify.registry import lock
from pyclassify.registry.champion import judge
from pyclassify.registry.lock import alone
from pyclassify.tracking.answers import read_answers
from tests.support import processes
from tests.support.judging import judge_together
from tests.support.runs import NAME, challenger, champion, decided, record, register
from tests.support.spooled import Meeting
from tests.support.waiting import scale

ANSWERS = ["y" * right + "n" * (40 - right) for right in (10, 20, 30)]  # each better than the last
TRIES = 6
OTHER = """
import socket
from tests.support.judging import judge_together
from tests.support.spooled import Meeting

with socket.create_connection({address!r}) as connection:
    judge_together({uri!r}, Meeting(connection), {cases!r})
"""


def test_of_two_that_finish_together_the_better_is_champion(registry):
    runs = [record(answers=each) for each in ANSWERS]
    names = [f"net{turn}" for turn in range(TRIES)]
    for turn, name in enumerate(names):
        for run_id in (runs[0], *(runs[1:] if turn % 2 else runs[:0:-1])):
            register(name=name, run_id=run_id)
        registry.set_registered_model_alias(name, "champion", "1")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    cases = {version: [(name, version) for name in names] for version in "23"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(scale(100))
        code = OTHER.format(address=server.getsockname(), uri=uri, cases=cases["3"])
        other = processes.start("-c", code, cwd=processes.ROOT)
        with server.accept()[0] as connection:
            judge_together(uri, Meeting(connection), cases["2"])
    other.wait()

    assert other.returncode == 0
    best = ["3" if turn % 2 else "2" for turn in range(TRIES)]
    assert [champion(name) for name in names] == best
    models = [each.name for each in registry.search_registered_models()]
    assert sorted(models) == sorted(names)  # and no lock


def test_version_is_judged_anew_where_another_became_champion_meanwhile(registry):
    worst, good = (register(each, digest="old") for each in ANSWERS[::2])
    fair = register(ANSWERS[1], digest="new")
    judge(registry, NAME, worst)
    runs = {each: registry.get_model_version(NAME, each).run_id for each in (worst, good)}

    def evaluate(version):  # takes a while
        if champion() == worst:
            judge(registry, NAME, good)
        return read_answers(registry.get_run(runs[version]))

    decision = judge(registry, NAME, fair, evaluate=evaluate)

    assert (decision.outcome, decision.against) == ("kept", good)
    assert (champion(), challenger()) == (good, fair)


def test_version_that_another_process_judges_meanwhile_is_judged_once(registry):
    first, second = register(ANSWERS[0], digest="old"), register(ANSWERS[1], digest="new")
    judge(registry, NAME, first)
    answers = read_answers(registry.get_run(registry.get_model_version(NAME, first).run_id))
    decisions = []

    def evaluate(version):  # takes a while
        decisions.append(judge(registry, NAME, second, evaluate=lambda _: answers))
        return answers

    decisions.append(judge(registry, NAME, second, evaluate=evaluate))

    assert decisions[0] == decisions[1]
    assert (decisions[0].outcome, decided(second)["earlier"]) == ("promoted", [])


def test_lock_of_a_process_that_died_is_removed(registry, monkeypatch):
    version = register(ANSWERS[0])
    registry.create_registered_model(f"{NAME} (being judged)", description="of a dead process")
    monkeypatch.setattr(lock, "STALE", 0.2)

    judge(registry, NAME, version)

    assert champion() == version
    assert [each.name for each in registry.search_registered_models()] == [NAME]


def test_lock_that_others_took_for_dead_is_no_longer_held(registry, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 0.2)

    with alone(registry, NAME) as first_is_alone:
        assert first_is_alone()
        with alone(registry, NAME) as second_is_alone:
            assert (first_is_alone(), second_is_alone()) == (False, True)


def test_lock_is_let_go_where_something_fails(registry):
    register(ANSWERS[0])
    with pytest.raises(OSError, match="disk"), alone(registry, NAME):
        raise OSError("disk")

    assert [each.name for each in registry.search_registered_models()] == [NAME]
