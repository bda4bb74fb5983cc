import pytest

from t3d.viewer.pieces import PieceTable

TEXTS = [
    "5 groups of 4\nmake 20.<|im_end|>",
    "naïve “quotes” 数学 😀 x²",
    "",
    "  indented\n\n\tcode",
    "<|MASK|><b>&amp;",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_spell_the_response(tokenizer, text):
    table = PieceTable(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    numbers = table.numbers(ids)
    assert len(numbers) == len(ids)
    assert "".join(table.texts[number] for number in numbers) == text


def test_a_character_of_several_tokens_is_shown_at_the_last(tokenizer):
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"]
    table = PieceTable(tokenizer)
    assert len(ids) > 1
    assert [table.texts[number] for number in table.numbers(ids)] == [""] * (len(ids) - 1) + ["😀"]


def test_a_character_that_is_cut_off_hides_nothing_else(tokenizer):
    ids = tokenizer("ab 😀", add_special_tokens=False)["input_ids"][:-1]
    table = PieceTable(tokenizer)
    assert "".join(table.texts[number] for number in table.numbers(ids)) == tokenizer.decode(ids)


def test_special_tokens_are_known(tokenizer):
    table = PieceTable(tokenizer)
    table.numbers(tokenizer("a<|im_end|>", add_special_tokens=False)["input_ids"])
    assert {table.texts[number] for number in table.special} == {"<|im_end|>"}


class Spaced:
    """A tokenizer that drops the first space of whatever it decodes, as sentencepiece's do."""

    all_special_ids: tuple[int, ...] = ()
    words = (" one", " two", " three")

    def decode(self, ids, **_):
        return "".join(self.words[token] for token in ids).removeprefix(" ")


def test_texts_that_depend_on_what_stands_before():
    table = PieceTable(Spaced())
    assert [table.texts[number] for number in table.numbers([2, 0, 1])] == ["three", " one", " two"]
