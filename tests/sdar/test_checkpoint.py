import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from t3d.errors import CheckpointError
from t3d.sdar import SDARForCausalLM
from t3d.sdar.checkpoint import (
    chat_end_id,
    default_stop_ids,
    load_model,
    load_model_config,
    load_tokenizer,
    resolve_checkpoint,
    save_model,
)

TOKENIZER = Path(__file__).parents[3] / "shared" / "data" / "sdar-tokenizer"
needs_tokenizer = pytest.mark.skipif(not TOKENIZER.is_dir(), reason="needs shared/data/sdar-tokenizer")

REMOTE_CODE = """
from pathlib import Path
Path(__file__).with_name("EXECUTED").write_text("remote code ran")
from transformers import Qwen3Config, Qwen3ForCausalLM
class SDARConfig(Qwen3Config): model_type = "sdar"
class SDARForCausalLM(Qwen3ForCausalLM): config_class = SDARConfig
"""


def publish(model: SDARForCausalLM, folder: Path, shard_size: str = "5GB") -> Path:
    """Writes a model folder as SDAR's authors publish theirs: remote code, odd files, perhaps shards."""
    model.save_pretrained(folder, max_shard_size=shard_size)
    fields = json.loads((folder / "config.json").read_text())
    fields["auto_map"] = {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=3) + "\n\n")
    for name in ("configuration_sdar.py", "modeling_sdar.py"):
        (folder / name).write_text(REMOTE_CODE)
    (folder / "README.md").write_bytes(b"odd \xff bytes\r\n")
    return folder


@pytest.fixture
def published(build_tiny_model, tmp_path: Path) -> Path:
    return publish(build_tiny_model(seed=1), tmp_path / "published")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal_weights(left: SDARForCausalLM, right: SDARForCausalLM) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, tensor in left.state_dict().items():
        assert torch.equal(tensor, right.state_dict()[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", ["5GB", "10KB"])
def test_published_folders_load_without_running_their_code(
    build_tiny_model, tmp_path: Path, tied: bool, shard_size: str
) -> None:
    original = build_tiny_model(seed=1, tie_word_embeddings=tied)
    folder = publish(original, tmp_path / "model", shard_size)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard_size == "10KB")
    loaded = load_model(folder)
    assert_equal_weights(loaded, original)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert not loaded.training
    assert not (folder / "EXECUTED").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_type_unless_another_is_asked_for(build_tiny_model, tmp_path: Path, dtype) -> None:
    folder = publish(build_tiny_model().to(dtype), tmp_path / "model")
    assert load_model(folder).dtype == dtype
    assert load_model(folder, torch.float32).dtype == torch.float32


def test_random_initialisation_ignores_the_weights_and_repeats_with_the_seed(published: Path) -> None:
    for path in published.glob("*.safetensors"):
        path.unlink()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = load_model(published, random_init=True)
        torch.manual_seed(5)
        assert_equal_weights(first, load_model(published, random_init=True))
        assert not torch.equal(load_model(published, random_init=True).lm_head.weight, first.lm_head.weight)


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text()) | changes
        fields = {name: value for name, value in fields.items() if value != "REMOVE"}
        (folder / "config.json").write_text(json.dumps(fields))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


NORM = "model.layers.1.self_attn.q_norm.weight"
MISTAKES = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config no UTF-8": lambda folder: (folder / "config.json").write_bytes(b"\xff"),
    "config no object": lambda folder: (folder / "config.json").write_text("[]"),
    "another model type": edit_config(model_type="qwen3"),
    "no model type": edit_config(model_type="REMOVE"),
    "a model type that is no name": edit_config(model_type=["sdar"]),
    "block size a string": edit_config(block_size="4"),
    "mask token a bool": edit_config(mask_token_id=True),
    "no vocabulary size": edit_config(vocab_size="REMOVE"),
    "a sliding window": edit_config(use_sliding_window=True),
    "block size 0": edit_config(block_size=0),
    "mask token beyond the vocabulary": edit_config(mask_token_id=48),
    "hidden size a string": edit_config(hidden_size="many"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights cut short": cut_short,
    "weights no safetensors": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 4096),
    "a missing key": edit_weights(lambda weights: weights.pop(NORM)),
    "a key of another shape": edit_weights(lambda weights: weights.update({NORM: torch.ones(9)})),
    "configured wider than the weights": edit_config(hidden_size=64),
    "configured deeper than the weights": edit_config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_folder_is_one_error_that_names_it(published: Path, mistake: str) -> None:
    MISTAKES[mistake](published)
    with pytest.raises(CheckpointError) as caught:
        load_model(published)
    assert str(published) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_one_error(build_tiny_model, tmp_path: Path) -> None:
    folder = publish(build_tiny_model(), tmp_path / "model", "10KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=str(folder)):
        load_model(folder)


def test_messages_name_what_is_missing(published: Path) -> None:
    MISTAKES["a missing key"](published)
    with pytest.raises(CheckpointError, match=NORM.replace(".", r"\.")):
        load_model(published)
    edit_config(model_type="llama")(published)
    with pytest.raises(CheckpointError, match='expected model_type "sdar" or "sdar_moe", found llama'):
        load_model_config(published)


def test_resolving_takes_folders_and_refuses_what_is_neither_folder_nor_id(published: Path) -> None:
    assert resolve_checkpoint(str(published)) == published
    with pytest.raises(CheckpointError, match="expected a model folder or a hub id"):
        resolve_checkpoint(str(published / "missing" / "deeper"))


def test_an_id_that_the_hub_cannot_give_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, allow_patterns: str | None) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr("t3d.sdar.checkpoint.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"nobody/nothing: expected .* neither \(no route to host"):
        resolve_checkpoint("nobody/nothing")


# Saving


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_folders_differ_from_their_source_in_the_weights_alone(
    build_tiny_model, tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    source = publish(build_tiny_model(seed=1, tie_word_embeddings=tied).to(dtype), tmp_path / "source", "10KB")
    (source / "generation_config.json").write_text('{"eos_token_id":   [1, 2]}')
    (source / "pytorch_model.bin").write_bytes(b"weights of an older format")
    trained = build_tiny_model(seed=2, tie_word_embeddings=tied)
    target = tmp_path / "deep" / "target"
    save_model(trained, trained.state_dict(), source, target)

    carried = {name: data for name, data in files(source).items() if "model" not in name or name.endswith(".py")}
    saved = files(target)
    assert {name: saved[name] for name in carried} == carried
    assert set(saved) - set(carried) == {"model.safetensors"}, "old shards, indices and other formats stay behind"
    loaded = load_model(target)
    assert loaded.dtype == dtype
    assert_equal_weights(loaded, trained.to(dtype))
    assert not list(tmp_path.rglob("EXECUTED"))
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_saving_adds_no_file_that_the_source_lacks(published: Path, build_tiny_model, tmp_path: Path) -> None:
    (published / "generation_config.json").unlink(missing_ok=True)
    save_model(build_tiny_model(), build_tiny_model().state_dict(), published, tmp_path / "target")
    assert set(files(tmp_path / "target")) == set(files(published))


def test_saving_replaces_an_earlier_folder_whole(published: Path, build_tiny_model, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "stale.txt").write_text("from before")
    trained = build_tiny_model(seed=2)
    save_model(trained, trained.state_dict(), published, target)
    assert not (target / "stale.txt").exists()
    assert_equal_weights(load_model(target), trained)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_nothing_behind_and_the_old_folder_whole(
    published: Path, build_tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    trained = build_tiny_model(seed=2)
    target = tmp_path / "saves" / "target"
    save_model(trained, trained.state_dict(), published, target)
    before = files(target)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(shutil, "copyfile", fail)
    for path in (target, target.with_name("fresh")):
        with pytest.raises(type(error)):
            save_model(build_tiny_model(seed=3), build_tiny_model(seed=3).state_dict(), published, path)
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert files(target) == before


@torch.no_grad()
def test_saved_folders_load_with_the_auto_class(published: Path, build_tiny_model, tmp_path: Path) -> None:
    trained = build_tiny_model(seed=2)
    save_model(trained, trained.state_dict(), published, tmp_path / "target")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert type(loaded) is SDARForCausalLM
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded(ids).logits, trained(ids).logits)
    assert not list(tmp_path.rglob("EXECUTED"))


@pytest.mark.parametrize("base", [10_000.0, 1_000_000.0])
def test_rope_theta_survives_loading_and_saving(build_tiny_model, tmp_path: Path, base: float) -> None:
    folder = publish(build_tiny_model(rope_theta=base), tmp_path / "model")
    # As the authors publish it: the base at the top level, nowhere else.
    edit_config(rope_theta=base, rope_parameters="REMOVE")(folder)
    loaded = load_model(folder)
    assert loaded.config.rotary_base == base
    torch.testing.assert_close(loaded.model.rotary_emb.inv_freq, base ** (-torch.arange(0, 8, 2) / 8))
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["rope_theta"] == base


# Tokenizer


def test_a_folder_without_tokenizer_is_one_error(published: Path) -> None:
    with pytest.raises(CheckpointError, match=str(published)):
        load_tokenizer(published)


@needs_tokenizer
def test_sdars_stop_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    assert chat_end_id(tokenizer) == 151645
    assert 151645 in default_stop_ids(tmp_path, tokenizer)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151643, 7]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 8}')
    assert set(default_stop_ids(tmp_path, tokenizer)) >= {7, 8, 151643, 151645}
    (tmp_path / "config.json").write_text('{"eos_token_id": null}')
    assert 8 not in default_stop_ids(tmp_path, tokenizer)


@needs_tokenizer
def test_unreadable_generation_settings_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        default_stop_ids(tmp_path, load_tokenizer(TOKENIZER))


def test_heads_that_processes_cannot_share_are_named(checkpoint):
    with pytest.raises(CheckpointError, match="expected key/value heads that 3 processes can share, found 2"):
        load_model(checkpoint, num_parts=3)
