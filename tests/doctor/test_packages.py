import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as real_version

import pytest
from packaging.requirements import Requirement

from t3d.doctor import packages

TORCH = Requirement("torch>=2.6,<2.14")


@pytest.fixture
def installed(monkeypatch):
    """Says which releases are installed; the others are those that really are."""
    versions: dict[str, str | None] = {}

    def version(name: str) -> str:
        found = versions.get(name, "real")
        if found is None:
            raise PackageNotFoundError(name)
        return real_version(name) if found == "real" else found

    monkeypatch.setattr(packages, "version", version)
    return versions


@pytest.mark.parametrize(
    ("found", "level", "said"),
    [
        ("2.6.0", "ok", "2.6.0 (>=2.6,<2.14)"),
        ("2.13.1+cu130", "ok", "2.13.1+cu130 (>=2.6,<2.14)"),
        ("2.5.1+cpu", "error", "too old"),
        ("2.14.0", "warning", "newer than any that was tried"),
        (None, "error", "not installed"),
    ],
)
def test_a_release_is_held_against_what_is_asked_for(installed, found, level, said):
    installed["torch"] = found
    finding = packages.release(TORCH)
    assert (finding.level, finding.subject) == (level, "torch")
    assert said in finding.text
    assert (finding.cure == "") == (level == "ok")


def test_this_environment_has_what_t3d_asks_for():
    findings = list(packages.packages(trains=False))
    assert [finding.subject for finding in findings][:1] == ["python"]
    assert {"torch", "transformers", "accelerate", "deepspeed", "others"} <= {finding.subject for finding in findings}
    assert {finding.level for finding in findings} == {"ok"}


def test_only_what_is_wrong_of_the_other_packages_has_a_line(installed):
    installed["omegaconf"] = "2.3.0"
    named = {finding.subject: finding for finding in packages.packages(trains=False)}
    assert "others" not in named
    assert named["omegaconf"].level == "error"
    assert "2.3.0, too old" in named["omegaconf"].text


def test_t3d_itself_need_not_be_installed(monkeypatch):
    def unknown(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "requires", unknown)
    found = {finding.subject: finding.level for finding in packages.packages(trains=False)}
    assert found["t3d"] == "warning"
    assert found["torch"] == "ok"


@pytest.mark.parametrize("failure", ["raise ImportError('undefined symbol')", "import no_such_part", "1 / 0"])
def test_an_extension_that_cannot_load_is_named_with_its_cure(installed, monkeypatch, tmp_path, failure):
    (tmp_path / "flash_attn.py").write_text(failure)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    installed |= {"flash-attn": "2.8.3", "bitsandbytes": None}
    (finding,) = packages.extras(with_cuda=True)
    assert (finding.level, finding.subject) == ("warning", "flash-attn")
    assert "2.8.3 cannot be loaded: " in finding.text
    assert "--no-build-isolation" in finding.cure


def test_flash_attn_is_missed_on_gpus_only(installed):
    installed |= {"flash-attn": None, "bitsandbytes": None}
    assert list(packages.extras(with_cuda=False)) == []
    (finding,) = packages.extras(with_cuda=True)
    assert finding.level == "warning"


@pytest.mark.parametrize("trains", [True, False])
def test_a_deepspeed_that_cannot_load_is_an_error_for_training_alone(monkeypatch, trains):
    real = packages.why_not_loadable
    monkeypatch.setattr(packages, "why_not_loadable", lambda name: "OSError" if name == "deepspeed" else real(name))
    levels = {finding.subject: finding.level for finding in packages.packages(trains)}
    assert levels["deepspeed"] == ("error" if trains else "ok")
