"""The bank: what was added reads back, whatever was added and removed in between."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compiler.bank import AdapterBank, LoweredSite, Row, Site, pack_row, unpack_row
from compiler.row import COLUMNS, VECTORS, row_from_tensors, row_tensors
from planner.errors import IncompatibleError, UsageError

SITES = (Site("q", 8, 24), Site("k", 3, 24), Site("down", 24, 40))
BASIS_A = np.random.default_rng(1).normal(size=(6, 40)).astype(np.float32)
BASIS_B = np.random.default_rng(2).normal(size=(24, 6)).astype(np.float32)


def lowered_site(site, seed, rank, vectors, *, shared=False):
    random = np.random.default_rng(seed)
    lengths = {"out": site.out_features, "in": site.in_features, "rank": rank}

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    parts = {name: draw(lengths[VECTORS[name][1]]) for name in vectors}
    if shared:
        pair = {
            "a": BASIS_A[:rank, : site.in_features],
            "b": BASIS_B[: site.out_features, :rank],
            "shared_a": f"A{rank}",
            "shared_b": f"B{rank}",
        }
        return LoweredSite(**parts, **pair)
    if rank:
        parts |= {"a": draw(rank, site.in_features), "b": draw(site.out_features, rank)}
    return LoweredSite(**parts)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, site in expected.items():
        for part in ("a", "b", *VECTORS):
            one, other = getattr(found[name], part), getattr(site, part)
            assert (one is None) == (other is None)
            assert one is None or np.array_equal(one, other)


def read_as_the_op_does(bank, slot, site, part):
    """The part found by offsets in the bytes alone, as the kernel finds it."""
    data = bank.array
    header = data[:64].view(np.int64)
    table = data[header[5] : header[5] + 8 * header[2]].view(np.int64)
    start = int(table[slot])
    directory = data[start : start + 8 * COLUMNS * int(header[3])].view(np.int64)
    entry = directory.reshape(-1, COLUMNS)[site]
    column, length = (1, int(entry[0])) if part == "a" else (3, int(entry[0]))
    rows = [
        data[int(entry[column]) + 4 * int(entry[column + 1]) * r :][: 4 * 24].view(np.float32)
        for r in range(length)
    ]
    return np.stack(rows)


site_parts = st.tuples(
    st.integers(0, 6), st.sets(st.sampled_from(sorted(VECTORS))), st.booleans(), st.integers(0, 99)
)


@st.composite
def adapters(draw):
    found = {}
    for site in SITES:
        rank, vectors, shared, seed = draw(site_parts)
        vectors = vectors if rank else vectors - {"latent_scale", "pair_scale"}
        if rank or vectors:
            found[site.name] = lowered_site(site, seed, rank, vectors, shared=shared and rank > 0)
    return found


class BankMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        # Small enough that slots and bytes run out and the bank grows many times.
        self.bank = AdapterBank(SITES, slot_capacity=2, capacity_bytes=1024)
        self.held = {}
        self.count = 0

    @rule(adapter=adapters())
    def add(self, adapter):
        self.count += 1
        name = f"tenant{self.count}"
        self.bank.add(name, adapter)
        self.held[name] = adapter

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.bank.remove(name)
        del self.held[name]

    @invariant()
    def every_tenant_reads_back(self):
        for name, adapter in self.held.items():
            assert_same(self.bank.lowered(name), adapter)

    @invariant()
    def slots_are_distinct_and_not_the_base(self):
        slots = [self.bank.slot(name) for name in self.held]
        assert len(set(slots)) == len(slots)
        assert 0 not in slots

    @invariant()
    def the_op_reads_an_aligned_bank(self):
        assert self.bank.array.ctypes.data % 64 == 0
        assert self.bank.array.flags.c_contiguous
        header = self.bank.array[:64].view(np.int64)
        assert header[0].tobytes() == b"PTRNBANK"
        assert header[4] == self.bank.array.size
        table = self.bank.array[header[5] : header[5] + 8 * header[2]].view(np.int64)
        assert set(np.flatnonzero(table)) == {0} | {self.bank.slot(n) for n in self.held}

    def teardown(self):
        """With every tenant gone nothing but the header, row table and base directory is used."""
        for name in list(self.held):
            self.bank.remove(name)
        header = self.bank.array[:64].view(np.int64).copy()
        assert np.count_nonzero(self.bank.array[64:].view(np.int64)) == 1
        assert self.bank.array[header[5] : header[5] + 8].view(np.int64)[0] == 64


TestBank = BankMachine.TestCase
TestBank.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_the_bytes_hold_the_pair_where_the_directory_says():
    bank = AdapterBank(SITES)
    adapter = {"q": lowered_site(SITES[0], 5, 4, [])}
    slot = bank.add("acme", adapter)
    assert np.array_equal(read_as_the_op_does(bank, slot, 0, "a"), adapter["q"].a)
    assert np.array_equal(read_as_the_op_does(bank, slot, 0, "b")[:, :8], adapter["q"].b.T)


def test_tenants_of_one_basis_share_its_bytes():
    bank = AdapterBank(SITES, capacity_bytes=1 << 16)
    parts = ["latent_scale", "pair_scale"]
    for tenant in range(4):
        bank.add(
            f"t{tenant}",
            {s.name: lowered_site(s, tenant, 6, parts, shared=True) for s in SITES},
        )
    tables = bank.array[:64].view(np.int64)
    rows = bank.array[tables[5] : tables[5] + 8 * tables[2]].view(np.int64)[1:5]
    bases = {int(bank.array[row + 8 : row + 16].view(np.int64)[0]) for row in rows}
    assert len(bases) == 1
    bank.remove("t0")
    assert np.array_equal(bank.lowered("t3")["down"].a, BASIS_A)


def test_removed_weights_are_erased():
    bank = AdapterBank(SITES, slot_capacity=4, capacity_bytes=1 << 16)
    before = bank.array.copy()
    bank.add("acme", {"q": lowered_site(SITES[0], 5, 4, ["output_shift"])})
    bank.remove("acme")
    assert np.array_equal(bank.array, before)


def test_a_freed_slot_and_its_bytes_are_reused():
    bank = AdapterBank(SITES, slot_capacity=4, capacity_bytes=1 << 16)
    slots = [bank.add(name, {"q": lowered_site(SITES[0], 5, 4, [])}) for name in "abc"]
    bank.remove("b")
    size = bank.array.size
    assert bank.add("d", {"q": lowered_site(SITES[0], 6, 2, [])}) == slots[1]
    assert bank.array.size == size


def test_a_row_survives_its_file_form():
    adapter = {s.name: lowered_site(s, 3, 6, ["pair_scale"], shared=True) for s in SITES}
    row = row_from_tensors(row_tensors(pack_row(SITES, adapter)))
    assert_same(unpack_row(SITES, row), adapter)
    bank = AdapterBank(SITES)
    bank.add_row("acme", row)
    assert_same(bank.lowered("acme"), adapter)


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, -1), (0, 1 << 40), (1, -1), (1, 8), (1, 1 << 62), (2, 1), (3, 63), (4, 1 << 60), (5, -1)],
)
def test_a_row_that_points_outside_itself_is_refused(column, value):
    row = pack_row(SITES, {"q": lowered_site(SITES[0], 3, 4, ["output_scale"])})
    row.data[:96].view(np.int64)[column] = value
    with pytest.raises(IncompatibleError):
        AdapterBank(SITES).add_row("acme", row)


def test_a_truncated_row_is_refused():
    row = pack_row(SITES, {"q": lowered_site(SITES[0], 3, 4, [])})
    with pytest.raises(IncompatibleError, match="outside the row"):
        AdapterBank(SITES).add_row("acme", Row(row.data[:-64]))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"v": LoweredSite()}, "no site is named 'v'; the sites are q, k, down"),
        (
            {"k": LoweredSite(output_scale=np.ones(4, np.float32))},
            r"output_scale of 'k' has shape \[4\], but \[3\] is needed",
        ),
        ({"k": LoweredSite(a=np.ones((2, 24), np.float32))}, "one half of a low-rank pair"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_trace(adapter, message):
    bank = AdapterBank(SITES)
    before = bank.array.copy()
    with pytest.raises(IncompatibleError, match=message):
        bank.add("acme", adapter)
    assert np.array_equal(bank.array, before)
    assert bank.tenants == ()


def test_a_name_clash_and_an_unknown_tenant_are_named():
    bank = AdapterBank(SITES)
    bank.add("acme", {})
    with pytest.raises(IncompatibleError, match="tenant 'acme' is in the bank already"):
        bank.add("acme", {})
    with pytest.raises(UsageError, match="unknown tenant 'umbrella'; tenants are acme"):
        bank.slot("umbrella")
