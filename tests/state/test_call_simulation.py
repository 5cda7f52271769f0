"""The fold and the sweep against a model of LiveKit: whatever is lost, doubled, late or crashed, the hub ends up right.

More examples with HUB_SIMULATIONS=5000.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.state.facts import Source
from tests.state.world import Faults, World

EXAMPLES = int(os.environ.get("HUB_SIMULATIONS", "120"))
PEOPLE = ["anna", "bob", "bob:phone", "carl"]

identities = st.sampled_from(PEOPLE)
sources: st.SearchStrategy[Source] = st.sampled_from(["microphone", "camera", "screen_share"])
steps = st.one_of(
    st.tuples(st.just("join"), identities),
    st.tuples(st.just("join"), identities),
    st.tuples(st.just("leave"), identities),
    st.tuples(st.just("reconnect"), identities),
    st.tuples(st.just("vanish"), identities),
    st.tuples(st.just("publish"), identities, sources),
    st.tuples(st.just("unpublish"), identities),
    st.tuples(st.just("mute"), identities, st.booleans()),
    st.tuples(st.just("say_goodbye"), identities),
    st.tuples(st.just("kick"), identities),
    st.tuples(st.just("readmit"), identities),
    st.tuples(st.just("attach"), identities),
    st.tuples(st.just("detach"), identities),
    st.tuples(st.just("crash")),
    st.tuples(st.just("shut_down")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("run"), st.floats(0.1, 40, allow_nan=False)),
    st.tuples(st.just("run"), st.floats(0.1, 3, allow_nan=False)),
)
faults = st.builds(
    Faults,
    loss=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    duplicates=st.sampled_from([0.0, 0.3]),
    delay_s=st.sampled_from([0.1, 5.0, 20.0]),
    sweep_fails=st.sampled_from([0.0, 0.1, 0.5]),
)


def play(script: list[tuple[Any, ...]], how: Faults, seed: int) -> World:
    world = World(PEOPLE, how, seed)
    for name, *arguments in script:
        getattr(world, name)(*arguments)
        world.run(0.5)
    return world


def calm_down(world: World) -> None:
    """LiveKit is there, nothing is lost any more, and two sweeps pass after the last thing that happened."""
    world.restart()
    world.quiet = True
    for _ in range(600):
        world.run(1)
        if world.sweeps_since >= 2 and not world.lost and not world.busy:
            return
    raise AssertionError("the world does not come to rest")


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=25), faults, st.integers(0, 2**32))
def test_the_hub_is_right_two_sweeps_after_the_last_disturbance(
    script: list[tuple[Any, ...]], how: Faults, seed: int
) -> None:
    """S-040, S-189, S-248: lost, doubled, late and swapped webhooks, crashes, failing sweeps."""
    world = play(script, how, seed)
    calm_down(world)
    if world.state.status == "ended":
        assert world.room is None
        return
    assert world.believed() == world.connected()
    for identity in world.connected():
        assert world.state.participants[world.people[identity]].media == world.media(identity)
    if world.state.status == "active":
        assert world.room is not None
        assert world.state.room_sid == world.room.sid


@settings(max_examples=max(20, EXAMPLES // 3), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=25), faults, st.integers(0, 2**32))
def test_what_is_told_is_a_story(script: list[tuple[Any, ...]], how: Faults, seed: int) -> None:
    """The call starts once and ends once; nobody leaves who did not come; nobody is forgotten in an ended call."""
    world = play(script, how, seed)
    calm_down(world)
    world.end()
    world.run(5)
    assert world.told.count("started") <= 1
    assert world.told.count("ended") == 1
    assert world.told.count("joined") == world.told.count("left")
    inside = 0
    for kind in world.told:
        inside += (kind == "joined") - (kind == "left")
        assert inside >= 0
    assert world.room is None
    assert not any(person.status in ("joined", "reconnecting") for person in world.state.participants.values())


@settings(max_examples=max(20, EXAMPLES // 3), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=1, max_size=15), st.integers(0, 2**32))
def test_empty_calls_end(script: list[tuple[Any, ...]], seed: int) -> None:
    """A call that was active and that everybody has left ends by itself, whatever was lost on the way."""
    world = play(script, Faults(loss=0.3, duplicates=0.3, delay_s=5.0, sweep_fails=0.1), seed)
    calm_down(world)
    was_active = world.state.started_at is not None
    for identity in PEOPLE:
        world.leave(identity)
        world.detach(identity)
    # Tokens that were given out hold their seats for a while, but not the call.
    world.run(120)
    assert world.state.status == ("ended" if was_active else "waiting")
