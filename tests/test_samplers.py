"""Samplers: every row once per epoch, in an order that depends only on (seed, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import THOROUGH
from train.batches import Batches
from train.dataset import Dataset, Table, as_table
from train.samplers import Bucketed, Contiguous, Order, Shuffled

SAMPLERS = {
    "shuffled": lambda size: Shuffled(),
    "contiguous": lambda size: Contiguous(),
    "bucketed": lambda size: Bucketed(np.arange(size) % 3, {"inputs": (1, 2, 4)}),
}


def order_of(
    kind: str, size: int, batch_size: int, seed: int | None = 5, padded: int | None = None
) -> Order:
    return SAMPLERS[kind](size).order(size, batch_size, padded or batch_size, seed, None)


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    """Rows of each batch [steps, batch]."""
    first = epoch * order.steps_per_epoch
    return np.stack([order.rows(step) for step in range(first, first + order.steps_per_epoch)])


# ---------------------------------------------------------------- of all


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize(
    ("count", "size", "padded"), [(10, 3, 3), (12, 3, 4), (3, 10, 16), (1, 1, 1), (7, 1, 8)]
)
def test_each_epoch_has_every_row_once_and_pads_what_is_missing(kind, count, size, padded):
    order = order_of(kind, count, size, padded=padded)
    for epoch in range(4):
        rows = epoch_of(order, epoch)
        assert (rows.shape, rows.dtype) == ((order.steps_per_epoch, padded), np.int32)
        assert sorted(rows[rows >= 0]) == list(range(count)), "nothing is dropped"
        assert (rows >= -1).all()
        assert (rows[:, size:] == -1).all(), "padding for devices comes last"
    if kind != "bucketed":
        assert order.steps_per_epoch == -(-count // size)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_rows_are_a_function_of_seed_and_step_only(kind):
    wandering = order_of(kind, 10, 3)
    for step in (7, 0, 3, 3, 11, 1, 0, 7):  # back and forth over epochs
        np.testing.assert_array_equal(wandering.rows(step), order_of(kind, 10, 3).rows(step))
        np.testing.assert_array_equal(
            wandering.with_seed(6).rows(step), order_of(kind, 10, 3, seed=6).rows(step)
        )
        assert wandering.group(step) == order_of(kind, 10, 3).group(step)
    assert wandering.seed == 5
    epochs = [order_of(kind, 100, 10, seed).rows(0).tolist() for seed in (5, 6)]
    epochs += [epoch_of(order_of(kind, 100, 10), epoch).tolist() for epoch in (1, 2)]
    assert len(set(map(str, epochs))) == (2 if kind == "contiguous" else 4), (
        "a text is read in its order"
    )


@pytest.mark.parametrize("kind", SAMPLERS)
def test_returned_rows_are_copies(kind):
    order = order_of(kind, 12, 4)
    before = order.rows(0).copy()
    order.rows(0)[:] = 0
    np.testing.assert_array_equal(order.rows(0), before)


@pytest.mark.parametrize("step", [-1, -2])
def test_negative_steps_are_refused(step):
    for kind in ("shuffled", "bucketed"):
        with pytest.raises(ValueError, match="non-negative"):
            order_of(kind, 3, 2).rows(step)


ROWS = {
    "shuffled": [[6, 7, 4], [2, 5, 0], [9, 8, 3], [1, -1, -1]],
    "contiguous": [[0, 3, 6], [1, 4, 7], [2, 5, 8], [-1, -1, 9]],
    "bucketed": [[6, 0, 9], [3, -1, -1], [4, 1, 7], [5, 8, 2]],
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_orders_equal_earlier_versions(kind):
    """So that earlier runs resume with the next batch."""
    assert epoch_of(order_of(kind, 10, 3), 1).tolist() == ROWS[kind]


# ---------------------------------------------------------------- shuffled


def test_without_a_seed_the_order_is_kept():
    for epoch in (0, 1, 2):
        assert epoch_of(order_of("shuffled", 5, 2, None), epoch).tolist() == [
            [0, 1],
            [2, 3],
            [4, -1],
        ]
        assert epoch_of(order_of("bucketed", 7, 2, None), epoch).tolist() == [
            [0, 3],
            [6, -1],
            [1, 4],
            [2, 5],
        ]


def test_only_the_rows_of_a_pool_are_used():
    order = Shuffled().order(10, 2, 2, 5, np.array([7, 1, 4]))
    assert order.steps_per_epoch == 2
    epochs = [epoch_of(order, epoch) for epoch in range(6)]
    assert all(sorted(rows[rows >= 0]) == [1, 4, 7] for rows in epochs)
    assert len({str(rows) for rows in epochs}) > 1


# ---------------------------------------------------------------- contiguous


@pytest.mark.parametrize(("count", "size"), [(10, 3), (12, 3), (3, 5), (1, 1), (7, 2)])
def test_contiguous_rows_continue_in_the_next_batch(count, size):
    columns = {"inputs": np.arange(count, dtype=np.int32)[:, None], "reset": np.arange(count) == 0}
    batches = Batches(Table(columns, Contiguous()), size, seed=3)
    assert batches.steps_per_epoch == -(-count // size)
    for epoch in (0, 1):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        rows = np.stack([batches.rows(step) for step in steps])
        before, after = rows[:-1], rows[1:]
        assert ((after == before + 1) | (after == -1)).all(), "a row goes on until its stretch ends"
        loaded = [batches.batch(step) for step in steps]
        np.testing.assert_array_equal([batch["mask"] for batch in loaded], rows >= 0)
        assert loaded[0]["reset"][rows[0] >= 0].all(), "an epoch begins anew"
        assert not any(
            batch["reset"][row >= 0].any() for batch, row in zip(loaded[1:], rows[1:], strict=True)
        )
    assert columns["reset"].sum() == 1, "the table is as it was"


def test_documents_reset_within_a_segment():
    table = {
        "inputs": np.arange(8, dtype=np.int32)[:, None],
        "reset": np.isin(np.arange(8), [0, 2]),
    }
    resets = [Batches(table, 2, seed=None).batch(step)["reset"].tolist() for step in range(4)]
    assert resets == [[True, True], [False, False], [True, False], [False, False]]


# ---------------------------------------------------------------- bucketed


@settings(max_examples=100 if THOROUGH else 20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 7))
def test_all_rows_of_a_batch_are_of_one_bucket(buckets, batch_size):
    order = Bucketed(np.array(buckets), {}).order(len(buckets), batch_size, batch_size, 3, None)
    for epoch in (0, 1):
        rows = epoch_of(order, epoch)
        assert sorted(rows[rows >= 0]) == list(range(len(buckets)))
        for step, batch in enumerate(rows, epoch * order.steps_per_epoch):
            assert {buckets[row] for row in batch if row >= 0} == {order.group(step)}


def test_a_batch_is_cut_down_to_the_width_of_its_bucket():
    columns = {
        "inputs": {"a": np.arange(24).reshape(6, 4), "b": np.arange(6)},
        "targets": np.arange(18).reshape(6, 3),
    }
    table = Table(columns, Bucketed(np.array([2, 0, 1, 0, 2, 1]), {"inputs.a": (1, 2, 4)}))
    batches = Batches(table, 2, seed=1)
    widths = []
    for step in range(batches.steps_per_epoch):
        batch, rows = batches.batch(step), batches.rows(step)
        width = (1, 2, 4)[batches.order.group(step)]
        np.testing.assert_array_equal(batch["inputs"]["a"], columns["inputs"]["a"][rows, :width])
        np.testing.assert_array_equal(batch["inputs"]["b"], rows)
        np.testing.assert_array_equal(batch["targets"], columns["targets"][rows])
        widths.append(width)
    assert sorted(widths) == [1, 2, 4]


def test_runs_with_other_seeds_take_other_rows_of_the_same_buckets():
    columns = {"inputs": np.zeros((30, 4)), "mask": np.ones((30, 4), bool)}
    first = Batches(
        Table(columns, Bucketed(np.arange(30) % 3, {"inputs": (1, 2, 4), "mask": (1, 2, 4)})),
        4,
        seed=0,
    )
    other = first.with_seed(1)
    steps = range(3 * first.steps_per_epoch)
    assert [first.order.group(step) for step in steps] == [
        other.order.group(step) for step in steps
    ]
    assert any((first.rows(step) != other.rows(step)).any() for step in steps)
    for step in steps:
        alike = first.alike(step, 5)
        assert {first.order.group(step + index) for index in range(alike)} == {
            first.order.group(step)
        }
        assert alike == 5 or first.order.group(step + alike) != first.order.group(step)


# ---------------------------------------------------------------- tables


def test_tables_with_resets_are_contiguous():
    assert as_table({"inputs": np.zeros(3)}).sampler == Shuffled()
    assert as_table({"inputs": np.zeros(3), "reset": np.zeros(3, bool)}).sampler == Contiguous()
    table = Table({"inputs": np.zeros(3)}, Contiguous())
    assert as_table(table) is table


def test_joined_tables_keep_their_sampler_and_extras():
    def table(first: int, count: int, **more) -> Table:
        rows = np.arange(first, first + count)
        extras = {"boxes": rows[:, None], "sentences": tuple(map(str, rows)), **more}
        return Table({"inputs": rows}, Bucketed(rows % 2, {"inputs": (1, 2)}), extras)

    joined = table(0, 3).joined([table(3, 2), table(5, 1, references=("only here",))])
    assert joined.size == 6
    assert joined["inputs"].tolist() == [0, 1, 2, 3, 4, 5]
    assert isinstance(joined.sampler, Bucketed)
    assert joined.sampler.buckets.tolist() == [0, 1, 0, 1, 0, 1]
    assert joined.sampler.widths == {"inputs": (1, 2)}
    assert joined.extras["boxes"].tolist() == [[0], [1], [2], [3], [4], [5]]
    assert joined.extras["sentences"] == tuple("012345")
    assert joined.extras.keys() == {"boxes", "sentences"}
    assert Shuffled().joined([Shuffled()]) == Shuffled()
    assert Contiguous().joined([Contiguous()]) == Contiguous()


def test_other_columns_of_the_same_rows_keep_the_rest():
    table = Table(
        {"inputs": np.arange(3)}, Bucketed(np.arange(3), {}), {"sentences": ("a", "b", "c")}
    )
    other = table.having(targets=np.ones(3))
    assert list(other) == ["inputs", "targets"]
    assert (other.sampler, other.extras) == (table.sampler, table.extras)
    assert list(table) == ["inputs"]


def test_a_fingerprint_changes_with_buckets_and_extras():
    def fingerprint(buckets=(0, 1, 1), sentences=("a", "b", "c"), boxes=(1, 2, 3)) -> str:
        extras = {"sentences": sentences, "boxes": np.array(boxes)}
        table = Table({"inputs": np.arange(3)}, Bucketed(np.array(buckets), {}), extras)
        return Dataset("mine", {"train": table}).fingerprint

    prints = [
        fingerprint(),
        fingerprint((0, 0, 1)),
        fingerprint(sentences=("a", "b", "d")),
        fingerprint(boxes=(1, 2, 4)),
    ]
    assert len(set(prints)) == 4
    assert fingerprint() == prints[0]
