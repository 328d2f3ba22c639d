"""The stores of a service without a server: PostgreSQL and the bucket, and all that they hold."""

import contextlib
import hashlib

import sqlalchemy

from tests.support import required
from tests.support.service_parts import BUCKET, Service, missing


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
