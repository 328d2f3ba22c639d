"""Trainings that finish together leave one champion, and not the worse one."""

import os
import socket

import pytest

from pyclassify.registry import champion as champion_module
from pyclassify.registry import lock
from pyclassify.registry.champion import (
    force_promotion,
    promote_if_better,
    roll_back_champion,
)
from pyclassify.tracking.prediction_table import read_predictions
from tests.support import processes
from tests.support.promotions import promote_together
from tests.support.runs import NAME, challenger, champion, read_decision, record, register
from tests.support.spooled import Barrier
from tests.support.waiting import scale

ANSWERS = ["y" * right + "n" * (40 - right) for right in (10, 20, 30)]  # each better than the last
TRIES = 6
OTHER = """
import socket
from tests.support.promotions import promote_together
from tests.support.spooled import Barrier

with socket.create_connection({address!r}) as connection:
    promote_together({uri!r}, Barrier(connection), {cases!r})
"""


def test_better_of_two_simultaneous_promotions_is_champion(registry):
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
            promote_together(uri, Barrier(connection), cases["2"])
    other.wait()

    assert other.returncode == 0
    best = ["3" if turn % 2 else "2" for turn in range(TRIES)]
    assert [champion(name) for name in names] == best
    models = [each.name for each in registry.search_registered_models()]
    assert sorted(models) == sorted(names)  # and no lock


def test_promotion_is_rechecked_after_another_became_champion_meanwhile(registry):
    worst, good = (register(each, digest="old") for each in ANSWERS[::2])
    fair = register(ANSWERS[1], digest="new")
    promote_if_better(registry, NAME, worst)
    runs = {each: registry.get_model_version(NAME, each).run_id for each in (worst, good)}

    def evaluate(version):  # takes a while
        if champion() == worst:
            promote_if_better(registry, NAME, good)
        return read_predictions(registry.get_run(runs[version]))

    decision = promote_if_better(registry, NAME, fair, evaluate=evaluate)

    assert (decision.outcome, decision.against) == ("not better", good)
    assert (champion(), challenger()) == (good, fair)


def test_version_promoted_by_another_process_meanwhile_is_decided_once(registry):
    first, second = register(ANSWERS[0], digest="old"), register(ANSWERS[1], digest="new")
    promote_if_better(registry, NAME, first)
    predictions = read_predictions(registry.get_run(registry.get_model_version(NAME, first).run_id))
    decisions = []

    def evaluate(version):  # takes a while
        decisions.append(promote_if_better(registry, NAME, second, evaluate=lambda _: predictions))
        return predictions

    decisions.append(promote_if_better(registry, NAME, second, evaluate=evaluate))

    assert decisions[0] == decisions[1]
    assert (decisions[0].outcome, read_decision(second)["earlier_decisions"]) == ("promoted", [])


def test_challenger_compared_by_another_process_meanwhile_is_decided_once(registry):
    first, second = register(ANSWERS[0], digest="old"), register(ANSWERS[0], digest="new")
    promote_if_better(registry, NAME, first)
    assert promote_if_better(registry, NAME, second).outcome == "not evaluated"
    predictions = read_predictions(registry.get_run(registry.get_model_version(NAME, first).run_id))
    decisions = []

    def evaluate(version):  # takes a while, and no alias moves meanwhile
        decisions.append(promote_if_better(registry, NAME, second, evaluate=lambda _: predictions))
        return predictions

    decisions.append(promote_if_better(registry, NAME, second, evaluate=evaluate))

    assert decisions[0] == decisions[1]
    earlier = [each["outcome"] for each in read_decision(second)["earlier_decisions"]]
    assert (decisions[0].outcome, earlier) == ("not better", ["not evaluated"])


def test_decision_is_dropped_after_the_lock_was_lost(registry, monkeypatch):
    worst, fair, good = (register(each) for each in ANSWERS)
    promote_if_better(registry, NAME, worst)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.2)
    save = champion_module.save_decision

    def save_slowly(client, version, decision):  # while another takes this process for dead
        save(client, version, decision)
        if version.number == fair and champion() == worst:
            promote_if_better(registry, NAME, good)

    monkeypatch.setattr(champion_module, "save_decision", save_slowly)
    decision = promote_if_better(registry, NAME, fair)

    assert (decision.outcome, decision.against) == ("not better", good)
    assert (champion(), challenger()) == (good, fair)
    assert registry.get_registered_model(NAME).tags["champion_history"] == f"{good} {worst}"


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something done once, while a person's decision is being made."""

    def meanwhile(do):
        left = [do]

        def name_user():
            if left:
                left.pop()()
            return "ada"

        monkeypatch.setattr("getpass.getuser", name_user)

    return meanwhile


def test_forced_version_follows_the_one_that_became_champion_meanwhile(registry, meanwhile):
    worst, fair, good = (register(each) for each in ANSWERS)
    promote_if_better(registry, NAME, worst)
    meanwhile(lambda: promote_if_better(registry, NAME, good))

    decision = force_promotion(registry, NAME, fair, "it is half the size")

    assert (decision.outcome, decision.against, decision.decided_by) == ("forced", good, "ada")
    assert champion() == fair
    assert registry.get_registered_model(NAME).tags["champion_history"] == f"{fair} {good} {worst}"


def test_rollback_takes_back_the_one_that_became_champion_meanwhile(registry, meanwhile):
    worst, fair, good = (register(each) for each in ANSWERS)
    promote_if_better(registry, NAME, worst)
    promote_if_better(registry, NAME, fair)
    meanwhile(lambda: promote_if_better(registry, NAME, good))

    decision = roll_back_champion(registry, NAME, "too slow")

    assert (decision.version, decision.against, champion()) == (good, fair, fair)
    assert registry.get_registered_model(NAME).tags["champion_history"] == f"{fair} {worst}"


def test_champion_is_not_forced_again(registry):
    version = register(ANSWERS[0])
    promote_if_better(registry, NAME, version)

    with pytest.raises(ValueError, match="alexnet version 1 is already champion"):
        force_promotion(registry, NAME, version, "again")

    assert read_decision(version)["outcome"] == "first version"
