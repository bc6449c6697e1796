"""The record of a study: rows come back, another protocol is refused, facts of several starts stand side by side."""

import json

import pytest

from experiments import record
from tl_jax.train.workdir import read_json
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def test_rows_come_back_with_five_digits(tmp_path):
    prefix = tmp_path / "deep" / "study"
    assert record.read_rows(prefix) == []
    record.write_rows(prefix, [{"name": "a, b", "value": 1 / 3, "count": 7}, {"name": "c", "value": 2.0, "count": 8}])
    assert record.read_rows(prefix) == [
        {"name": "a, b", "value": "0.33333", "count": "7"}, {"name": "c", "value": "2", "count": "8"}
    ]  # fmt: skip
    assert [path.name for path in prefix.parent.iterdir()] == ["study.csv"]


def test_another_protocol_is_refused_by_name(tmp_path):
    record.begin_record(tmp_path / "study", {"steps": {"5": 40}, "rates": ["1e-3"]})
    record.begin_record(tmp_path / "study", {"steps": {"5": 40}, "rates": ["1e-3"]})
    with pytest.raises(UserError, match=r"another protocol.steps.5 \(40 there, 50 here\); pass another --results"):
        record.begin_record(tmp_path / "study", {"steps": {"5": 50}, "rates": ["1e-3"]})
    assert json.loads((tmp_path / "study.json").read_text())["steps"] == {"5": 40}


def test_facts_of_each_start_are_kept_once(tmp_path):
    record.begin_record(tmp_path / "study", {"steps": 1})
    for version in ("1", "2", "1"):
        record.add_facts(tmp_path / "study", versions={"jax": version})
    record.begin_record(tmp_path / "study", {"steps": 1})
    assert read_json(tmp_path / "study.json") == {"steps": 1, "versions": [{"jax": "1"}, {"jax": "2"}]}
