"""The text of single tokens, so that they spell a response when they are put one after the other."""

from transformers import PreTrainedTokenizerBase

from t3d.trajectory import UNDECODED, decoded


class PieceTable:
    """Distinct token texts, numbered in the order of their first use.

    Attributes:
        texts: every text that was seen.
        special: numbers of those that are special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Starts empty."""
        self.tokenizer = tokenizer
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}
        self._alone: dict[int, str] = {}
        self._special_ids = set(tokenizer.all_special_ids)
        self.special: set[int] = set()

    def numbers(self, ids: list[int]) -> list[int]:
        """The number of each token's text.

        Joined, the texts are what the tokenizer makes of all ids.  A character that several tokens share is shown
        at the last of them.
        """
        texts = self._join_characters(ids)
        if "".join(texts) != self._decode(ids):  # a tokenizer whose texts depend on what stands in front
            texts = self._prefix_texts(ids)
        numbers = [self._number(text) for text in texts]
        self.special |= {number for number, token in zip(numbers, ids, strict=True) if token in self._special_ids}
        return numbers

    def _number(self, text: str) -> int:
        number = self._numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number

    def _join_characters(self, ids: list[int]) -> list[str]:
        texts: list[str] = []
        first = 0  # of the tokens whose bytes are not yet whole characters
        for place, token in enumerate(ids):
            if token not in self._alone:
                self._alone[token] = self._decode([token])
            text = self._alone[token]
            if first < place or UNDECODED in text:
                text = self._decode(ids[first : place + 1])
            whole = UNDECODED not in text
            texts.append(text if whole else "")
            if whole:
                first = place + 1
        return texts

    def _prefix_texts(self, ids: list[int]) -> list[str]:
        """What each token adds to the text in front of it; slow, for no special case."""
        texts, before = [], ""
        for count in range(1, len(ids) + 1):
            after = self._decode(ids[:count])
            grown = after.startswith(before) and (count == len(ids) or not after.endswith(UNDECODED))
            texts.append(after[len(before) :] if grown else "")
            before = after if grown else before
        return texts

    def _decode(self, ids: list[int]) -> str:
        return decoded(ids, self.tokenizer)
