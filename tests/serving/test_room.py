"""Room for so much at one time, in which the largest gives way to the smaller."""

from __future__ import annotations

import asyncio

import pytest

from adapt.serving.admission import PATIENCE, Crowded, Room


async def held(room: Room, size: int, ended: dict[int, str]) -> None:
    """Holds room until it is told to end, and notes how it ended."""
    try:
        async with room.hold(size):
            await asyncio.Event().wait()
    except Crowded as error:
        ended[size] = str(error)


def test_the_largest_gives_way_to_a_smaller_one_and_no_equal_one_comes_in() -> None:
    async def main() -> dict[int, str]:
        room, ended = Room(100, "bytes"), dict[int, str]()
        tasks = [asyncio.create_task(held(room, size, ended)) for size in (60, 30)]
        await asyncio.sleep(0)
        with pytest.raises(
            Crowded, match="the request has 61 bytes, and with those being answered that is more than 100"
        ):
            async with room.hold(61):
                pass
        assert ended == {}
        async with room.hold(20):
            await asyncio.gather(tasks[0])
            assert list(ended) == [60]
            async with room.hold(50):
                assert list(ended) == [60]
        tasks[1].cancel()
        return ended

    assert "the request has 60 bytes" in asyncio.run(main())[60]


def test_what_was_held_is_free_again_and_other_times_run_out_as_they_would() -> None:
    async def main() -> None:
        room = Room(100, "pixels")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001), room.hold(100):
                    await asyncio.Event().wait()
        with pytest.raises(Crowded):
            async with room.hold(101):
                pass
        async with room.hold(100):
            pass

    asyncio.run(main())


def test_room_that_comes_within_a_second_is_taken() -> None:
    async def main() -> float:
        room, loop = Room(100, "bytes"), asyncio.get_running_loop()
        task = asyncio.create_task(held(room, 80, {}))
        await asyncio.sleep(0)
        loop.call_later(0.1, task.cancel)
        began = loop.time()
        async with room.hold(90):
            return loop.time() - began

    assert 0.1 <= asyncio.run(main()) < PATIENCE
