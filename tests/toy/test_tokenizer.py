import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from t3d.prompts import build_prompt
from t3d.sdar import SDARConfig
from t3d.sdar.checkpoint import default_stop_ids, load_model_config, load_tokenizer
from t3d.toy.base import main as write_base
from t3d.toy.problems import invented_names
from t3d.toy.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, MASK, TURN_END, TURN_START, build_tokenizer

SDAR_TOKENIZER = Path(__file__).parents[3] / "shared" / "data" / "sdar-tokenizer"
TEACHER = Path(__file__).parents[2] / "t3d" / "toy" / "teacher"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END, MASK)
ITEM = {"question": "Ada has 12 boxes of 3 pens. How many?", "ground_truth_answer": "36"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The toy model's folder before training."""
    folder = tmp_path_factory.mktemp("base")
    write_base(["--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


def test_random_tokens_have_a_real_vocabulary_to_come_from(tokenizer):
    assert len(tokenizer) >= 1000
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


@pytest.mark.parametrize("text", ["0123456789", "12 34", "3 * 4 = 12.", "x1y2"])
def test_digits_are_tokens_of_their_own(tokenizer, text):
    pieces = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    for piece in pieces:
        assert sum(letter.isdigit() for letter in piece) <= 1
        assert not any(letter.isdigit() for letter in piece) or len(piece.strip()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces  ",
        "\n\n\ttabs\r\nand lines\n",
        "The answer is \\boxed{12}.",
        "naïve café, groß, Ω ≈ 3,14; 你好世界; שלום; 🤖👩‍👩‍👧",
        "zero\x00byte \x7f\u2028\ufeff\u00a0",
        "e\u0301 is not \u00e9",
        "<|im_start",
        "|>",
        "".join(map(chr, range(32, 0x250))),
    ],
)
def test_any_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_are_single_ids_inside_text(tokenizer, token):
    ids = tokenizer(f"a{token}b")["input_ids"]
    assert len(ids) == 3
    assert ids[1] == tokenizer.convert_tokens_to_ids(token)
    assert tokenizer.decode(ids) == f"a{token}b"


def test_mask_pad_and_end_are_those_of_the_model(base, tokenizer):
    config = load_model_config(base)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    assert len(set(ids.values())) == 4
    assert config.mask_token_id == tokenizer.mask_token_id == ids[MASK]
    assert config.pad_token_id == tokenizer.pad_token_id == ids[END_OF_TEXT]
    assert config.eos_token_id == tokenizer.eos_token_id == ids[END_OF_TEXT]
    assert config.vocab_size == len(tokenizer)
    assert set(default_stop_ids(base, tokenizer)) == {ids[END_OF_TEXT], ids[TURN_END]}
    assert isinstance(config, SDARConfig)
    assert not list(base.glob("*.safetensors"))


def test_the_chat_template_is_sdars_for_a_user_turn(tokenizer):
    text, ids = build_prompt(tokenizer, ITEM, "math", False)
    assert text == (
        "<|im_start|>user\nAda has 12 boxes of 3 pens. How many?\nPlease reason step by step, and put your"
        " final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ids) == text


@pytest.mark.skipif(not SDAR_TOKENIZER.is_dir(), reason="needs SDAR's tokenizer")
@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": "Hi, \\boxed{}\n"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": " 3 "},
        ],
    ],
)
def test_the_chat_template_equals_sdars_own(tokenizer, turns):
    sdar = AutoTokenizer.from_pretrained(SDAR_TOKENIZER)
    own = (SDAR_TOKENIZER / "chat_template.jinja").read_text()
    options = {"tokenize": False, "add_generation_prompt": True}
    expected = sdar.apply_chat_template(turns, chat_template=own, **options)
    assert tokenizer.apply_chat_template(turns, **options) == expected
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_its_files_name_nothing_that_only_one_major_release_of_transformers_knows(base):
    for folder in (base, TEACHER):
        fields = json.loads((folder / "tokenizer_config.json").read_text())
        assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert fields["additional_special_tokens"] == [TURN_START, TURN_END]
        assert not {"backend", "extra_special_tokens"} & fields.keys()


def test_the_teachers_tokenizer_is_this_one(tokenizer):
    teachers = load_tokenizer(TEACHER)
    stored, built = (json.loads(one.backend_tokenizer.to_str()) for one in (teachers, tokenizer))
    # transformers 5 adds a post-processor that adds nothing.
    assert all(stored[part] == built[part] for part in stored.keys() - {"post_processor"})
    assert teachers.all_special_ids == tokenizer.all_special_ids
    assert teachers.chat_template == tokenizer.chat_template


def test_building_it_twice_gives_the_same_tokenizer():
    first, second = (build_tokenizer(num_problems=300) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_saving_it_twice_gives_the_same_bytes(base, tmp_path):
    write_base(["--out", str(tmp_path)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in base.iterdir()
    }


def test_with_invented_names_each_is_a_word_and_there_are_thousands():
    words = build_tokenizer(extra_names=2000)
    ids = [words.encode(f" {name}", add_special_tokens=False) for name in invented_names(2000)]
    assert len(words) > 3000
    assert sum(len(each) == 1 for each in ids) > 1900
