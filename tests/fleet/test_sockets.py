"""Live pages and pages at once, of two web processes over PostgreSQL: counts; for figures see tests.bench.sockets."""

import asyncio
import json

import psycopg
import pytest

from tests import postgresql
from tests.bench import sockets
from tests.trust.amounts import amount, figure

pytestmark = pytest.mark.skipif(postgresql.programs() is None, reason="PostgreSQL is not installed")
PROCESSES = 2


@pytest.fixture(scope="module")
def site():
    with sockets.site(jobs=20, processes=PROCESSES) as at:
        yield at


def test_sockets_see_progress_and_pages_come_within_the_budget_of_connections(site):
    seen = sockets.Seen()
    sizes = sockets.Sizes(amount(60, 10), amount(200, 20), 2, site.began)
    asyncio.run(sockets.load(seen, site.base, site.cookies, site.numbers, sizes, site.address, site.web))
    figure(f"live pages: {'; '.join(sockets.figures(seen, PROCESSES))}")
    assert set(seen.answers) == {"200"}
    assert (seen.opened, dict(seen.closed)) == (sizes.sockets, {})
    assert len(seen.heard) == seen.followed
    assert max(seen.connections) <= sockets.budget(PROCESSES)


def test_more_than_can_be_answered_is_refused_with_a_time_to_come_back_and_connections_stay_bounded(site):
    answers, connections = asyncio.run(burst(site, 150))
    statuses = {int(answer.split(b" ", 2)[1]) for answer in answers}
    refused = [answer for answer in answers if b" 503 " in answer[:20]]
    figure(f"of 150 pages at once {len(refused)} were refused, {connections} connections at most")
    assert statuses == {200, 503}
    assert all(b"retry-after: 5" in answer.lower() for answer in refused)
    assert connections <= sockets.budget(PROCESSES)


async def burst(site, pages):
    """The answers to so many pages at once, and the most connections that PostgreSQL saw meanwhile."""
    most, over = 0, False

    async def count():
        nonlocal most
        address = site.address.replace("postgres://", "postgresql://") + "&application_name=bench"
        async with await psycopg.AsyncConnection.connect(address, autocommit=True) as database:
            while not over:
                found = await database.execute(sockets.CONNECTIONS)
                most = max(most, int((await found.fetchone())[0]))
                await asyncio.sleep(0.05)

    counting = asyncio.create_task(count())
    answers = await asyncio.gather(*(sockets.get(site.base, "/", site.cookies["ada"]) for _ in range(pages)))
    live = await sockets.get(site.base, "/healthz/live", "")
    assert json.loads(live.rpartition(b"\r\n\r\n")[2]) == {"live": True}
    over = True
    await counting
    return answers, most
