"""The studies as commands, small: what they write, that rows are not measured again, and what they refuse."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.transferability import report, scores

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def study(name, folder, *arguments):
    command = [sys.executable, "-m", f"experiments.{name}", f"--workdir={folder}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


SMALL = ("--targets=digits", "--per_class=3", "--seeds=0,1", "--rates=3e-3", "--steps=4", "--tested=100")


@pytest.fixture(scope="module")
def distances(tmp_path_factory):
    """A finished study of four sources on the digits."""
    folder = tmp_path_factory.mktemp("distances")
    done = study("transfer_distance", folder, *SMALL, "--sources=cifar10,mnist,shapes,random")
    assert done.returncode == 0, done.stderr
    return folder


def test_distances_leave_a_record_and_a_page(distances):
    with (distances / "transfer_distance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["seed"]) for row in rows] == [
        (source, seed) for seed in "01" for source in ("cifar10", "mnist", "shapes", "random")
    ]
    for row in rows:
        undefined = {name for name in (*scores.score_names(), *scores.distance_names()) if row[name] == ""}
        expected = {"leep", "nce"} if row["source"] == "random" else set()
        expected |= set(scores.distance_names()) if row["source"] != "shapes" else set()  # its data alone are drawn
        assert undefined == expected, row["source"]
        assert all(0 <= float(row[name]) <= 1 for name in ("scratch", "fine_tune", "probe", "knn"))
    random = [row for row in rows if row["source"] == "random"]
    assert all(row["fine_tune"] == row["scratch"] for row in random)
    page = (distances / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6 and "<td>leep</td>" in page and "<td>otdd</td>" not in page


def test_groups_hold_what_is_defined_for_all(distances):
    found = report.read_pairs(report.record.read_rows(distances / "transfer_distance"))
    (group,) = report.make_groups(found, "fine_tune")
    assert len(group.gains) == 3 and "leep" in group.scores and "otdd" not in group.scores


def test_what_stands_in_the_record_is_not_measured_again(distances):
    before = (distances / "transfer_distance.csv").read_text()
    again = study("transfer_distance", distances, *SMALL, "--sources=cifar10,mnist")
    assert again.returncode == 0 and "---" not in again.stdout
    assert (distances / "transfer_distance.csv").read_text() == before
    other = study("transfer_distance", distances, *SMALL[:-2], "--steps=5", "--tested=100")
    assert other.returncode == 2 and "another protocol.steps (4 there, 5 here)" in other.stderr
    absent = study("transfer_distance", distances, *SMALL, "--targets=ct")
    assert absent.returncode == 2 and "no target 'ct'" in absent.stderr and "Traceback" not in absent.stderr


def test_the_four_looks(tmp_path):
    done = study("layer_transfer", tmp_path, "--seeds=0", "--steps=3", "--rates=3e-3", "--per_class=3", "--tested=99")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "what_is_transferred.csv").open() as file:
        rows = list(csv.DictReader(file))
    count = {kind: sum(row["kind"] == kind for row in rows) for kind in ("depth", "rewind", "drift", "line")}
    assert count == {"depth": 9, "rewind": 9, "drift": 8, "line": 33}
    assert (tmp_path / "what_is_transferred.png").stat().st_size > 20_000
    # The ends of the two lines that start from the same network are the same.
    first = [row["value"] for row in rows if (row["kind"], row["at"]) == ("line", "0.0")]
    assert first[1] == first[2]


def test_what_a_policy_passes_on_leaves_a_record_and_pictures(tmp_path):
    done = study("rl_transfer.study", tmp_path, "--smoke", "--ways=scratch,everything,kickstart")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rl_cartpole.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["target"], r["way"], r["seed"]) for r in rows] == [
        (target, way, seed)
        for target in ("heavy", "long")
        for way in ("scratch", "everything", "kickstart")
        for seed in "01"
    ]
    assert all(len(row["curve"].split()) == 3 for row in rows)  # before training and two evaluations
    assert {row["distance"] for row in rows} == {"2.3026", "1.0986"}  # logarithms of 10 and 3
    assert all((tmp_path / f"rl_cartpole{end}").is_file() for end in (".md", "_curves.png", "_distance.png"))
    again = study("rl_transfer.study", tmp_path, "--smoke", "--ways=scratch")
    assert again.returncode == 0 and "--- heavy" not in again.stdout
