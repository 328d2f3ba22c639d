"""Who gets into the service of docs/service.md, as its commands set it up, and who does not."""

import json

import mlflow
import pytest
import requests

from tests.support.service import sign_in

pytestmark = pytest.mark.service
API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture(scope="module")
def owned(service, people):
    """What Ada made: the ids of an experiment and of a run with a file, and a model's name."""
    with pytest.MonkeyPatch.context() as patch:
        sign_in(patch, service, people["ada"])
        client = mlflow.MlflowClient(service.uri)
        experiment = client.create_experiment("of Ada")
        run_id = client.create_run(experiment).info.run_id
        client.log_text(run_id, "hello", "said.txt")
        client.create_registered_model("of-ada")
    return {"experiment": experiment, "run": run_id, "file": f"{experiment}/{run_id}/artifacts"}


@pytest.fixture(scope="module")
def untouched(proxy, people, owned):
    """What there is of Ada's before others try to change it."""
    return kept(proxy, people["ada"], owned)


def send(proxy, account, method, path, body=None, host=None):
    """Send a request whose path arrives as it is written."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    headers = {"Content-Type": "application/json"} | ({"Host": host} if host else {})
    asked = requests.Request(method, proxy.uri, auth=account, data=data, headers=headers).prepare()
    asked.url = proxy.uri + path
    with requests.Session() as session:
        return session.send(asked, verify=proxy.certificate, timeout=300, allow_redirects=False)


def kept(proxy, account, owned):
    """What the run and its experiment hold, but for what changes by itself."""
    run = send(proxy, account, "GET", f"{API}/runs/get?run_id={owned['run']}").json()["run"]
    listed = send(proxy, account, "GET", f"{API}/artifacts/list?run_id={owned['run']}").json()
    found = send(
        proxy, account, "POST", f"{API}/runs/search", {"experiment_ids": [owned["experiment"]]}
    )
    return run, listed, len(found.json()["runs"])


def filled(value, owned):
    """A path or a body with the ids in place of their names in braces."""
    if isinstance(value, dict):
        return {key: filled(each, owned) for key, each in value.items()}
    return value.format(**owned) if isinstance(value, str) else value


METRIC = {"run_id": "{run}", "key": "loss", "value": 1.0, "timestamp": 0, "step": 0}
RUN = {"experiment_id": "{experiment}"}
ALIAS = {"name": "of-ada", "alias": "champion", "version": "1"}
ACCOUNT = {"username": "eve", "password": "the password of eve"}
RIGHT = {"username": "bob", "resource_type": "experiment", "permission": "MANAGE"}
RIGHT["resource_id"] = "{experiment}"


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "status"),
    [
        ("nobody", "GET", "/", None, 401),
        ("nobody", "GET", f"{API}/runs/get?run_id={{run}}", None, 401),
        ("nobody", "GET", f"{FILES}/{{file}}/said.txt", None, 401),
        ("nobody", "GET", "/signup", None, 401),
        ("wrong password", "GET", f"{API}/runs/get?run_id={{run}}", None, 401),
        ("wrong password", "PUT", f"{FILES}/{{file}}/said.txt", b"else", 401),
        ("bob", "POST", f"{API}/runs/log-metric", METRIC, 403),
        ("bob", "POST", f"{API}/runs/create", RUN, 403),
        ("bob", "POST", f"{API}/runs/delete", {"run_id": "{run}"}, 403),
        ("bob", "POST", f"{API}/experiments/delete", RUN, 403),
        ("bob", "PUT", f"{FILES}/{{file}}/said.txt", b"else", 403),
        ("bob", "DELETE", f"{FILES}/{{file}}/said.txt", None, 403),
        ("bob", "POST", f"{API}/registered-models/alias", ALIAS, 403),
        ("bob", "POST", f"{API}/users/create", ACCOUNT, 403),
        ("bob", "POST", f"{API}/users/permissions/grant", RIGHT, 403),
        ("ada", "PUT", f"{FILES}/../{{file}}/said.txt", b"else", 403),
        ("ada", "PUT", f"{FILES}/{{file}}/../../../../else", b"else", 403),
        ("ada", "PUT", f"{FILES}/{{file}}/%2e%2e/%2e%2e/else", b"else", 403),
        ("ada", "PUT", f"{FILES}/{{file}}/..%2f..%2felse", b"else", 403),
        ("ada", "PUT", f"{FILES}/{{file}}/%252e%252e/else", b"else", 403),
        ("ada", "GET", f"{FILES}/{{file}}/../../../../../etc/passwd", None, 403),
        ("ada", "GET", f"{FILES}?path={{file}}/../..", None, 403),
    ],
)
def test_refused(who, method, path, body, status, owned, untouched, people, proxy):
    accounts = {**people, "nobody": None, "wrong password": ("ada", "the password of bob")}

    answer = send(proxy, accounts[who], method, filled(path, owned), filled(body, owned))

    assert answer.status_code == status, answer.text
    assert kept(proxy, people["ada"], owned) == untouched


def test_host_that_is_not_allowed_is_refused_even_to_who_has_an_account(owned, people, proxy):
    path = f"{API}/runs/get?run_id={owned['run']}"

    answer = send(proxy, people["ada"], "GET", path, host="elsewhere.example.org")

    assert (answer.status_code, answer.text.partition(" - ")[0]) == (403, "Invalid Host header")


def test_who_has_an_account_reads_what_others_made(owned, people, proxy):
    read = f"{API}/runs/get?run_id={owned['run']}"
    assert send(proxy, people["bob"], "GET", read).status_code == 200
    assert send(proxy, people["bob"], "GET", f"{FILES}/{owned['file']}/said.txt").text == "hello"


def test_right_that_is_given_by_the_page_lets_a_user_write(service, people, proxy):
    made = send(proxy, people["ada"], "POST", f"{API}/experiments/create", {"name": "given"})
    given = {"WHO": "bob", "WHAT": "experiment", "LEVEL": "EDIT"}
    service.as_admin("grant", **given, WHICH=made.json()["experiment_id"])

    answer = send(proxy, people["bob"], "POST", f"{API}/runs/create", made.json())

    assert answer.status_code == 200, answer.text
