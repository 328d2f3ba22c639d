"""The segments of a run's log: torn and damaged records, and a full disk."""

import math

import pytest

from pyclassify.spool import records
from pyclassify.spool.records import DamagedRecord, Segment
from pyclassify.spool.writer import RunWriter
from tests.support.spooled import limit_file_size

RECORDS = [
    {"kind": "metrics", "points": [["loss", 0.5, 1_700_000_000_000, 3]]},
    {"kind": "tags", "values": {"ä note": "a\nline", "gone": None}},
    {"kind": "name", "name": "last"},
]


def write(folder, given=RECORDS):
    segment = Segment(folder)
    for record in given:
        segment.append(records.encode(record))
    segment.close()
    return segment.path


def read(path, offset=0):
    return [record for _, record in records.read_records(path, offset)]


def test_records_are_read_as_they_were_written(tmp_path):
    assert read(write(tmp_path)) == RECORDS


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 5e-324, 0.1])
def test_every_float_is_read_bitwise_identical(value, tmp_path):
    (record,) = read(write(tmp_path, [{"points": [value]}]))

    assert record["points"][0].hex() == value.hex()


def test_record_torn_anywhere_is_dropped_and_all_before_it_are_read(tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    last = len(records.encode(RECORDS[-1]))

    for torn in range(1, last + 1):
        path.write_bytes(whole[:-torn])
        assert read(path) == RECORDS[:2]


def test_damaged_record_is_reported_with_its_offset_and_the_others_are_read(tmp_path):
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    offset = len(records.encode(RECORDS[0]))
    content[offset + 20] ^= 1
    path.write_bytes(content)

    first, damaged, last = read(path)
    assert [first, last] == [RECORDS[0], RECORDS[2]]
    assert isinstance(damaged, DamagedRecord)
    assert str(damaged).startswith(f"{path} at byte {offset}: ")


def test_read_records_starts_at_an_offset(tmp_path):
    path = write(tmp_path)
    (offset, _), *_ = records.read_records(path)

    assert read(path, offset) == RECORDS[1:]


def test_each_writer_has_its_own_file(tmp_path):
    first, second = Segment(tmp_path), Segment(tmp_path)
    for segment in (first, second, first):
        segment.append(records.encode({"number": segment.number}))

    assert {number: read(path) for number, path in records.list_segments(tmp_path).items()} == {
        1: [{"number": 1}, {"number": 1}],
        2: [{"number": 2}],
    }


def test_append_on_a_full_disk_leaves_no_byte_of_the_record(tmp_path):
    segment = Segment(tmp_path)
    line = records.encode(RECORDS[0])
    segment.append(line)
    with limit_file_size(len(line) + 10), pytest.raises(OSError, match="File too large"):
        segment.append(line)

    segment.append(records.encode(RECORDS[1]))
    assert read(segment.path) == RECORDS[:2]


@pytest.fixture
def opened(tmp_path):
    return RunWriter(records.create_spool(tmp_path / "run", "0", "name", {}, 0))


def log_on_a_full_disk(opened, size, steps):
    with limit_file_size(size):
        for step in range(steps):
            opened.append_points([["loss", step / 2, 0, step]])


def test_records_on_a_full_disk_are_pending_and_written_later(opened):
    with pytest.warns(UserWarning, match="can't be written .* in memory"):
        log_on_a_full_disk(opened, size=100, steps=1000)
    with pytest.warns(UserWarning, match="written again"):
        opened.append({"kind": "name", "name": "last"})

    (path,) = records.list_segments(opened.folder).values()
    *metrics, last = read(path)
    assert [record["points"][0][3] for record in metrics] == [*range(1000)]
    assert last["name"] == "last"


def test_pending_records_over_the_limit_are_dropped_with_a_warning(opened, monkeypatch):
    monkeypatch.setattr("pyclassify.spool.writer.MAX_PENDING_BYTES", 1000)
    with pytest.warns(UserWarning, match="lost.*Free space") as warned:
        log_on_a_full_disk(opened, size=0, steps=100)

    assert len(warned) == 2
    with pytest.warns(UserWarning, match="written again"):
        assert opened.flush()
    (path,) = records.list_segments(opened.folder).values()
    assert 0 < len(read(path)) < 20
