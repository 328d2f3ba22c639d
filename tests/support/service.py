"""The service of docs/service.md, of real parts and by the page's own commands.

PostgreSQL, a bucket (moto's S3 server), and `mlflow server` with accounts. Each can be stopped and
started again on its own; `Proxy` is nginx in front. The programs `mlflow` and `python` in
the page's commands fork from the tests' server (see `forking_python`): a start takes seconds.
"""

import contextlib
import functools
import getpass
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import boto3
import mlflow
import sqlalchemy

from tests.support import forking_python, required
from tests.support.daemons import Daemons
from tests.support.ports import free_port, free_ports
from tests.support.waiting import scale

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HERE = f"{Path(sys.executable).parent}/"
PAGE = ROOT / "docs" / "service.md"
DEBIANS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PATH = os.pathsep.join(
    [str(Path(sys.executable).parent), *map(str, DEBIANS), os.environ["PATH"], "/usr/sbin"]
)
PROGRAMS = {"postgres": "postgresql", "initdb": "postgresql", "setpriv": "util-linux"}
BUCKET = "pyclassify"
ADMIN = ("admin", "of the tests alone")
# As the environment's own, which import torch, Lightning and MLflow each time.
FORKING = {
    "mlflow": 'exec {python} -m mlflow "$@"',
    "pyclassify": 'exec {python} -m pyclassify "$@"',
    "uvicorn": 'exec {python} -m uvicorn "$@"',
    "python": """case "$1" in
    -) exec {python} -c "$(cat)" </dev/null ;;
    *) exec {python} "$@" ;;
esac""",
}


def missing():
    """Say what keeps the service from starting here, or nothing."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program, path=PATH):
            return f"the service needs {program}: Debian has it in {package}"
    return None if os.geteuid() == 0 else "only root starts PostgreSQL as another user"


def commands(name):
    """The page's block of bash under a marker."""
    marked = rf"^<!-- service:{re.escape(name)} -->\n```bash\n(.*?)^```$"
    text = "\n".join(page.read_text() for page in sorted(PAGE.parent.glob("service*.md")))
    (block,) = re.findall(marked, text, re.MULTILINE | re.DOTALL)
    return block


def write_forking_programs(folder):
    """Write programs that are called as the environment's, but fork; a PATH that begins by them."""
    folder.mkdir(exist_ok=True)
    for name, command in FORKING.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{command.format(python=forking_python.program())}\n")
        program.chmod(0o755)
    return f"{folder}{os.pathsep}{PATH}"


def sign_in(patch, service, account=ADMIN):
    """Make this process, and what it starts, a client of the service."""
    user, password = account
    patch.setenv("MLFLOW_TRACKING_URI", service.uri)
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


class Service:
    """Its parts, and what happens to them.

    `env` is what the server and the page's commands are given, `uri` the tracking URI, and
    `bucket` the client of the bucket's service.
    """

    def __init__(self, workers=2):
        self.workers = workers
        outer = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        self.daemons = Daemons({**outer, "PATH": PATH})
        self.folder, self.env = self.daemons.folder, self.daemons.env
        self.ports = free_ports("postgres", "s3", "mlflow", "nginx")
        self.uri = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.proxied_uri = f"https://{socket.gethostname()}:{self.ports['nginx']}"
        self.s3_uri = f"http://127.0.0.1:{self.ports['s3']}"
        self.env.update(
            _given(ROOT / "deploy" / "service.env"),
            PGHOST=str(self.folder),
            PGPORT=str(self.ports["postgres"]),
            AWS_ENDPOINT_URL_S3=self.s3_uri,
            AWS_ACCESS_KEY_ID="key-of-the-tests",
            AWS_SECRET_ACCESS_KEY="secret-of-the-bucket",
            MLFLOW_PORT=str(self.ports["mlflow"]),
            MLFLOW_WORKERS=str(workers),
            MLFLOW_SERVER_ALLOWED_HOSTS=f"127.0.0.1:{self.ports['mlflow']},{socket.gethostname()}",
            MLFLOW_SERVER_CORS_ALLOWED_ORIGINS=self.proxied_uri,
            MLFLOW_AUTH_CONFIG_PATH=str(ROOT / "deploy" / "auth.ini"),
            MLFLOW_AUTH_ADMIN_PASSWORD=ADMIN[1],
            MLFLOW_FLASK_SERVER_SECRET_KEY="key-of-the-forms",
        )

    def start(self):
        self.start_stores()
        self.start_server()

    def start_stores(self):
        """Start PostgreSQL with an empty database, and a service with an empty bucket."""
        self.start_database()
        self.start_s3()
        self.run("bucket")

    def start_database(self):
        self.make_database()
        self.start_postgres()
        self.run("database")

    def stop(self):
        self.daemons.stop()

    def run(self, *names, **more):
        """Run the page's commands of some names, in one shell; returns what they wrote."""
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(map(commands, names))]
        return self.daemons.run(*command, **{"PATH": self.forking_path, **more})

    @functools.cached_property
    def forking_path(self):
        return write_forking_programs(self.folder / "bin")

    def as_admin(self, name, **more):
        """Run the page's commands of a name as the admin."""
        user, password = ADMIN
        signed_in = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        return self.run(name, MLFLOW_TRACKING_URI=self.uri, **signed_in, **more)

    def make_database(self):
        """A folder of PostgreSQL's, whose socket lets users in by their names, as Debian's does."""
        data = self.folder / "postgres"
        data.mkdir(mode=0o700)
        shutil.chown(data, "postgres", "postgres")
        shutil.chown(self.folder, group="postgres")  # for the socket
        self.folder.chmod(0o771)
        self.daemons.run(*_as_postgres("initdb", "--no-sync", f"--pgdata={data}"))
        (data / "pg_hba.conf").write_text("local all all peer map=tests\n")
        users = {"postgres": "postgres", getpass.getuser(): "mlflow"}
        (data / "pg_ident.conf").write_text(
            "".join(f"tests {user} {role}\n" for user, role in users.items())
        )

    def start_postgres(self):
        options = [f"-D{self.folder}/postgres", f"-k{self.folder}", f"-p{self.ports['postgres']}"]
        # It is thrown away: what only a loss of power would miss need not wait for the disk.
        options += ["-clisten_addresses=", "-cfsync=off"]
        self.daemons.start("postgres", *_as_postgres("postgres", *options))
        self.daemons.wait("postgres", self._postgres_is_ready)

    def _postgres_is_ready(self):
        return "ready to accept connections" in self.daemons.output("postgres").read_text()

    def stop_postgres(self):
        """Stop it as `systemctl restart` does, without waiting for who is connected."""
        self._end("postgres", signal.SIGINT)

    def start_s3(self):
        self.daemons.start("s3", "moto_server", f"-p{self.ports['s3']}")
        self.daemons.wait("s3", lambda: is_up(f"{self.s3_uri}/moto-api/"))

    @property
    def bucket(self):
        keys = {name.lower(): self.env[name] for name in self.env if name.startswith("AWS_")}
        options = {key: keys[key] for key in ("aws_access_key_id", "aws_secret_access_key")}
        return boto3.client("s3", endpoint_url=self.s3_uri, region_name="us-east-1", **options)

    def start_server(self):
        """Start the server as the page says; a server of one worker is forked, like its worker."""
        path = self.env["PATH"] if self.workers > 1 else self.forking_path
        command = f"export PATH={shlex.quote(path)} && exec {commands('server')}"
        self.daemons.start("mlflow", "bash", "-c", command)
        self.daemons.wait("mlflow", lambda: is_up(f"{self.uri}/health"), seconds=120)

    def kill_server(self):
        """Kill it and its workers at once, as a machine that goes down does; none may be forked."""
        process = self.daemons.processes["mlflow"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def sql(self, query):
        """The rows that the database answers with, a line each, columns separated by `|`."""
        return self.daemons.run("psql", "--no-psqlrc", "-At", "-c", query).splitlines()

    def _end(self, name, signal_number):
        process = self.daemons.processes[name]
        process.send_signal(signal_number)
        process.wait(timeout=scale(30))


def _given(path):
    """The variables of a file as systemd reads it."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def _as_postgres(*command):
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


def is_up(url):
    """Whether a server answers that all is well."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200
    return False


def started_by(unit, here=HERE):
    """The command line of a unit, of the programs of this environment or of another folder."""
    lines = (DEPLOY / unit).read_text().splitlines()
    (line,) = [each.removeprefix("ExecStart=") for each in lines if each.startswith("ExecStart=")]
    return installed_here(line, here)


def installed_here(text, here=HERE):
    return text.replace("/opt/mlflow/bin/", here).replace("%h/project/.venv/bin/", here)


# The rest of what Debian's nginx.conf has around a site.
AROUND = """daemon off; pid {folder}/nginx.pid; error_log stderr; user root;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-bodies;
    proxy_temp_path {folder}/nginx-answers;
    include {folder}/site.conf;
}}
"""


class Proxy:
    """nginx: `uri` is what users know, `certificate` what they trust."""

    def __init__(self, service):
        self.service, self.folder = service, service.folder
        self.host, self.port = socket.gethostname(), service.ports["nginx"]
        self.uri, self.plain_port = service.proxied_uri, free_port()
        self.certificate = self.folder / "mlflow.crt"
        site = (ROOT / "deploy" / "nginx.conf").read_text()
        for documented, here in (
            ("listen 443 ssl;", f"listen {self.port} ssl;"),
            ("listen 80;", f"listen {self.plain_port};"),
            ("mlflow.example.org", self.host),
            ("/etc/nginx/mlflow", f"{self.folder}/mlflow"),
            ("http://127.0.0.1:5000", service.uri),
        ):
            assert documented in site, documented
            site = site.replace(documented, here)
        (self.folder / "site.conf").write_text(site)
        (self.folder / "nginx.conf").write_text(AROUND.format(folder=self.folder))

    def start(self):
        self.service.run("certificate", HOST=self.host, FOLDER=str(self.folder))
        daemons = self.service.daemons
        daemons.start("nginx", "nginx", "-c", f"{self.folder}/nginx.conf")
        daemons.wait("nginx", self._answers)

    def _answers(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


def need(*programs):
    """Skip a test where the service or a program can't run, and fail it in CI."""
    if reason := missing():
        required.lack(reason)
    for program in programs:
        required.program(program)


@contextlib.contextmanager
def started_database():
    """A service with an empty database, and nothing else started."""
    service = Service(workers=1)
    try:
        service.start_database()
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def started():
    """A service with an empty database and an empty bucket; its server is not started."""
    with started_database() as service:
        service.start_s3()
        service.run("bucket")
        yield service


def database(service):
    """The address of a service's database, for SQLAlchemy and MLflow in this process."""
    names = ("PGUSER", "PGDATABASE", "PGHOST", "PGPORT")
    user, name, host, port = (service.env[each] for each in names)
    return f"postgresql+psycopg2://{user}@/{name}?host={host}&port={port}"


def columns_of(uri):
    """The names of a database's columns, by its tables."""
    engine = sqlalchemy.create_engine(uri)
    known = sqlalchemy.inspect(engine)
    found = {
        table: {each["name"] for each in known.get_columns(table)}
        for table in known.get_table_names()
    }
    engine.dispose()
    return found


def rows(uri, columns=None):
    """A database's rows by its tables, each as text, in an order of their own.

    Args:
        uri: Its address.
        columns: The columns of each table that count; all of all tables without it.
    """
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        found = {
            table: sorted(map(repr, connection.execute(_select(table, names))))
            for table, names in (columns or columns_of(uri)).items()
        }
    engine.dispose()
    return found


def _select(table, names):
    columns = [sqlalchemy.column(each) for each in sorted(names)]
    return sqlalchemy.select(*columns).select_from(sqlalchemy.table(table))


def keys(service):
    """The names of all objects of a service's bucket."""
    pages = service.bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [each["Key"] for page in pages for each in page.get("Contents", [])]


def objects(service):
    """The SHA-256 of all objects of a service's bucket, by their names."""
    return {key: hashlib.sha256(_read(service, key)).hexdigest() for key in keys(service)}


def _read(service, key):
    return service.bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def settle(patch, proxy, account, home):
    """Make this process, and what it starts, one of a user whose password is in his home folder."""
    user, password = account
    home.mkdir()
    patch.setenv("HOME", str(home))
    patch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(proxy.certificate))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        patch.delenv(name, raising=False)
    command = ["bash", "-euo", "pipefail", "-c", commands("credentials")]
    proxy.service.daemons.run(*command, input=f"{password}\n", HOME=str(home), USER=user)


def work_in(patch, experiment):
    """Make an experiment, and have runs go there; its id."""
    patch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    return mlflow.MlflowClient().create_experiment(experiment)
