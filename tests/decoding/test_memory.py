"""As many sequences as fit, on devices whose memory is made up."""

import logging

import pytest
import torch

from t3d import devices
from t3d.decoding import DecodingConfig, decode, iter_decode
from t3d.decoding import engine as engine_module
from t3d.decoding import memory as memory_module
from t3d.decoding.cache import SlotCache, padded_keys
from t3d.decoding.likelihood import iter_likelihoods
from t3d.decoding.memory import Capacity, decoding_memory, speculative_memory
from t3d.decoding.pages import Paging
from t3d.decoding.speculative import Draft, iter_speculative
from t3d.errors import ConfigError
from t3d.sdar import SDARConfig, SDARForCausalLM
from tests.training.test_memory import Live

MASK, CPU = 47, torch.device("cpu")
PROMPTS = [[5, 9, 1, 4, 4, 8, 2], [7], [1, 2, 3, 4], [6] * 13, [8] * 9]
CONFIG = DecodingConfig(MASK, 4, 2, max_new_tokens=30, temperature=0.7)
SDAR_4B = {
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mask_token_id": 151_669,
}


@pytest.fixture(scope="module")
def model(build_tiny_model) -> SDARForCausalLM:
    """In double precision: MKL's single-precision products depend on the rows beside them."""
    return build_tiny_model().double()


@pytest.fixture(autouse=True)
def untold():
    memory_module._tell_once.cache_clear()


@pytest.fixture
def free(monkeypatch):
    """Sets the bytes that are free on every device."""

    def build(number: int) -> None:
        monkeypatch.setattr(memory_module, "free_memory", lambda device: number)
        monkeypatch.setattr(devices, "free_memory", lambda device: number)

    return build


@pytest.fixture
def widths(monkeypatch):
    """Collects how many slots each decoding has."""
    seen = []
    slots = engine_module.Slots

    def counted(model, config, num_slots, longest, **rest):
        seen.append(num_slots)
        return slots(model, config, num_slots, longest, **rest)

    monkeypatch.setattr(engine_module, "Slots", counted)
    return seen


def room_for(model: SDARForCausalLM, num_slots: float) -> int:
    """Free bytes of which so many slots fit into what may be used on a CPU."""
    needed = decoding_memory(model.config, model.dtype, CONFIG, max(map(len, PROMPTS)), CPU)
    return int((needed.shared + needed.per_slot * num_slots) / (1 - 1 / devices.KEPT_BACK_SHARE)) + 10


def test_as_many_slots_as_fit_decode_the_same(model, free, widths, caplog) -> None:
    caplog.set_level(logging.INFO)
    expected = decode(model, PROMPTS, CONFIG)
    free(room_for(model, 2.9))
    for _ in range(3):
        assert decode(model, PROMPTS, CONFIG) == expected
    assert decode(model, PROMPTS, CONFIG, max_active=1) == expected
    assert widths == [5, 2, 2, 2, 1]
    told = [record.getMessage() for record in caplog.records if "memory" in record.name]
    assert told == [
        "decoding 2 sequences at a time, not 5: as many as cpu has memory for (results do not depend on it)"
    ], "once"


def test_as_many_pages_as_fit_decode_the_same(model, free, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    expected, paging = decode(model, PROMPTS, CONFIG), Paging(8, is_gathered=True)
    needed = decoding_memory(model.config, model.dtype, CONFIG, 13, CPU, paging=paging)
    held = needed.shared + 5 * needed.per_slot + 12 * needed.per_page
    free(int(held / (1 - 1 / devices.KEPT_BACK_SHARE)) + 10)
    monkeypatch.setattr(engine_module, "choose_paging", lambda kernel, wanted: paging)
    assert decode(model, PROMPTS, CONFIG) == expected
    told = [record.getMessage() for record in caplog.records if "memory" in record.name]
    assert told == [
        "decoding up to 5 sequences at a time in 12 pages of 8 tokens, as many as cpu has memory for: not all can be "
        "of full length (results do not depend on it)"
    ]
    free(int(needed.least / (1 - 1 / devices.KEPT_BACK_SHARE)) - 10)
    with pytest.raises(ConfigError, match=r"^rollout.max_token: expected a prompt of 13 tokens .* for one sequence$"):
        decode(model, PROMPTS, CONFIG)


def test_no_memory_for_one_sequence_is_refused_before_anything_is_decoded(model, free) -> None:
    free(room_for(model, 1))
    assert len(decode(model, PROMPTS, CONFIG)) == 5
    free(room_for(model, 0.99))
    expected = (
        r"^rollout.max_token: expected a prompt of 13 tokens and 30 new ones to fit into 0.00 GiB \(0.00 are free on "
        r"cpu, the rest is kept back\), found 0.00 GiB for one sequence$"
    )
    with pytest.raises(ConfigError, match=expected):
        next(iter_decode(model, PROMPTS, CONFIG))


def test_processes_that_share_a_device_share_its_memory(model, free, widths) -> None:
    free(2 * room_for(model, 3))
    assert len(list(iter_decode(model, PROMPTS, CONFIG, sharing=2))) == 5
    assert widths == [3]
    expected = r"^rollout.num_workers: .* are free on cpu, for 9 processes, and some is kept back\), found"
    with pytest.raises(ConfigError, match=expected):
        next(iter_decode(model, PROMPTS, CONFIG, sharing=9))


def test_processes_in_step_use_the_number_that_they_agree_on(model, free, widths) -> None:
    free(room_for(model, 3))
    asked = []
    done = dict(iter_decode(model, PROMPTS, CONFIG, agree=lambda number: asked.append(number) or 2))
    assert [done[index] for index in range(5)] == decode(model, PROMPTS, CONFIG)
    assert (asked, widths) == ([3], [2, 3])


# What it takes


def wide_network() -> SDARForCausalLM:
    special = {"mask_token_id": 1, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    shape = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 1024}
    return SDARForCausalLM(SDARConfig(**special, **shape, **heads)).eval()


class Beside(Live):
    """What is alive beside the weights of some networks."""

    def __init__(self, *networks: SDARForCausalLM) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage().data_ptr() for one in networks for weight in one.parameters()}

    def count(self, tensor: torch.Tensor) -> None:
        if tensor.untyped_storage().data_ptr() not in self.weights:
            super().count(tensor)


@pytest.mark.parametrize("paging", [None, Paging(is_gathered=True)])
@pytest.mark.parametrize(
    ("size", "num_slots", "prompt", "new", "top_p"), [(4, 4, 600, 8, 1.0), (16, 16, 30, 64, 0.9), (4, 16, 600, 8, 0.9)]
)
def test_the_estimate_covers_what_decoding_takes(
    size: int, num_slots: int, prompt: int, new: int, top_p: float, paging: Paging | None
) -> None:
    model = wide_network()
    config = DecodingConfig(1, size, size, max_new_tokens=new, temperature=0.5, top_p=top_p, record=("logprob",))
    with Beside(model) as live:
        decode(model, [[7] * prompt] * num_slots, config, max_active=num_slots, paged=paging is not None)
    needed = decoding_memory(model.config, model.dtype, config, prompt, CPU, paging=paging)
    held = num_slots * (needed.per_slot + needed.longest * needed.per_page)
    assert live.peak <= needed.shared + held <= 2 * live.peak
    assert (needed.longest > 0) == (paging is not None)


@pytest.mark.parametrize("source", ["self", "both"])
def test_the_estimate_covers_what_drafts_take(source: str):
    networks = [wide_network()] if source == "self" else [wide_network(), wide_network()]
    config = DecodingConfig(1, 4, 4, max_new_tokens=12, record=("logprob",))
    with Beside(*networks) as live:
        draft = Draft(source, None if source == "self" else networks[1])
        assert len(list(iter_speculative(networks[0], [[7] * 90] * 4, config, draft, 4))) == 4
    shapes = [(network.config, network.dtype) for network in networks]
    needed = speculative_memory(shapes, config, 90, CPU)
    assert live.peak <= needed.shared + 4 * needed.per_slot <= 2 * live.peak


def test_an_a100_with_40_gb_holds_some_ninety_long_sequences_of_4b() -> None:
    """The shipped settings ask for 256, of up to 2,048 new tokens."""
    config = DecodingConfig(151_669, 4, 4, max_new_tokens=2048, temperature=0.1)
    needed = decoding_memory(SDARConfig(**SDAR_4B), torch.bfloat16, config, 250, torch.device("cuda"))
    free = int(39.4 * 2**30) - 8_823_000_000 - devices.KEPT_BACK
    assert 85 <= needed.slots(free) <= 97
    assert needed.slots(10**9) < 3
    assert needed.slots(0) == 0
    keys_and_values = SlotCache.slot_bytes(SDARConfig(**SDAR_4B), padded_keys(2298), torch.bfloat16)
    assert keys_and_values < needed.per_slot < 1.02 * keys_and_values


def test_an_a100_with_40_gb_holds_the_shipped_256_sequences_of_4b_in_pages() -> None:
    config = DecodingConfig(151_669, 4, 4, max_new_tokens=2048, temperature=0.1)
    needed = decoding_memory(
        SDARConfig(**SDAR_4B), torch.bfloat16, config, 250, torch.device("cuda"), recorded=True, paging=Paging()
    )
    free = int(39.4 * 2**30) - 8_823_000_000 - devices.KEPT_BACK
    found = needed.capacity(free, 256)
    assert (found.slots, found.longest) == (256, 9)
    assert found.pages == pytest.approx(765, abs=10), "three each but for some: 605 tokens, the last page half full"
    assert needed.capacity(free, 4) == Capacity(4, Paging(), 36, 9)
    assert needed.capacity(needed.least, 256) == Capacity(1, Paging(), 9, 9)
    assert needed.capacity(needed.least - 1, 256).slots == 0


# The device's own answers


@pytest.fixture
def fake_cuda(monkeypatch) -> dict[str, int]:
    """What the driver and torch's allocator say of cuda:0."""
    said = {"free": 10 * 2**30, "reserved": 6 * 2**30, "allocated": 5 * 2**30, "remainders": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (said["free"], 40 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: said["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: said["allocated"])
    stats = {"inactive_split_bytes.all.current": "remainders"}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {name: said[key] for name, key in stats.items()})
    return said


def test_what_torch_holds_unused_counts_as_free_and_a_margin_does_not(fake_cuda) -> None:
    cuda = torch.device("cuda", 0)
    assert devices.free_memory(cuda) == 11 * 2**30
    assert devices.usable_memory(cuda) == 9.5 * 2**30
    fake_cuda["remainders"] = 2**29
    assert devices.free_memory(cuda) == 10.5 * 2**30
    fake_cuda.update(free=2**30, reserved=0, allocated=0)
    assert devices.usable_memory(cuda) == 0


def test_processes_that_share_a_gpu_plan_with_equal_parts_of_it_whoever_comes_first(fake_cuda) -> None:
    cuda, gib = torch.device("cuda", 0), 2**30
    fake_cuda.update(free=34 * gib, reserved=5 * gib, allocated=5 * gib)
    alone = devices.usable_memory(cuda, sharing=2)
    assert alone == (40 - 1.5) / 2 * gib - gib // 2 - 5 * gib
    fake_cuda.update(free=28 * gib)  # the other has loaded as well
    assert devices.usable_memory(cuda, sharing=2) == alone
    fake_cuda.update(free=10 * gib)  # somebody else computes there
    assert devices.usable_memory(cuda, sharing=2) == 8.5 * gib
    fake_cuda.update(allocated=39 * gib, reserved=39 * gib)
    assert devices.usable_memory(cuda, sharing=2) == 0


def test_processes_that_share_a_machine_plan_with_equal_parts_of_what_is_free(free) -> None:
    free(10 * 2**30)
    assert devices.usable_memory(torch.device("cpu"), sharing=3) == 3 * 2**30


def test_memory_is_given_back_after_each_decoding(model, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(memory_module, "give_back", given.append)
    for _ in range(2):
        decode(model, PROMPTS, CONFIG)
    assert given == [CPU, CPU]
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    devices.give_back(CPU)
    assert not emptied
    devices.give_back(torch.device("cuda", 0))
    assert emptied


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "CUDA out of memory. Tried"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "[enforce]"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "MPS backend out of memory"),
        (RuntimeError("CUDA error: out of memory\nmore"), "CUDA error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "CUDA error: CUBLAS"),
        (MemoryError("Unable to allocate 8 GiB for an array"), "Unable to allocate 8 GiB"),
        (MemoryError(), "out of memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_errors_of_full_devices_are_known(error: Exception, found: str | None) -> None:
    reason = devices.exhaustion(error)
    assert reason is None if found is None else str(reason).startswith(found)


def test_a_real_allocation_that_fails_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert devices.exhaustion(caught.value)


# Running out all the same


class Narrow:
    """A network without memory for more tokens than it bears, from some call on."""

    def __init__(self, model: SDARForCausalLM, bears: int, after: int = 0) -> None:
        self.forward, self.bears, self.after, self.calls = model.forward, bears, after, 0

    def __call__(self, ids, **layout):
        self.calls += 1
        if self.calls > self.after and ids.numel() > self.bears:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.forward(ids, **layout)


def test_half_of_the_sequences_go_on_when_memory_runs_out(model, monkeypatch, widths, caplog) -> None:
    expected = decode(model, PROMPTS * 3, CONFIG)
    monkeypatch.setattr(model, "forward", Narrow(model, bears=24, after=5))
    found = list(iter_decode(model, PROMPTS * 3, CONFIG, max_active=9))
    assert sorted(index for index, _ in found) == list(range(15)), "each once"
    assert [trajectory for _, trajectory in sorted(found, key=lambda pair: pair[0])] == expected
    assert widths == [15, 9, 4, 2]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told[0] == (
        "no memory on cpu for 9 sequences at a time (CUDA out of memory.): going on with 4, which changes no result; "
        "rollout.max_active=4 starts there"
    )


def test_no_memory_for_one_or_for_an_agreed_number_is_one_line(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "forward", Narrow(model, bears=0))
    with pytest.raises(ConfigError, match=r"^rollout.max_token: expected memory on cpu for 1 seq.*found CUDA out of"):
        decode(model, PROMPTS, CONFIG)
    with pytest.raises(ConfigError, match=r"^rollout.max_active: expected memory on cpu for 5 seq.*found CUDA out of"):
        list(iter_decode(model, PROMPTS, CONFIG, agree=lambda number: number))


def test_another_error_is_not_taken_for_it(model, monkeypatch, widths) -> None:
    def broken(*ids, **layout):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        decode(model, PROMPTS, CONFIG)
    assert widths == [5]


def test_likelihoods_too_go_on_with_half_of_their_pairs(model, monkeypatch) -> None:
    pairs = [([1, 2, 3, length], [5] * length) for length in range(1, 12)]
    expected = dict(iter_likelihoods(model, pairs, MASK, 4))
    monkeypatch.setattr(model, "forward", Narrow(model, bears=100))
    found = dict(iter_likelihoods(model, pairs, MASK, 4))
    assert found.keys() == expected.keys()
    for index, score in found.items():
        assert score.log_prob == pytest.approx(expected[index].log_prob, abs=1e-4)
        assert score.is_greedy == expected[index].is_greedy
    monkeypatch.setattr(model, "forward", Narrow(model, bears=-100))
    with pytest.raises(ConfigError, match=r"memory on cpu for 1 sequence"):
        list(iter_likelihoods(model, pairs, MASK, 4))
