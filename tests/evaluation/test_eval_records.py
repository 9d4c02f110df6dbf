import json

import pytest

from edge_atp.errors import DatasetError
from edge_atp.evaluation.records import ArmAnswer, FinishedTask, Record, RecordFile

RUN = {"model": "a", "arms": ("dense", "atp@4"), "seed": 0}


def finished(key: str, line: int) -> FinishedTask:
    answer = ArmAnswer("réd", 0.5, 4, None, 0.01)
    return FinishedTask(key, (Record(line, "clean", {"dense": answer}),))


def write_two(path) -> None:
    with RecordFile(path, RUN) as records:
        records.append(finished("a", 1))
        records.append(finished("b", 2))


def test_resuming_reads_back_what_was_written(tmp_path):
    path = tmp_path / "records.jsonl"
    write_two(path)
    with RecordFile(path, RUN, resume=True) as records:
        assert records.finished == [finished("a", 1), finished("b", 2)]
        records.append(finished("c", 3))
    with RecordFile(path, RUN, resume=True) as records:
        assert [record.line for record in records.records] == [1, 2, 3]


def test_a_line_cut_short_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "records.jsonl"
    write_two(path)
    path.write_bytes(path.read_bytes()[:-10])
    with RecordFile(path, RUN, resume=True) as records:
        assert [task.key for task in records.finished] == ["a"]
        records.append(finished("b", 2))
    assert len(path.read_text().splitlines()) == 3


def test_a_file_cut_in_its_first_line_starts_anew(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"run"')
    with RecordFile(path, RUN, resume=True) as records:
        records.append(finished("a", 1))
    assert json.loads(path.read_text().splitlines()[0])["run"]["model"] == "a"


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    path = tmp_path / "records.jsonl"
    write_two(path)
    with pytest.raises(DatasetError, match=r"differs in seed"):
        RecordFile(path, {**RUN, "seed": 1}, resume=True)


def test_damage_in_the_middle_names_the_line(tmp_path):
    path = tmp_path / "records.jsonl"
    write_two(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"key": "a"}', lines[2]]) + "\n")
    with pytest.raises(DatasetError, match=r"records.jsonl:2: no record of this version"):
        RecordFile(path, RUN, resume=True)


def test_without_resume_the_file_starts_anew(tmp_path):
    path = tmp_path / "records.jsonl"
    write_two(path)
    with RecordFile(path, {**RUN, "seed": 1}) as records:
        assert records.finished == []
    assert len(path.read_text().splitlines()) == 1
