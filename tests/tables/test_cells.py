import json
import shutil
from pathlib import Path

import pytest

from t3d.errors import ConfigError, DataError, UserError
from t3d.evaluation.run import evaluate
from t3d.tables import cells as cells_module
from t3d.tables.cells import Cell, measure, plan


@pytest.fixture
def counted(monkeypatch):
    """The configurations that were evaluated, in order."""
    calls = []

    def counting(config, workers):
        calls.append(config)
        return evaluate(config, workers)

    monkeypatch.setattr(cells_module, "evaluate", counting)
    return calls


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A checkpoint of the test's own."""
    return Path(shutil.copytree(checkpoint, tmp_path / "own"))


@pytest.fixture
def one_cell(settings, copied):
    """Plans a table of a single cell."""

    def build(*overrides: str) -> Cell:
        (cell,) = plan(
            settings(f"table.checkpoints={{m: {copied}}}", "table.decodings=[[4, 2]]", "evaluation.limit=3", *overrides)
        )
        return cell

    return build


class TestPlan:
    def test_the_grid_is_every_model_on_every_data_set_by_every_decoding(self, settings, checkpoint, dataset, tmp_path):
        other = str(shutil.copy(dataset, tmp_path / "Other.json"))
        cells = plan(
            settings(
                f"table.checkpoints={{a: {checkpoint}, b: {checkpoint}}}",
                f"table.datasets=[{dataset}, {other}]",
                "table.decodings=[[4, 2], [8, 3]]",
                "table.strategies=[sequential, low_confidence_static]",
                "table.columns=[strategy, tokps]",
            )
        )
        assert len(cells) == 2 * 2 * 2 * 2
        last = cells[-1]
        assert last.place == {
            "base": None,
            "model": "b",
            "dataset": "Other",
            "strategy": "low_confidence_static",
            "block_size": 8,
            "denoising_steps": 3,
            "tokps": "2.67",
        }
        assert (last.config.rollout.block_size, last.config.rollout.denoising_steps_per_block) == (8, 3)
        assert (last.config.evaluation.eval_dataset, last.config.evaluation.checkpoint_path) == (other, str(checkpoint))

    def test_base_and_data_type_stand_in_for_a_checkpoints_folder(self, settings, checkpoint, dataset, tmp_path):
        for base in ("small", "large"):
            shutil.copytree(checkpoint, tmp_path / base / "math" / "t3d")
        cells = plan(
            settings(
                f"table.checkpoints={{t3d: '{tmp_path}/{{base}}/{{data_type}}/t3d'}}",
                "table.bases=[small, large]",
                "table.sections=[base]",
                "table.decodings=[[4, 2]]",
            )
        )
        assert [cell.config.evaluation.checkpoint_path for cell in cells] == [
            f"{tmp_path}/{base}/math/t3d" for base in ("small", "large")
        ]

    def test_a_known_data_set_brings_its_kind_of_problem(self, settings, checkpoint, tmp_path):
        path = tmp_path / "MBPP.json"
        path.write_text(
            json.dumps(
                [{"question": "?", "test_method": "function", "test_list": ["assert f()"], "test_time_limit": 1}]
            )
        )
        (cell,) = plan(
            settings(f"table.checkpoints={{m: {checkpoint}}}", f"table.datasets=[{path}]", "table.decodings=[[4, 2]]")
        )
        assert cell.config.evaluation.data_type == "code"

    def test_missing_checkpoints_are_all_named_before_anything_is_evaluated(self, settings, checkpoint, counted):
        config = settings(
            f"table.checkpoints={{here: {checkpoint}, SFT: no/where/sft, T3D: no/where/t3d}}",
            "table.decodings=[[4, 2], [8, 2]]",
        )
        with pytest.raises(UserError) as caught:
            plan(config)
        assert caught.value.where == "table.checkpoints.SFT, table.checkpoints.T3D"
        assert caught.value.found == "no/where/sft (no such folder); no/where/t3d (no such folder)"
        assert "table.skip_missing=true" in str(caught.value)
        assert counted == []

    def test_missing_checkpoints_may_be_skipped(self, settings, checkpoint, caplog):
        config = settings(
            f"table.checkpoints={{here: {checkpoint}, SFT: no/where/sft}}",
            "table.decodings=[[4, 2]]",
            "table.skip_missing=true",
        )
        assert [cell.is_missing for cell in plan(config)] == [False, True]
        assert "left empty: no/where/sft (no such folder)" in caplog.text
        assert measure(plan(config)[1], Path("unused")).results is None

    def test_a_checkpoint_of_another_kind_counts_as_missing(self, settings, copied):
        (copied / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(UserError, match=r"table\.checkpoints\.m: .*\(llama\)"):
            plan(settings(f"table.checkpoints={{m: {copied}}}", "table.decodings=[[4, 2]]"))

    def test_a_data_set_that_cannot_be_read_is_named_first(self, settings, checkpoint, dataset):
        config = settings(
            f"table.checkpoints={{m: {checkpoint}}}",
            f"table.datasets=[{dataset}, no/such/file]",
            "table.decodings=[[4, 2]]",
        )
        with pytest.raises(DataError, match="no/such/file"):
            plan(config)

    def test_cells_that_share_a_place_are_refused(self, settings, checkpoint):
        grid = [f"table.checkpoints={{a: {checkpoint}, b: {checkpoint}}}", "table.decodings=[[4, 2], [8, 2]]"]
        with pytest.raises(ConfigError, match="a place of its own, found model, tokps, dataset"):
            plan(
                settings(*grid, "table.decodings=[[4,2],[8,4]]", "table.rows=[model]", "table.columns=[tokps, dataset]")
            )
        with pytest.raises(ConfigError, match="a place of its own"):
            plan(settings(*grid, "table.decodings=[[4, 2], [4, 2]]"))

    def test_machines_do_not_share_a_table(self, settings, checkpoint):
        with pytest.raises(ConfigError, match=r"evaluation\.num_node"):
            plan(
                settings(
                    f"table.checkpoints={{m: {checkpoint}}}",
                    "table.decodings=[[4, 2]]",
                    "evaluation.num_node=2",
                )
            )


class TestMeasure:
    def test_a_finished_cell_is_not_evaluated_again(self, one_cell, counted, tmp_path):
        first = measure(one_cell(), tmp_path)
        assert first == measure(one_cell(), tmp_path)
        assert len(counted) == 1
        assert first.results is not None
        assert first.outcomes is not None
        assert len(first.outcomes.graded) == first.results.metrics.n == 3

    def test_other_weights_at_the_same_path_are_another_cell(
        self, one_cell, counted, copied, tmp_path, build_tiny_model
    ):
        before = measure(one_cell(), tmp_path)
        weights = copied / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        after = measure(one_cell(), tmp_path)
        assert len(counted) == 2
        assert (before.path, before.model) != (after.path, after.model)

    def test_weights_that_change_meanwhile_are_no_cell(self, one_cell, copied, tmp_path, monkeypatch):
        def training_goes_on(config, workers):
            evaluation = evaluate(config, workers)
            (copied / "model.safetensors").write_bytes(b"other weights")
            return evaluation

        monkeypatch.setattr(cells_module, "evaluate", training_goes_on)
        with pytest.raises(UserError, match="the same weights from beginning to end"):
            measure(one_cell(), tmp_path)
        assert not list(tmp_path.glob("cells/*/cell.json"))

    def test_data_sets_of_one_name_in_two_folders_are_two_cells(self, settings, copied, dataset, counted, tmp_path):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        other = folder / dataset.name
        other.write_text(json.dumps(json.loads(dataset.read_text())[5:]))
        config = settings(
            f"table.checkpoints={{m: {copied}}}", f"table.datasets=[{dataset}, {other}]", "table.decodings=[[4, 2]]"
        )
        runs = [measure(cell, tmp_path) for cell in plan(config)]
        assert [run.results.metrics.n for run in runs if run.results] == [10, 5]
        assert [run.place["dataset"] for run in runs] == [str(dataset), str(other)]
        assert len({run.path for run in runs}) == 2

    def test_the_same_content_under_other_names_is_the_same_cell(self, settings, copied, checkpoint, counted, tmp_path):
        for model in (copied, checkpoint):
            config = settings(
                f"table.checkpoints={{{model.name}: {model}}}",
                "table.decodings=[[4, 2]]",
                f"table.name={model.name}",
                "rollout.max_active=5",
            )
            (cell,) = plan(config)
            run = measure(cell, tmp_path)
            assert run.place["model"] == model.name
        assert len(counted) == 1

    @pytest.mark.parametrize(
        "override",
        [
            "rollout.seed=1",
            "rollout.temperature=0.2",
            "execute.timeout_s=3",
            "evaluation.limit=2",
            "rollout.max_token=9",
        ],
    )
    def test_other_settings_are_other_cells(self, one_cell, counted, tmp_path, override):
        measure(one_cell(), tmp_path)
        measure(one_cell(override), tmp_path)
        assert len(counted) == 2

    def test_speed_settings_matter_where_times_are_shown(self, one_cell, counted, tmp_path):
        for overrides in (["rollout.max_active=3"], ["rollout.max_active=4"], ["execute.num_workers=1"]):
            measure(one_cell(*overrides), tmp_path)
        assert len(counted) == 1
        for size in (3, 4, 4):
            measure(one_cell(f"rollout.max_active={size}", "table.figures=[acc, latency_s]"), tmp_path)
        assert len(counted) == 3

    def test_another_version_is_another_cell(self, one_cell, counted, tmp_path, monkeypatch):
        measure(one_cell(), tmp_path)
        monkeypatch.setattr(cells_module, "versions", lambda: {"t3d": "of tomorrow"})
        measure(one_cell(), tmp_path)
        assert len(counted) == 2

    def test_a_file_that_is_no_cell_is_named(self, one_cell, tmp_path):
        run = measure(one_cell(), tmp_path)
        assert run.path is not None
        run.path.write_text("{}")
        with pytest.raises(DataError, match=r"cell\.json: expected a cell of a table"):
            measure(one_cell(), tmp_path)

    def test_cells_hold_no_table_of_their_own(self, one_cell, tmp_path):
        run = measure(one_cell(), tmp_path)
        assert run.results is not None
        assert run.results.config["table"]["checkpoints"] == {}
