"""A lock in the registry is held by one process at a time, and removed if that process dies."""

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pyclassify.registry import lock
from pyclassify.registry.champion import promote_if_better
from pyclassify.registry.lock import lock_model
from tests.support.phrases import mentions
from tests.support.runs import NAME, champion, register
from tests.support.spooled import responding_with

FAIR = "y" * 10 + "n" * 30


def test_lock_of_dead_process_is_removed(registry, monkeypatch):
    version = register(FAIR)
    registry.create_registered_model(f"{NAME} (alias lock)", description="of a dead process")
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.2)

    promote_if_better(registry, NAME, version)

    assert champion() == version
    assert [each.name for each in registry.search_registered_models()] == [NAME]


def test_stale_lock_is_lost_to_the_next_process(registry, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.2)

    with lock_model(registry, NAME) as first_is_locked:
        assert first_is_locked()
        with lock_model(registry, NAME) as second_is_locked:
            assert (first_is_locked(), second_is_locked()) == (False, True)


def test_lock_acquired_by_another_meanwhile_is_not_broken(registry):
    with lock_model(registry, NAME) as is_locked:
        lock._break(registry, f"{NAME} (alias lock)", "the previous holder")

        assert is_locked()


def test_stale_lock_of_another_user_raises_with_who_can_delete_it(registry, monkeypatch):
    name = f"{NAME} (alias lock)"
    registry.create_registered_model(name, description="of a dead process")
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.2)

    def refuse(_):
        raise MlflowException("no permission", PERMISSION_DENIED)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "delete_registered_model", refuse)
        with pytest.raises(PermissionError) as refused, lock_model(registry, NAME):
            pytest.fail("the lock was acquired")

    assert mentions(str(refused.value), f"'{name}'", "user", "admin", "delete")


def test_lock_requested_twice_is_held(registry, monkeypatch):
    create = registry.create_registered_model

    def create_twice(name, **more):  # as a client does that lost the first answer
        create(name, **more)
        create(name, **more)

    monkeypatch.setattr(registry, "create_registered_model", create_twice)
    with lock_model(registry, NAME) as is_locked:
        assert is_locked()

    assert registry.search_registered_models() == []


def test_denied_lock_raises_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        responding_with(403) as address,
        pytest.raises(MlflowException) as refused,
        lock_model(MlflowClient(address), NAME),
    ):
        pytest.fail("the lock was acquired")

    assert refused.value.error_code == "PERMISSION_DENIED"


def test_lock_is_released_after_an_error(registry):
    register(FAIR)
    with pytest.raises(OSError, match="disk"), lock_model(registry, NAME):
        raise OSError("disk")

    assert [each.name for each in registry.search_registered_models()] == [NAME]
