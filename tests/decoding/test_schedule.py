"""Which request goes to which group: every one once, each group to one prompt, and no row idle that could work."""

import numpy as np
import pytest

from lpe_jax.decoding.schedule import Schedule
from lpe_jax.types import Request


def run(schedule, requests, rng, trickle=False):
    """Plays the device: rows take tickets from the front of the queue and finish them at random. Returns who did what
    as (group, prompt id of the group, request), and the share of rows at work while requests waited.
    """
    prompts, seen, busy = {}, [], []
    rows = [[] for _ in range(schedule.groups)]  # tickets under way
    serials = np.zeros((schedule.groups, schedule.tickets), int)
    left = list(requests)
    while left or schedule.held or schedule.waiting:
        n = schedule.room if not trickle else int(rng.integers(0, schedule.room + 1))
        schedule.add(left[:n])
        left = left[n:]
        moved, given = schedule.hand_out()
        for group, prompt_id in moved.items():
            assert not rows[group], "a group that is at work keeps its prompt"
            prompts[group] = prompt_id
        for group, ticket, serial, request in given:
            assert serial > 0 and serials[group, ticket] != serial
            serials[group, ticket] = serial
            assert prompts[group] == request.prompt_id
        assert_shared_out(schedule, prompts)
        queue, end = schedule.queues()
        taken = np.minimum(end, [schedule.rows - len(own) for own in rows])
        for group, own in enumerate(rows):
            own.extend(queue[group, : taken[group]].tolist())
            assert len(own) == len(set(own)) <= schedule.rows
        schedule.take(taken)
        if left and not trickle:
            busy.append(sum(map(len, rows)) / (schedule.groups * schedule.rows))
        finished = np.zeros_like(serials)
        for group, own in enumerate(rows):
            for ticket in [t for t in own if rng.random() < 0.4]:
                own.remove(ticket)
                finished[group, ticket] = serials[group, ticket]
        seen += [(group, request) for group, _, request in schedule.finish(finished)]
    return seen, np.mean(busy or [1.0])


def assert_shared_out(schedule, prompts):
    """In the end no request waits for a row while another group could draw it: one of its prompt, or an idle one."""
    if schedule.waiting:
        return
    held = {}
    for group, prompt_id in prompts.items():
        held.setdefault(prompt_id, []).append(schedule._held_by(group))
    idle = schedule.groups - len(prompts) + sum(own.count(0) for own in held.values())
    for own in held.values():
        assert max(own) <= max(schedule.rows, min(own) + 1)
        assert max(own) <= schedule.rows or not idle


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize("groups, rows", [(1, 1), (1, 8), (4, 3), (16, 2)])
def test_every_request_is_served_once(groups, rows, trickle):
    rng = np.random.default_rng(groups * 10 + rows)
    requests = [Request(f"p{rng.integers(7)}", 0.5, i) for i in range(300)]
    seen, _ = run(Schedule(groups, rows, 2 * rows), requests, rng, trickle)
    assert sorted(r.index for _, r in seen) == list(range(300))


def test_one_prompt_is_spread_over_all_groups():
    seen, busy = run(Schedule(8, 4, 8), [Request("p", 1.0, i) for i in range(2000)], np.random.default_rng(0))
    assert {group for group, _ in seen} == set(range(8)) and busy == 1.0


def test_rows_stay_busy_with_many_prompts():
    """Orders of twenty each; and the worst case, in which prompts take turns, so that few of one are in sight."""
    for order, least in ((20, 0.85), (5, 0.85), (1, 0.85)):
        requests = [Request(f"p{i // order % 40}", 0.5, i) for i in range(4000)]
        assert run(Schedule(8, 4, 16), requests, np.random.default_rng(1))[1] > least


def test_room_counts_what_waits_and_what_is_held():
    schedule = Schedule(2, 2, 4)
    assert schedule.room == 32
    schedule.add([Request("a", 1.0, i) for i in range(5)])
    assert schedule.room == 27
    schedule.hand_out()
    assert (schedule.held, schedule.waiting, schedule.room) == (5, 0, 27)


def test_a_prompt_without_a_group_comes_to_its_turn():
    """Though another one has more than enough for all groups, and was there first."""
    schedule, rng = Schedule(4, 4, 8), np.random.default_rng(3)
    requests = [Request("many", 1.0, i) for i in range(2000)]
    seen, _ = run(schedule, [*requests[:100], Request("few", 1.0, 0), *requests[100:]], rng)
    served = [request.prompt_id for _, request in seen]
    assert len(served) == 2001 and served.index("few") < 200


def test_a_group_keeps_a_prompt_that_asks_again():
    """As an adaptive procedure does, order by order; else every order would have its prompt computed anew."""
    schedule, moves = Schedule(4, 2, 8), 0
    for order in range(10):
        for prompt in range(8):
            schedule.add([Request(f"p{prompt}", 0.5, 2 * order + i) for i in range(2)])
        while schedule.held or schedule.waiting:
            moved, given = schedule.hand_out()
            moves += len(moved)
            schedule.take(schedule.queues()[1])
            finished = np.zeros((4, 8), int)
            for group, ticket, serial, _ in given:
                finished[group, ticket] = serial
            schedule.finish(finished)
    # Four of the eight are there when an order begins, and the other four take their groups.
    assert moves == 8 + 9 * 4


def test_a_group_that_ran_dry_and_has_another_prompt_is_given_requests():
    """It had queued requests alone, as where all rows end with the last step of a look."""
    schedule = Schedule(2, 1, 4)
    schedule.add([Request("long", 1.0, i) for i in range(100)])
    _, given = schedule.hand_out()
    schedule.take(np.array([1, 1]))
    finished = np.zeros((2, 4), int)
    for group in (0, 1):
        _, ticket, serial, _ = next(g for g in given if g[0] == group)
        finished[group, ticket] = serial
    schedule.finish(finished)
    schedule.add([Request("few", 1.0, 0)])
    moved, given = schedule.hand_out()
    assert list(moved.values()) == ["few"]
    (number,) = moved
    assert [request for group, _, _, request in given if group == number] == [Request("few", 1.0, 0)]


def test_prompts_share_groups_by_what_is_asked_of_each():
    schedule = Schedule(8, 4, 16)
    schedule.add([Request("many", 1.0, i) for i in range(300)] + [Request("few", 1.0, i) for i in range(100)])
    moved, given = schedule.hand_out()
    assert sorted(moved.values()) == ["few"] * 2 + ["many"] * 6
    assert all(sum(group == number for group, *_ in given) == 16 for number in range(8))


def test_what_no_row_has_taken_goes_where_rows_are_free():
    """Of twenty requests a group had all; half of the groups come free when it has drawn four."""
    schedule = Schedule(2, 4, 20)
    schedule.add([Request("other", 1.0, 0), *(Request("p", 1.0, i) for i in range(20))])
    _, given = schedule.hand_out()
    ticket = {request: (group, ticket, serial) for group, ticket, serial, request in given}
    assert ticket[Request("other", 1.0, 0)][0] == 0 and {at[0] for r, at in ticket.items() if r.prompt_id == "p"} == {1}
    schedule.take(np.array([1, 8]))
    finished = np.zeros((2, 20), int)
    for request in [Request("other", 1.0, 0), *(Request("p", 1.0, i) for i in range(4))]:
        group, number, serial = ticket[request]
        finished[group, number] = serial
    assert len(schedule.finish(finished)) == 5
    moved, given = schedule.hand_out()
    assert moved == {0: "p"}
    # Group 1 goes on with the four that it draws; of the twelve others each gets as many as makes both even.
    assert sorted(request.index for *_, request in given) == list(range(8, 20))
    assert [sum(group == number for group, *_ in given) for number in (0, 1)] == [8, 4]
    assert (schedule.held, schedule.waiting) == (16, 0)
