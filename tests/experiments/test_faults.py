"""What is made of an injected fault: noticed, naming the file, or harmless; everything else is a defect."""

import random

import pytest

from experiments import faults, faults_flips
from experiments.faults_training import Section
from tl_jax.report import html
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def section(title, text=""):
    return Section(title, text, [html.Table(("a", "b"), [("1", "2")])], [])


def test_sections_that_are_not_made_again_stay_as_they_were():
    whole = faults.to_document([section("One", "words"), section("Two")], "")
    again = faults.to_document([section("Two", "other words")], whole)
    assert again.count("\n## ") == 2 and "## One\n\nwords\n\n| a | b |" in again and "## Two\n\nother words" in again
    assert faults.to_document([section("One", "words")], again) == again


def raising(error):
    def mode(_):
        raise error

    return mode


def printing(text, result):
    def mode(_):
        print(text)
        return result

    return mode


def test_only_what_is_noticed_by_name_or_changes_nothing_is_good(tmp_path):
    file = tmp_path / "checkpoints" / "12" / "d" / "x"
    for mode, outcome in {
        raising(UserError(f"{tmp_path}/checkpoints/12: the checkpoint is damaged")): "refused",
        raising(UserError("summary.json is damaged")): "REFUSED, NAMING ANOTHER",
        raising(KeyError("step")): "CRASH",
        printing("WARNING: checkpoint 12 is damaged", 2): "warned of",
        printing("WARNING: checkpoint 9 is damaged", 1): "WARNED OF ANOTHER",
        printing("as ever", 1): "harmless",
        printing("as ever", 2): "OTHER OUTPUT",
    }.items():
        found, _ = faults_flips.classify_outcome(mode, tmp_path, file, 1)
        assert found == outcome and (found in faults_flips.GOOD_OUTCOMES) == outcome.islower()


def test_one_bit_of_one_file_is_flipped(tmp_path):
    contents = {"a": b"1234", "deep/b": b"5678", "empty": b""}
    chance, flipped = random.Random(0), set()
    for _ in range(20):
        for name, content in contents.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        file = faults_flips.flip_bit(tmp_path, chance)
        bits = {name: int.from_bytes((tmp_path / name).read_bytes()) ^ int.from_bytes(content)
                for name, content in contents.items()}  # fmt: skip
        changed = [name for name, each in bits.items() if each]
        assert changed == [str(file.relative_to(tmp_path))] and bits[changed[0]].bit_count() == 1
        flipped.add(changed[0])
    assert flipped == {"a", "deep/b"}


def test_programs_that_lost_a_file_are_counted(tmp_path):
    import zlib

    folder = tmp_path / "programs" / "machine"
    folder.mkdir(parents=True)
    for name in ("whole", "alone", "cut"):
        content = zlib.compress(b"program" * 100)
        (folder / f"{name}-cache").write_bytes(content[:-5] if name == "cut" else content)
        if name != "alone":
            (folder / f"{name}-atime").write_bytes(b"12345678")
    assert faults.list_programs(tmp_path) == {"whole-cache", "cut-cache"} and faults.count_broken(tmp_path) == 2
