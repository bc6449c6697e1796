"""The page of a run: what stands in its files stands in it, and nothing else."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from configs import digits_resnet
from tests.report import browser, made
from tl_jax import training
from tl_jax.config import recipe
from tl_jax.learner import Learner
from tl_jax.metrics import intervals
from tl_jax.report import plots
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
ALWAYS = ["Result", "Setup", "Curves", "By class", "Confusions", "Most confident mistakes", "Calibration", "Network",
          "Time and memory"]  # fmt: skip


def page_of(folder) -> str:
    """Return the page that is made of a folder."""
    return Learner(recipe.get_config(), folder).report().read_text()


def titles(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def cells(text: str, title: str) -> list[list[str]]:
    """Return the rows of the tables in a section."""
    (section,) = re.findall(rf"<h2>{title}</h2>(.*?)</section>", text, re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.S)
    return [re.findall(r"<t[dh][^>]*>(?:<span[^>]*>)?(.*?)(?:</span>)?</t[dh]>", row) for row in rows]


def test_the_figures_are_those_of_the_files(tmp_path, capsys):
    text = page_of(made.write(tmp_path / "run"))
    assert capsys.readouterr().out == f"report: {tmp_path / 'run' / 'report.html'}\n"
    assert titles(text) == ALWAYS
    low, high = intervals.wilson_interval(52, 60)
    assert f"86.7 % ({100 * low:.1f} to {100 * high:.1f})" in text and "Wilson&#39;s score over 60 examples" in text
    assert ["accuracy", "0.8667", f"{low:.4f} to {high:.4f}"] in cells(text, "Result")
    assert ["loss", "0.4321", ""] in cells(text, "Result")
    assert ["optim.lr", "0.5", "0.001"] in cells(text, "Setup")
    for said in ("net.safetensors, SHA-256 0123456789abcdef", "animals", "30 train, 60 test", "abc1234", "jax 0.9.9",
                 "2 cores, x86_64, Linux", "CC-BY 4.0"):  # fmt: skip
        assert said in text
    assert ["dog", "0.833", "0.750", "0.789", "20"] in cells(text, "By class")  # 15 of 18, 15 of 20
    assert cells(text, "Confusions")[2] == ["dog", "3", "15", "2"]
    assert ["compile", "2.2"] in cells(text, "Time and memory") and "512 MiB" in text
    assert "calibration error 0.0625" in text and "98.7%" in text
    assert "79,000  trained from phase all" in text and "1,200  trained<" in text


def test_smoke_runs_and_temperatures_at_their_bound_are_named(tmp_path):
    plain = page_of(made.write(tmp_path / "run"))
    assert "mean nothing" not in plain and "limit" not in plain
    named = {**made.summary(), "smoke": True, "calibration": {"temperature": 19.9999}}
    text = page_of(made.write(tmp_path / "smoke", summary=named))
    assert "Smoke run: it checks that every part works, and its metrics mean nothing" in text.partition("<h2>Setup")[0]
    assert "The fitted temperature is at its upper limit: probabilities hardly predict" in text


def test_text_is_text_and_nothing_is_asked_for(tmp_path):
    text = page_of(made.write(tmp_path / "run"))
    assert "&lt;b&gt;cat&lt;/b&gt;" in text and "<b>cat" not in text and "a &amp; b" in text
    assert "the &lt;i&gt;test&lt;/i&gt; part" in text and "<i>" not in text
    assert not re.search(r"https?://|//|url\((?!#)|<script|@import", re.sub(r"base64,[^\"]*", "", text))
    assert str(tmp_path) not in text and "/somewhere/else" not in text


@pytest.mark.parametrize(
    "lacking,titled",
    [
        ({"metrics": None}, {"Curves"}),
        ({"network": None}, {"Network"}),
        ({"test_details": None}, {"By class", "Confusions", "Most confident mistakes", "Calibration"}),
        ({"test_details": made.details(mistakes=None)}, {"Most confident mistakes"}),
        ({"test_details": made.details(calibration=None)}, {"Calibration"}),
        ({"test_details": made.details(confusion=None)}, {"By class", "Confusions"}),
        ({"summary": {**made.summary(), "seconds": {}}}, {"Time and memory"}),
    ],
    ids=lambda value: "",
)
def test_a_section_is_there_exactly_when_its_data_are(tmp_path, lacking, titled):
    text = page_of(made.write(tmp_path / "run", **lacking))
    assert titles(text) == [title for title in ALWAYS if title not in titled]


def test_pictures_that_were_drawn_are_shown(tmp_path):
    folder = made.write(tmp_path / "run")
    shown = {"preview.png": "Augmentation", "find_lr.png": "Learning rate", "explain.png": "Grad-CAM",
             "roc.png": "ROC", "episode.gif": "Episode"}  # fmt: skip
    for name in shown:
        Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(folder / name)
    text = page_of(folder)
    assert set(titles(text)) == {*ALWAYS, *shown.values()} and "data:image/gif;base64,R0lG" in text


def test_boxes_two_classes_and_texts(tmp_path):
    found = {"class": "dog", "box": [0.25, 0.5, 0.75, 1.0], "score": 0.875}
    detection = {
        "picture": made.picture(),
        "aspect": 2.0,
        "boxes": [found],
        "labels": [{"class": "dog", "box": [0, 0, 1, 1]}],
    }
    boxes = {"classes": made.CLASSES, "least_score": 0.5, "detections": [detection]}
    text = page_of(made.write(tmp_path / "boxes", test_details=boxes))
    assert "Boxes" in titles(text) and '<rect class="s1" x="80.0" y="80.0" width="160.0" height="80.0">' in text
    assert '<text class="tag" text-anchor="start" x="83.0"' in text
    found["box"] = [0.8, 0.5, 0.95, 1.0]  # the tag would leave the picture
    text = page_of(made.write(tmp_path / "right", test_details=boxes))
    assert '<text class="tag" text-anchor="end" x="317.0"' in text
    curve = {"positive": "dog", "fpr": [0, 0.5, 1], "tpr": [0, 1, 1], "auc": 0.75}
    said = [{"label": "dog", "prediction": "a & b", "probability": 0.9, "text": "so <u>good"}]
    text = page_of(made.write(tmp_path / "texts", test_details=made.details(roc=curve, mistakes=said)))
    assert "ROC" in titles(text) and "area 0.7500" in text and "so &lt;u&gt;good" in text
    tags = [{"words": [["x", "O", "B-Q"], ["y", "O", "O"]], "wrong": 1}]
    text = page_of(made.write(tmp_path / "tags", test_details=made.details(mistakes=None, sentences=tags)))
    assert "<mark>x</mark> <small>B-Q, not O</small> y" in text


def test_seeds_and_arms_are_compared(tmp_path):
    values = {"ours": (0.9, 0.8, 0.85), "scratch": (0.7, 0.7, 0.6)}
    for arm, row in values.items():
        for seed, value in enumerate(row):
            made.write(tmp_path / arm / f"seed{seed}", seed, value)
    (tmp_path / "config.json").write_text(json.dumps({"name": "made"}))
    whole = {**made.summary(), **plots.summarize_comparison(tmp_path, list(values), [0, 1, 2])}
    (tmp_path / "summary.json").write_text(json.dumps(whole))
    text = page_of(tmp_path)
    assert titles(text) == ALWAYS
    half = 100 * plots.t_interval(values["ours"])[1]
    both = np.hypot(half, 100 * (intervals.wilson_interval(52, 60)[1] - intervals.wilson_interval(52, 60)[0]) / 2)
    ends = f"{85 - half:.1f} to {85 + half:.1f}"
    assert ["ours", "85.0", f"{half:.1f}", ends, f"{both:.1f}", "90.0", "80.0", "85.0"] in cells(text, "Result")
    assert f"over seeds, ± {both:.1f} with test-set sampling" in text
    assert "+18.3 ± 19.0 points" in text and "ours over scratch" in text
    assert ["loss", "0.4321 ± 0.0000", "0.4321 ± 0.0000"] in cells(text, "Result")
    assert cells(text, "Confusions")[2] == ["dog", "9", "45", "6"] and "3 seeds together" in text
    (tmp_path / "ours" / "seed1" / "metrics.jsonl").write_text('{"step": 10, "split": "train", "loss": 0.5}\n{"ste')
    text = page_of(tmp_path)
    assert "metrics.jsonl is damaged in line 2" in text and titles(text) == [*ALWAYS, "Not shown"]


def test_damaged_files_are_said(tmp_path):
    folder = made.write(tmp_path / "run", test_details={**made.details(), "confusion": [["x"]]}, network={"parts": 3})
    text = page_of(folder)
    assert titles(text)[-1] == "Not shown" and "Confusions" not in titles(text) and "Network" not in titles(text)
    assert "Network: unexpected data" in text and "Confusions: unexpected data" in text
    (folder / "test_details.json").write_text('{"classes": [')
    assert "test_details.json is damaged" in page_of(folder)
    (folder / "summary.json").write_text("[1]")
    with pytest.raises(UserError, match=r"summary\.json is damaged \(no JSON object\); delete it, and run"):
        page_of(folder)
    with pytest.raises(UserError, match="no results in .*; train first"):
        Learner(recipe.get_config(), tmp_path / "nowhere").report()


def test_an_unfinished_run_has_its_curves(tmp_path):
    text = page_of(made.write(tmp_path / "run", summary=None, test_details=None, network=None))
    assert titles(text) == ["Result", "Setup", "Curves"] and "Not finished" in text


def test_wilson_by_hand():
    assert intervals.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert intervals.wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_resampled_scores_lie_around_those_of_scikit_learn():
    from sklearn.metrics import f1_score, matthews_corrcoef

    rows = np.asarray([[i, k] for i in range(3) for k in range(3) for _ in range(made.COUNTS[i][k])])
    measured = {"f1": f1_score(*rows.T, average="macro"), "matthews": matthews_corrcoef(*rows.T)}
    found = intervals.run_intervals({"metrics": measured}, made.details())
    rng = np.random.default_rng(1)
    for name, score in (
        ("f1", lambda r: f1_score(*r.T, average="macro")),
        ("matthews", lambda r: matthews_corrcoef(*r.T)),
    ):
        each = [score(rows[rng.integers(0, 60, 60)]) for _ in range(300)]
        assert found[name][:2] == pytest.approx(np.quantile(each, (0.025, 0.975)), abs=0.03)


def test_a_class_that_occurs_nowhere_has_no_scores(tmp_path):
    counts = [[0, 0, 9], [0, 1, 1], [1, 1, 5]]
    text = page_of(made.write(tmp_path / "run", test_details=made.details(confusion=counts)))
    assert cells(text, "By class")[-1] == ["a &amp; b", "", "", "", "0"]
    from sklearn.metrics import f1_score

    rows = np.asarray([[i, k] for i, k, n in counts for _ in range(n)])
    measured = {"f1": f1_score(*rows.T, average="macro")}
    low, high, _ = intervals.run_intervals({"metrics": measured}, made.details(confusion=counts))["f1"]
    assert low < measured["f1"] < high


@pytest.mark.parametrize("width", [375, 1200])
def test_a_browser_finds_nothing_wrong(tmp_path, width):
    folder = made.write(tmp_path / "run")
    Image.fromarray(np.full((40, 2000, 3), 90, np.uint8)).save(folder / "explain.png")
    page_of(folder)
    seen = browser.seen(folder / "report.html", width, tmp_path)
    assert seen.width == width and seen.pictures == 2 and not seen.broken
    assert not seen.console and not seen.asked


def test_the_browser_sees_what_is_wrong(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<div style="width: 500px">x</div><img src="http://localhost:1/a.png"><svg><path d="Mx"/></svg>')
    seen = browser.seen(page, 375, tmp_path)
    assert seen.width > 375 and seen.broken == 1 and seen.asked == ["http://localhost:1/a.png"] and seen.console


@pytest.mark.slow
def test_a_run_leaves_its_page(tmp_path, capsys):
    training.train(digits_resnet.get_config("smoke"), tmp_path)
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert titles(text) == ALWAYS
    member = json.loads((tmp_path / "pretrained" / "seed0" / "summary.json").read_text())
    said = json.loads((tmp_path / "pretrained" / "seed0" / "test_details.json").read_text())
    assert sum(n for i, k, n in said["confusion"] if i == k) == round(64 * member["metrics"]["accuracy"])
    assert said["examples"] == 64 and len(said["mistakes"]) == min(12, 64 - round(64 * member["metrics"]["accuracy"]))
    drawn = json.loads((tmp_path / "pretrained" / "seed0" / "network.json").read_text())
    assert sum(part["parameters"] for part in drawn["parts"]) == sum(member["parameters"].values())


def test_a_weights_file_of_the_user_is_called_that(tmp_path):
    facts = {**made.FACTS, "spec": {"licence": ""}}
    config = {"name": "made", "seed": 0, "init": {"source": "keras", "path": "mine.h5"}}
    text = page_of(made.write(tmp_path / "run", facts=facts, config=config))
    assert "own file, SHA-256 0123456789abcdef..., licence unknown" in text
