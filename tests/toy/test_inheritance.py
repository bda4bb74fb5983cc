from pathlib import Path

import pytest
import torch

from t3d.sdar.checkpoint import load_model, load_model_config, load_tokenizer
from t3d.storage.paths import TOY_TEACHER, model_path
from t3d.toy.base import save_shape
from t3d.toy.inheritance import EMBEDDINGS, inherit
from t3d.toy.problems import generate
from t3d.toy.tokenizer import train_tokenizer

TEACHER = model_path(TOY_TEACHER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model for more names, with the built-in teacher's weights."""
    folder = tmp_path_factory.mktemp("more_names")
    save_shape(folder, train_tokenizer(generate("train", extra_names=50), num_problems=300))
    inherit(TEACHER, folder)
    return folder


def test_all_weights_but_the_embeddings_are_the_others(folder):
    ours, others = (load_model(each).state_dict() for each in (folder, TEACHER))
    for name in others.keys() - {EMBEDDINGS, "lm_head.weight"}:
        assert torch.equal(ours[name], others[name]), name


def test_a_known_word_keeps_its_embedding_and_a_new_one_is_the_mean_of_its_pieces(folder):
    ours, others = (load_model(each).state_dict()[EMBEDDINGS] for each in (folder, TEACHER))
    new, old = load_tokenizer(folder), load_tokenizer(TEACHER)
    known, ids = old.get_vocab(), new.get_vocab()
    assert load_model_config(folder).vocab_size == len(ours) == len(new)
    shared = sorted(known.keys() & ids.keys())
    assert torch.equal(ours[[ids[token] for token in shared]], others[[known[token] for token in shared]])
    assert {new.mask_token, new.eos_token} <= set(shared)
    added = sorted(ids.keys() - known.keys())
    assert added
    for token in added:
        pieces = old(new.decode([ids[token]]))["input_ids"]
        torch.testing.assert_close(ours[ids[token]], others[pieces].mean(dim=0))
