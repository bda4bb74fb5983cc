"""The card that training writes beside the weights: what it says, and that the hub can read it."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from t3d.cards.model import Base, Run, base_of, model_card, pushed_card
from t3d.cards.results import BEGIN, END, CardResult, with_results
from t3d.config import TrainConfig, load_config

ROOT = Path(__file__).parents[2]
RESULT = CardResult("MATH500", "HuggingFaceH4/MATH-500", "block 4, 1 step", 500, 0.4567, 0.0223, 4.0, 3.6)


def front_matter(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_training_writes_a_card_of_the_run_beside_the_weights(trained):
    text = (trained / "ckpt/optimized/README.md").read_text()
    data = front_matter(text)
    assert data["base_model"] == "JetLM/SDAR-4B-Chat"
    assert (data["license"], data["pipeline_tag"], data["library_name"]) == (
        "apache-2.0",
        "text-generation",
        "transformers",
    )
    assert {"t3d", "objective:sft"} <= set(data["tags"])
    assert "model-index" not in data
    for line in (
        "# SDAR-4B-Chat, trained with t3d (sft)",
        "| base model | JetLM/SDAR-4B-Chat |",
        "| training data | Worked.json |",
        "| training samples | 4 |",
        "| global step | 2 of 2 |",
        "| samples per step | 4 |",
        "| objective | sft |",
        "| learning rate | 0.002 |",
        "No results are recorded.",
        "That of the base model: apache-2.0.",
    ):
        assert line in text.splitlines()
    assert 'from_pretrained("ORGANISATION/NAME", trust_remote_code=True)' in text
    assert not {"alpha", "states", "weight of the path loss"} & {
        line.split(" | ")[0].strip("| ") for line in text.splitlines()
    }
    assert str(trained) not in text
    assert "The base's own card" not in text
    assert "| global step | 1 of 2 |" in (trained / "ckpt/step-000001/README.md").read_text()


def test_a_card_tells_the_settings_that_its_objective_heeds(tmp_path):
    config = asdict(
        load_config(TrainConfig, ["model.pretrained_model=B", "dataset.optimization_data=a/D.json"], "", "")
    )
    lines = model_card(Base("B"), Run(config, 256), tmp_path).splitlines()
    for line in (
        *("| alpha | 0.5 |", "| states | trace |", "| weight of the path loss | 0.2 |", "| global step | 256 |"),
        *("| likelihood ratios of | sample |", "| fakes | argmax |", "| steps per round | 10 |"),
    ):
        assert line in lines
    config["training"]["lambda_path"] = 0
    text = model_card(Base("B"), Run(config), tmp_path)
    assert "path loss" not in text
    assert "certainty" not in text
    config["training"]["objective"] = "dparallel"
    assert "| weight of the certainty term | 2 |" in model_card(Base("B"), Run(config), tmp_path)
    config["training"] |= {"objective": "near_far", "lambda_path": None, "ranking_weight": 0.5}
    lines = model_card(Base("B"), Run(config), tmp_path).splitlines()
    for line in (
        "| weight of soft targets | 1 |",
        "| weight of the ranking term | 0.5 |",
        "| tokens per coarse step | 4 |",
        "| steps per round | 10 |",
    ):
        assert line in lines


def test_a_model_without_a_run_claims_none(tmp_path):
    text = model_card(base_of(str(tmp_path), tmp_path), Run({}), tmp_path)
    assert front_matter(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert f"\n# {tmp_path.name}\n" in text
    assert "trained from" not in text
    assert "## How it was made\n\nNot recorded." in text
    assert "## Licence\n\nNot stated." in text


def test_a_base_without_licence_and_remote_code_is_not_given_any(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    text = model_card(base_of(str(tmp_path), tmp_path), Run({"training": {"objective": "t3d"}}), tmp_path)
    assert front_matter(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert f"That of the base model, {tmp_path.name}; its folder does not say which." in text
    assert "trust_remote_code" not in text
    assert str(tmp_path.parent) not in text


def test_random_weights_have_no_base_model(tmp_path):
    base = Base("SDAR-4B-Chat", "JetLM/SDAR-4B-Chat", {"license": "mit"})
    text = model_card(base, Run({"model": {"random_init": True}}), tmp_path)
    assert not {"base_model", "license"} & front_matter(text).keys()
    assert "from random weights in the shape of" in text


def test_a_base_card_that_cannot_be_read_says_nothing(tmp_path, caplog):
    (tmp_path / "README.md").write_text("---\n[broken\n---\n")
    assert base_of(str(tmp_path), tmp_path).license == {}
    assert "the licence is not known" in caplog.text


def test_results_stand_in_a_table_and_in_the_model_index(tmp_path):
    text = model_card(Base("B"), Run({}), tmp_path, [RESULT])
    assert "| MATH500 | block 4, 1 step | 45.67 | 2.23 | 500 | 4.00 | 3.60 |" in text
    [entry] = front_matter(text)["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "MATH500", "type": "HuggingFaceH4/MATH-500"}
    [metric] = entry["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 45.67)
    assert "n = 500, s.e. 2.23" in metric["name"]


def test_pushing_replaces_the_place_and_the_results_and_leaves_what_people_wrote(tmp_path):
    card = ModelCard(
        model_card(Base("B"), Run({}), tmp_path, [RESULT]).replace("## Cite", "## My notes\n\nMine.\n\n## Cite")
    )
    text = pushed_card(card, "me/model", [RESULT, RESULT], "mit")
    assert text.count("| MATH500 |") == 2
    assert text.count(BEGIN) == text.count(END) == 1
    assert "## My notes\n\nMine." in text
    assert "ORGANISATION/NAME" not in text
    assert 'from_pretrained("me/model")' in text
    data = front_matter(text)
    assert data["license"] == "mit"
    assert data["model-index"][0]["name"] == "model"


def test_without_new_results_the_old_ones_stay(tmp_path):
    card = ModelCard(model_card(Base("B"), Run({}), tmp_path, [RESULT]))
    text = pushed_card(card, "me/model", [], None)
    assert "| MATH500 | block 4, 1 step | 45.67 |" in text
    assert front_matter(text)["model-index"][0]["results"]


def test_results_go_behind_a_card_without_a_place_for_them():
    assert with_results("# Mine", [RESULT]).startswith("# Mine\n\n## Results\n\n<!-- results -->\n| data set |")


@pytest.mark.parametrize("field", ["license", "version"])
def test_the_citation_says_what_the_package_says(field):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    package = (ROOT / "pyproject.toml").read_text()
    said = {"license": 'license = { text = "%s" }', "version": 'version = "%s"'}[field]
    assert said % citation[field] in package
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["authors"][0] == {"given-names": "Tunyu", "family-names": "Zhang"}
    assert len(paper["authors"]) == 12
    assert paper["identifiers"][0]["value"] == "arXiv:2602.12262"
