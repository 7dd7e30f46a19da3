"""Which worker makes which batch, with batches that are numbers and a clock that is an argument."""

import random

import pytest

from tpusd.plan.batches import Batch
from tpusd.runs.executors.schedule import MAX_LOSSES, Schedule

A, B = "a", "b"


def batches(number):
    """As many batches, of which each holds its own number."""
    return [Batch(entries=((place, None),)) for place in range(number)]


def schedule(number, *workers, unit_seconds=10.0):
    made = Schedule(iter(batches(number)), unit_seconds=unit_seconds)
    for worker in workers:
        made.join(worker)
    return made


def numbers(tasks):
    return [task.batch.entries[0][0] for task in tasks]


def name(batch):
    return None if batch is None else batch.entries[0][0]


def feed_and_make(plan, worker, seconds, now=0.0):
    """One unit after another, until the worker gets no more."""
    made = []
    while unit := plan.feed(worker, now):
        made += [name(plan.made(worker, task.number, seconds, now)) for task in unit]
    return made


def test_units_grow_to_the_seconds_that_were_asked_for():
    plan = schedule(1000, A, unit_seconds=60.0)
    sizes = []
    for _ in range(6):
        unit = plan.feed(A, 0.0)
        sizes.append(len(unit))
        for task in unit:
            plan.made(A, task.number, 2.0, 0.0)
    assert sizes == [1, 4, 16, 30, 30, 30]


def test_slow_worker_gets_smaller_units():
    plan = schedule(1000, A, B, unit_seconds=60.0)
    for worker, seconds in ((A, 1.0), (B, 2.0)):
        for _ in range(5):
            unit = plan.feed(worker, 0.0)
            for task in unit:
                plan.made(worker, task.number, seconds, 0.0)
        assert len(unit) == 60 / seconds


def test_worker_always_has_a_batch_ahead_and_no_second_unit():
    plan = schedule(100, A)
    assert len(plan.feed(A, 0.0)) == 1 and len(plan.feed(A, 0.0)) == 1
    assert plan.feed(A, 0.0) == []


def test_batches_of_a_lost_worker_go_to_others_and_none_is_made_twice():
    plan = schedule(20, A, B)
    held = [task for _ in range(2) for task in plan.feed(A, 0.0)]
    assert plan.lose(A) == []
    made = feed_and_make(plan, B, 1.0)
    assert sorted(made) == list(range(20)) and len(held) == 2
    assert plan.finished


def test_batch_that_ends_three_workers_is_set_aside_and_the_rest_is_made():
    plan = schedule(9, A, unit_seconds=100.0)
    poison, made, lost, worker = 4, [], [], 0
    while not plan.finished:
        unit = plan.feed(A, 0.0)
        for task in unit:
            if name(task.batch) == poison:
                lost += plan.lose(A)
                plan.join(A)
                worker += 1
                break
            made.append(name(plan.made(A, task.number, 1.0, 0.0)))
    assert sorted(made) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert worker == MAX_LOSSES and [name(one.batch) for one in lost] == [poison] and lost[0].num_workers == MAX_LOSSES


def test_batch_that_may_end_a_worker_is_made_with_no_other_behind_it():
    plan = schedule(9, A, B)
    (first,) = plan.feed(A, 0.0)
    plan.lose(A)
    plan.join(A)
    assert plan.feed(A, 0.0) == [first] and first.losses == 1
    assert plan.feed(A, 0.0) == []


def test_batch_behind_the_one_that_is_blamed_is_made_alone_too():
    """The first may be made already, and its result lost with the worker: then the second ended it."""
    plan = schedule(9, A, B)
    first, second = plan.feed(A, 0.0) + plan.feed(A, 0.0)
    plan.lose(A)
    assert plan.feed(B, 0.0) == [first] and plan.feed(B, 0.0) == []
    plan.made(B, first.number, 1.0, 0.0)
    assert plan.feed(B, 0.0) == [second] and plan.feed(B, 0.0) == [] and (first.losses, second.losses) == (1, 0)
    plan.lose(B)
    assert second.losses == 1


def test_worker_that_is_refused_blames_no_batch():
    plan = schedule(3, A)
    for _ in range(MAX_LOSSES + 2):
        assert len(plan.feed(A, 0.0)) == 1 and plan.lose(A, blame=False) == []
        plan.join(A)
    assert sorted(feed_and_make(plan, A, 1.0)) == [0, 1, 2]


def test_idle_worker_takes_over_the_later_half_of_what_a_slow_one_has():
    plan = schedule(9, A, B, unit_seconds=100.0)
    (first,) = plan.feed(A, 0.0)
    plan.made(A, first.number, 10.0, 0.0)
    held = plan.feed(A, 0.0) + plan.feed(A, 0.0)
    assert numbers(held) == [1, 2, 3, 4]
    rest = [plan.feed(B, 0.0)]
    plan.made(B, rest[0][0].number, 1.0, 0.0)
    assert numbers(rest[0]) == [5]
    last = plan.feed(B, 0.0)
    assert numbers(last) == [6, 7, 8]
    for task in last:
        plan.made(B, task.number, 1.0, 3.0)
    taken = plan.feed(B, 4.0)
    assert numbers(taken) == [3, 4] and plan.drops() == [(A, task.number) for task in taken]
    assert plan.drops() == []


def test_last_batch_is_made_twice_and_the_first_to_be_made_counts():
    plan = schedule(2, A, B)
    (slow,) = plan.feed(A, 0.0)
    (fast,) = plan.feed(B, 0.0)
    assert name(plan.made(B, fast.number, 1.0, 1.0)) == 1
    assert plan.feed(B, 1.0) == [slow]
    assert name(plan.made(B, slow.number, 1.0, 2.0)) == 0 and plan.finished
    assert plan.drops() == [(A, slow.number)]
    assert plan.made(A, slow.number, 9.0, 9.0) is None


def test_last_batch_is_not_made_twice_where_its_worker_is_sooner_done():
    plan = schedule(4, A, B)
    for worker, seconds in ((A, 1.0), (B, 5.0)):
        (task,) = plan.feed(worker, 0.0)
        plan.made(worker, task.number, seconds, 0.0)
    plan.feed(A, 0.0)
    (task,) = plan.feed(B, 0.0)
    plan.made(B, task.number, 5.0, 0.5)
    assert plan.feed(B, 0.5) == []


def test_batch_whose_second_worker_is_lost_is_still_made_by_the_first():
    plan = schedule(1, A, B)
    (task,) = plan.feed(A, 0.0)
    assert plan.feed(B, 5.0) == [task]
    plan.lose(B)
    assert not plan.finished and plan.feed(A, 5.0) == []
    assert name(plan.made(A, task.number, 1.0, 6.0)) == 0 and plan.finished


def test_batch_that_fails_is_tried_by_another_worker_and_then_counts_as_failed():
    plan = schedule(1, A, B)
    (task,) = plan.feed(A, 0.0)
    assert plan.failed(A, task.number) is None and plan.feed(A, 0.0) == []
    assert plan.feed(B, 0.0) == [task]
    assert name(plan.failed(B, task.number)) == 0 and plan.finished


def test_batch_that_fails_on_the_only_worker_has_failed():
    plan = schedule(2, A)
    (task,) = plan.feed(A, 0.0)
    assert name(plan.failed(A, task.number)) == 0 and not plan.finished


def test_batch_of_several_runs_that_fails_is_tried_run_by_run():
    runs = object(), object()
    plan = Schedule(iter([Batch(entries=((runs[0], 1), (runs[0], 2), (runs[1], 3)))]), unit_seconds=1.0)
    plan.join(A)
    (task,) = plan.feed(A, 0.0)
    assert plan.failed(A, task.number) is None
    parts = plan.feed(A, 0.0) + plan.feed(A, 0.0)
    assert [[spec for _, spec in part.batch.entries] for part in parts] == [[1, 2], [3]]
    assert plan.failed(A, parts[0].number).specs == (1, 2)
    assert plan.made(A, parts[1].number, 1.0, 1.0).specs == (3,) and plan.finished


def test_batch_of_a_lost_worker_does_not_wait_for_one_that_has_just_started():
    plan = schedule(2, A, B)
    (lost,) = plan.feed(A, 0.0)
    (task,) = plan.feed(B, 0.0)
    plan.lose(A)
    plan.join(A)
    assert plan.feed(A, 0.0) == [lost]
    plan.made(B, task.number, 1.0, 1.0)
    assert plan.feed(B, 1.0) == [lost]


@pytest.mark.parametrize("seed", range(30))
def test_every_batch_is_made_once_whatever_happens(seed):
    """Workers of any pace come, go, fail and are slow, in any order; a batch that is poison is set aside."""
    chance = random.Random(seed)
    number, poison = chance.randrange(1, 200), {3, 50} if seed % 3 else set()
    plan = schedule(number, unit_seconds=chance.choice([0.1, 5.0, 60.0]))
    queues, paces, made, lost = {}, {}, [], []
    now = 0.0
    for step in range(100_000):
        if plan.finished:
            break
        now += 0.1
        if len(queues) < 1 or (len(queues) < 8 and chance.random() < 0.2):
            worker = f"w{step}"
            plan.join(worker)
            queues[worker], paces[worker] = [], chance.choice([0.5, 1.0, 2.0])
        worker = chance.choice(list(queues))
        queues[worker] += plan.feed(worker, now)
        for holder, dropped in plan.drops():
            if holder in queues and chance.random() < 0.8:  # the word may come too late
                queues[holder][1:] = [task for task in queues[holder][1:] if task.number != dropped]
        if not queues[worker]:
            continue
        task = queues[worker][0]
        if name(task.batch) in poison or chance.random() < 0.02:
            del queues[worker]
            lost += [name(one.batch) for one in plan.lose(worker)]
            continue
        queues[worker].pop(0)
        made.append(name(plan.made(worker, task.number, paces[worker], now)))
    counted = [one for one in made if one is not None]
    assert plan.finished and len(set(counted)) == len(counted) and sorted(counted + lost) == list(range(number))
    assert poison & set(range(number)) <= set(lost)
