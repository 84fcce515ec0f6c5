import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from compiler.generation import Sampling
from compiler.session import Session
from compiler.tenants import add_tenant, tenant_folder
from planner.errors import IncompatibleError, ParetuneError, UsageError

EVERYONE = ("base", "acme", "zeta", "third")
PROMPTS = ("abc", "gfedcba", "n", "hijk")


@pytest.fixture(scope="module")
def session(shared_artifact: Path) -> Session:
    """Open on the shared artifact; no test may change its tenants."""
    return Session.open(shared_artifact)


@pytest.fixture
def own_session(shared_artifact: Path) -> Session:
    return Session.open(shared_artifact)


def tokens_of(session: Session, tenants: tuple[str, ...] = EVERYONE) -> list[tuple[int, ...]]:
    found = session.generate(["abcd"] * len(tenants), tenants, max_new_tokens=12)
    return [each.tokens for each in found]


def logits_of(session: Session, tenants: tuple[str, ...] = EVERYONE) -> np.ndarray:
    ids = np.random.default_rng(0).integers(2, 16, (1, 9)).repeat(len(tenants), axis=0)
    return session.logits(ids, tenants)


def test_all_tenants_are_loaded_in_slot_order(session: Session) -> None:
    assert session.tenants == ("acme", "zeta", "third")


def test_only_the_named_tenants_are_loaded(shared_artifact: Path) -> None:
    one = Session.open(shared_artifact, tenants=["zeta"])
    assert one.tenants == ("zeta",)
    with pytest.raises(UsageError, match="unknown tenant 'acme'; tenants are zeta"):
        one.generate(["a"], ["acme"])
    with pytest.raises(UsageError, match="unknown tenant 'ace'; tenants are acme, zeta, third"):
        Session.open(shared_artifact, tenants=["ace"])


def test_every_tenant_answers_in_its_own_way(session: Session) -> None:
    assert len(set(tokens_of(session))) == len(EVERYONE)


@pytest.mark.parametrize("order", list(itertools.permutations(EVERYONE)))
def test_a_row_in_a_mixed_batch_equals_the_row_alone(
    session: Session, order: tuple[str, ...]
) -> None:
    mixed = logits_of(session, order)
    for row, tenant in zip(mixed, order, strict=True):
        # The op is row-invariant; attention around it is ONNX Runtime's, float32 over 24 terms.
        np.testing.assert_allclose(row, logits_of(session, (tenant,))[0], rtol=0, atol=1e-5)


def test_prompts_of_different_lengths_in_one_batch_equal_each_alone(session: Session) -> None:
    mixed = session.generate(PROMPTS, EVERYONE, max_new_tokens=10)
    alone = [
        session.generate([prompt], tenant, max_new_tokens=10)[0]
        for prompt, tenant in zip(PROMPTS, EVERYONE, strict=True)
    ]
    assert mixed == alone


def test_generation_with_the_cache_equals_recomputing_every_step(session: Session) -> None:
    ids = session.tokenizer.encode("hijk")
    for tenant in EVERYONE:
        tokens: list[int] = []
        for _ in range(10):
            logits = session.logits(np.array([[*ids, *tokens]]), tenant)
            token = int(logits[0, -1].argmax())
            if token in session.tokenizer.eos_ids:
                break
            tokens.append(token)
        assert list(session.generate(["hijk"], tenant, max_new_tokens=10)[0].tokens) == tokens


def test_an_unmerged_tenant_equals_the_merged_export(
    session: Session, tmp_path: Path, toy: ModuleType
) -> None:
    """Bank, op and lowering against plain folded weights."""
    for name, adapter in toy.TENANTS.items():
        merged = Session.open(toy.make_merged(tmp_path / name, name, adapter))
        # float32 rounding of two orders of the same sums, on logits of about 10.
        np.testing.assert_allclose(
            logits_of(merged, (name,)), logits_of(session, (name,)), rtol=0, atol=1e-4
        )


def test_tenants_that_share_projections_keep_them_when_one_leaves(
    artifact: Path, tmp_path: Path, toy: ModuleType
) -> None:
    pair = {name: toy.toy_adapter("vera", seed=seed, rank=8) for name, seed in (("v", 1), ("w", 2))}
    for name, adapter in pair.items():
        add_tenant(artifact, name, adapter)
    session = Session.open(artifact)
    for name, adapter in pair.items():
        merged = Session.open(toy.make_merged(tmp_path / name, name, adapter))
        np.testing.assert_allclose(
            logits_of(merged, (name,)), logits_of(session, (name,)), rtol=0, atol=1e-4
        )
    before = logits_of(session, ("w", "acme"))
    session.remove_tenant("v")
    np.testing.assert_array_equal(logits_of(session, ("w", "acme")), before)


@pytest.mark.parametrize("tenant", ["acne", "", "ACME", "../acme", "acme "])
def test_an_unknown_tenant_is_refused_and_never_the_base(session: Session, tenant: str) -> None:
    with pytest.raises(UsageError, match="unknown tenant") as caught:
        session.generate(["a", "b"], ["acme", tenant])
    assert "tenants are acme, zeta, third" in str(caught.value)


def test_none_is_the_base(session: Session) -> None:
    np.testing.assert_array_equal(session.logits(np.array([[2, 3]])), logits_for(session, "base"))


def logits_for(session: Session, tenant: str) -> np.ndarray:
    return session.logits(np.array([[2, 3]]), tenant)


def test_a_tenant_must_be_named_for_every_row(session: Session) -> None:
    with pytest.raises(UsageError, match="2 tenants are named for 3 rows"):
        session.generate(["a", "b", "c"], ["acme", "zeta"])


def test_an_empty_batch_has_no_results(session: Session, classifier: Path) -> None:
    assert session.generate([], []) == []
    assert Session.open(classifier).classify([], []) == []


def test_adding_and_removing_leaves_the_others_bit_for_bit(
    own_session: Session, toy: ModuleType
) -> None:
    before = logits_of(own_session)
    for number in range(40):  # past the bank's first size, in slots and in bytes
        adapter = toy.toy_adapter("lora", seed=number, rank=20)
        own_session.add_tenant(f"extra-{number}", adapter)
    np.testing.assert_array_equal(logits_of(own_session), before)
    for number in range(0, 40, 2):
        own_session.remove_tenant(f"extra-{number}")
    np.testing.assert_array_equal(logits_of(own_session), before)


def test_a_tenant_in_a_used_slot_has_nothing_of_the_one_before(
    own_session: Session, shared_artifact: Path
) -> None:
    before = logits_of(own_session)
    own_session.remove_tenant("zeta")
    own_session.add_tenant("again", shared_artifact / tenant_folder("third"))
    with pytest.raises(UsageError, match="unknown tenant 'zeta'"):
        logits_of(own_session)
    found = logits_of(own_session, ("base", "acme", "again", "third"))
    np.testing.assert_array_equal(found[2], found[3])
    np.testing.assert_array_equal(found[[0, 1, 3]], before[[0, 1, 3]])


def test_tenants_may_come_and_go_while_others_are_served(
    own_session: Session, toy: ModuleType
) -> None:
    before = logits_of(own_session)
    adapters = [toy.toy_adapter("lora", seed=seed, rank=20) for seed in range(20)]

    def come_and_go() -> None:
        for number, adapter in enumerate(adapters):
            own_session.add_tenant(f"extra-{number}", adapter)
        for number, _ in enumerate(adapters):
            own_session.remove_tenant(f"extra-{number}")

    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(come_and_go)
        while not change.done():
            np.testing.assert_array_equal(logits_of(own_session), before)
        change.result()


def test_a_tenant_can_be_added_from_its_file(own_session: Session, shared_artifact: Path) -> None:
    own_session.add_tenant(
        "copy", str(shared_artifact / tenant_folder("zeta") / "adapter.safetensors")
    )
    found = logits_of(own_session, ("zeta", "copy"))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_tenant_of_another_base_is_refused_naming_both(
    own_session: Session, toy: ModuleType
) -> None:
    foreign = replace(toy.TENANTS["acme"], base_digest="f" * 64)
    with pytest.raises(IncompatibleError, match=r"base f{12}, but the artifact holds base b{12}"):
        own_session.add_tenant("new", foreign)
    assert own_session.tenants == ("acme", "zeta", "third")


@pytest.mark.parametrize("name", ["../new", "base", "acme"])
def test_a_tenant_with_an_impossible_name_is_refused(
    own_session: Session, toy: ModuleType, name: str
) -> None:
    with pytest.raises(UsageError, match=name):
        own_session.add_tenant(name, toy.TENANTS["acme"])


def test_a_full_model_update_is_refused(own_session: Session, toy: ModuleType) -> None:
    with pytest.raises(IncompatibleError, match="cannot be served unmerged"):
        own_session.add_tenant("new", replace(toy.TENANTS["acme"], method="full"))


def test_a_merged_artifact_has_its_one_tenant_and_no_base(tmp_path: Path, toy: ModuleType) -> None:
    adapter = toy.TENANTS["acme"]
    merged = Session.open(toy.make_merged(tmp_path / "merged", "acme", adapter))
    assert merged.tenants == ("acme",)
    assert merged.generate(["a"], ["acme"], max_new_tokens=3)[0].tenant == "acme"
    with pytest.raises(UsageError, match="the base model is not in the artifact"):
        merged.generate(["a"])
    with pytest.raises(UsageError, match="unknown tenant 'zeta'; tenants are acme"):
        merged.generate(["a"], ["zeta"])
    with pytest.raises(IncompatibleError, match="it holds 'acme' alone"):
        merged.add_tenant("new", adapter)
    with pytest.raises(IncompatibleError, match="it holds 'acme' alone"):
        merged.remove_tenant("acme")


def test_the_end_token_ends_a_row_and_not_its_neighbours(session: Session) -> None:
    found = session.generate([a + b for a in "abcdefgh" for b in "ijklmn"], max_new_tokens=30)
    assert {each.finish_reason for each in found} == {"stop", "length"}
    assert all(len(e.tokens) == 30 for e in found if e.finish_reason == "length")
    assert not any(set(each.tokens) & set(session.tokenizer.eos_ids) for each in found)


def test_a_stop_text_ends_a_row_and_is_left_out(session: Session) -> None:
    whole = session.generate(["gfed"], ["zeta"], max_new_tokens=12)[0]
    stop = whole.text[3:5]
    cut = session.generate(["gfed"], ["zeta"], max_new_tokens=12, stop=[stop])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_sampled_row_depends_on_its_seed_and_not_on_its_neighbours(session: Session) -> None:
    def sampled(tenants: list[str], seed: int) -> list[tuple[int, ...]]:
        prompts = ["abcd"] * len(tenants)
        found = session.generate(prompts, tenants, max_new_tokens=8, temperature=2.0, seed=seed)
        return [each.tokens for each in found]

    assert sampled(["acme", "zeta", "base"], 1)[1:2] == sampled(["zeta"], 1)
    assert len({sampled(["zeta"], seed)[0] for seed in range(5)}) > 1


def test_sampling_follows_the_softmax(session: Session) -> None:
    """2,000 draws of one token: within 5 standard deviations of the expected count."""
    logits = session.logits(np.array([[2, 3]]), "acme")[0, -1].astype(np.float64) / 3.0
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    rows = 2000
    found = session.continue_tokens(
        [[2, 3]] * rows, "acme", Sampling(max_new_tokens=1, temperature=3.0, seeds=range(rows))
    )
    likely = int(expected[2:].argmax()) + 2
    count = sum(each.tokens == (likely,) for each in found)
    p = expected[likely]
    assert abs(count - rows * p) < 5 * (rows * p * (1 - p)) ** 0.5


def test_a_row_ends_where_its_own_context_is_full(session: Session) -> None:
    prompts = ["ab" * 30, "defgh"]
    mixed = session.generate(prompts, "zeta", max_new_tokens=8)
    assert len(mixed[0].tokens) == 64 - 60
    assert mixed[0].finish_reason == "length"
    assert mixed[1:] == session.generate(prompts[1:], "zeta", max_new_tokens=8)


def test_a_prompt_must_fit_the_context_and_not_be_empty(session: Session) -> None:
    with pytest.raises(UsageError, match="prompt 1 has 64 tokens, but the model's context is 64"):
        session.generate(["a", "a" * 64])
    with pytest.raises(UsageError, match="sequence 0 has 65 tokens, but the model's context is 64"):
        session.perplexity([([2] * 65, [2] * 65)])
    with pytest.raises(UsageError, match="prompt 0 is empty"):
        session.generate([""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -0.5}, "temperature must be at least 0 and finite, not -0.5"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and finite, not nan"),
        ({"temperature": float("inf")}, "temperature must be at least 0 and finite, not inf"),
        ({"temperature": 1.0, "seed": [1, 2]}, "2 seeds are given for 1 rows"),
        ({"temperature": 1.0, "seed": -1}, "a seed must be at least 0, not -1"),
        ({"stop": [""]}, "a stop text is empty"),
    ],
)
def test_bad_sampling_is_refused(session: Session, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        session.generate(["a"], **options)


def test_a_text_is_no_list_of_texts(session: Session, classifier: Path) -> None:
    with pytest.raises(UsageError, match="prompts is one text, not a list"):
        session.generate("abc")
    with pytest.raises(UsageError, match="texts is one text, not a list"):
        Session.open(classifier).classify("abc", "spam")


def test_ids_begin_at_nothing(session: Session) -> None:
    """A negative one would be counted from the end of the vocabulary."""
    with pytest.raises(UsageError, match="prompt 0 has the token id -1"):
        session.continue_tokens([[2, -1]], None, Sampling(max_new_tokens=1))
    with pytest.raises(UsageError, match="input_ids has the token id -1"):
        session.logits(np.array([[2, -1]]))
    with pytest.raises(UsageError, match=r"input_ids have the shape \(2,\), not \[batch, sequence"):
        session.logits(np.array([2, 3]))


def test_a_seed_may_be_an_integer_of_numpy(session: Session) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 4}
    drawn = session.generate(["a"], seed=np.int64(3), **options)
    assert drawn == session.generate(["a"], seed=3, **options)


def test_a_text_is_cut_to_one_token_at_least(classifier: Path) -> None:
    with pytest.raises(UsageError, match="max_length must be at least 1, not 0"):
        Session.open(classifier).classify(["abc"], "spam", max_length=0)


def test_chat_messages_need_a_chat_template(session: Session) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        session.generate([[{"role": "user", "content": "a"}]])


def test_perplexity_counts_the_labelled_tokens_only(session: Session) -> None:
    ids = [2, 5, 9, 3, 7, 11]
    labels = [-100, -100, 9, 3, -100, 11]
    logits = session.logits(np.array([ids]), "zeta")[0].astype(np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = [-log_softmax[place - 1, labels[place]] for place in (2, 3, 5)]
    found = session.perplexity([(ids, labels)], "zeta")
    assert found.tokens == 3
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_perplexity_does_not_depend_on_the_batch(session: Session) -> None:
    generator = np.random.default_rng(3)
    rows = [generator.integers(2, 16, length).tolist() for length in (3, 20, 7, 11, 2)]
    sequences = [(ids, ids) for ids in rows]
    tenants = ["acme", "base", "zeta", "third", "acme"]
    alone = session.perplexity(sequences, tenants, batch_size=1)
    together = session.perplexity(sequences, tenants, batch_size=5)
    assert together.tokens == alone.tokens == sum(len(ids) - 1 for ids in rows)
    assert together.loss == pytest.approx(alone.loss, abs=1e-5)


def test_perplexity_of_nothing_is_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="counts no token"):
        session.perplexity([([2, 3], [-100, -100])])


def test_each_text_is_labelled_with_its_tenants_own_labels(classifier: Path) -> None:
    session = Session.open(classifier)
    mixed = session.classify(["abc", "abc", "defghi"], ["topics", "spam", "topics"])
    assert [len(each.probabilities) for each in mixed] == [4, 2, 4]
    for each, text in zip(mixed, ["abc", "abc", "defghi"], strict=True):
        alone = session.classify([text], each.tenant)[0]
        assert sum(each.probabilities.values()) == pytest.approx(1)
        assert each.probability == max(each.probabilities.values())
        assert each.probabilities[each.label] == each.probability
        assert each.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_a_cut_text_says_so(classifier: Path) -> None:
    session = Session.open(classifier)
    found = session.classify(["a" * 80, "a" * 64], "spam")
    assert [each.truncated for each in found] == [True, False]
    assert found[0].probability == pytest.approx(found[1].probability, abs=1e-6)


def test_any_graph_runs_by_the_names_of_its_inputs(classifier: Path) -> None:
    session = Session.open(classifier)
    ids = np.array([[2, 3, 4], [5, 6, 7]])
    found = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)}, ["spam", "base"])
    assert list(found) == ["logits"]
    np.testing.assert_array_equal(found["logits"], session.logits(ids, ["spam", "base"]))
    assert not found["logits"][1].any()  # the base model's own head is zero


def test_an_input_that_does_not_fit_is_one_sentence(classifier: Path) -> None:
    session, ids = Session.open(classifier), np.zeros((1, 2), np.int64)
    with pytest.raises(UsageError, match="inputs are input_ids, attention_mask, not input_ids"):
        session.run({"input_ids": ids}, "spam")
    with pytest.raises(ParetuneError, match="the graph does not run: ") as caught:
        session.run({"input_ids": ids, "attention_mask": ids.astype(np.float32)}, "spam")
    assert "\n" not in str(caught.value)


def test_the_base_has_no_labels(classifier: Path) -> None:
    with pytest.raises(UsageError, match="'base' has no labels"):
        Session.open(classifier).classify(["abc"], None)


def test_a_task_allows_what_it_is_for(session: Session, classifier: Path) -> None:
    with pytest.raises(UsageError, match="task is causal_lm"):
        session.classify(["abc"], "acme")
    with pytest.raises(UsageError, match="task is sequence_classification"):
        Session.open(classifier).generate(["abc"], "spam")


def test_more_labels_than_the_head_has_are_refused(classifier: Path, toy: ModuleType) -> None:
    wide = toy.toy_adapter("lora", seed=1, rank=2, labels=tuple("abcde"))
    with pytest.raises(IncompatibleError, match="5 labels"):
        Session.open(classifier).add_tenant("wide", wide)


def test_a_missing_op_library_says_how_to_get_it(
    shared_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compiler.engine.LIBRARY", "libabsent.so")
    with pytest.raises(ParetuneError, match=r"the op library is missing: .*libabsent.so") as caught:
        Session.open(shared_artifact)
    assert caught.value.hint is not None


def test_a_library_that_is_none_is_refused(shared_artifact: Path, tmp_path: Path) -> None:
    library = tmp_path / "libtext.so"
    library.write_text("not a library", "utf-8")
    with pytest.raises(ParetuneError, match=r"the op library .*libtext.so' does not load"):
        Session.open(shared_artifact, library=library)


def test_a_damaged_artifact_is_not_opened(artifact: Path) -> None:
    data = bytearray((artifact / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (artifact / "model.onnx.data").write_bytes(data)
    with pytest.raises(IncompatibleError, match=r"'model.onnx.data' is damaged"):
        Session.open(artifact)


def test_a_damaged_graph_is_refused_unverified_too(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"\x08nonsense")
    with pytest.raises(IncompatibleError, match=r"model.onnx' does not load"):
        Session.open(artifact, verify=False)


def test_serving_imports_neither_torch_nor_transformers_nor_onnx() -> None:
    code = (
        "import compiler.session, compiler.commands.run, compiler.cli, sys\n"
        "print({'torch', 'transformers', 'onnx', 'jax', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
