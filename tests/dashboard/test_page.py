"""The page in a real browser: what it shows, what it does, and what it does not let happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from asyncpool import DeadLetterFile, DeadLetters, WorkerPool
from asyncpool.dashboard import serve_dashboard
from asyncpool.dashboard.assets import ASSETS
from tests.dashboard.browser import BROWSER, DRIVER, MISSING, browser
from tests.dashboard.scene import scene
from tests.dashboard.tools import TOKEN
from tests.dashboard.webdriver import ENTER, ESCAPE, LEFT, TAB, Driver, Element
from tests.helpers import echo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason=MISSING),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Driver]:
    with browser() as driver:
        yield driver


@pytest.fixture
def page(chromium: Driver) -> Iterator[Page]:
    chromium.get("about:blank")
    chromium.console()
    page = Page(chromium)
    yield page
    # Nothing was blocked by the policy of the page, and its script raised nothing.
    messages = chromium.console()
    assert [message for message in messages if not any(known in message for known in page.expected)] == []


class Page:
    """The page, as its user sees it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        # What the console may show: the server can be gone before the page is.
        self.expected = ["net::ERR_CONNECTION_REFUSED"]

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # a change of the fragment alone loads nothing
        self.driver.get(url)

    def one(self, selector: str) -> Element:
        return self.driver.find(selector)[0]

    def all(self, selector: str) -> list[Element]:
        return self.driver.find(selector)

    def text(self, selector: str) -> str:
        text: str = self.driver.run(
            "const node = document.querySelector(arguments[0]); return node ? node.innerText : ''", selector
        )
        return text

    def figure(self, label: str) -> str:
        text: str = self.driver.run(
            "const found = [...document.querySelectorAll('#figures > div')].find(one => one.firstChild.innerText === "
            "arguments[0]); return found ? found.querySelector('.big').innerText : ''",
            label,
        )
        return text

    def button(self, text: str, within: str = "body") -> Element:
        return next(button for button in self.all(f"{within} button") if button.text == text)

    def until(self, condition: Callable[[], object]) -> None:
        self.driver.wait_until(condition)

    def until_live(self) -> None:
        self.until(lambda: self.text("#link") == "Live")


def browse(steps: Callable[[], None]) -> Any:
    return asyncio.to_thread(steps)


def served(*pools: WorkerPool[Any, Any], **options: Any) -> serve_dashboard:
    given: dict[str, Any] = {"token": TOKEN, "announce": None}
    return serve_dashboard(*pools, **given | options)


def test_the_figures_move(page: Page) -> None:
    async def main() -> None:
        async with scene() as pools, served(*pools) as server:

            def steps() -> None:
                page.open(server.url)
                page.until_live()
                page.until(lambda: page.figure("Succeeded") not in ("", "0"))
                before = page.figure("Succeeded")
                page.until(lambda: page.figure("Succeeded") != before)
                page.until(lambda: len(page.all("#running tr")) > 0)
                assert [name.text for name in page.all("#pools th button")] == ["campaign", "thumbnails", "reports"]
                assert "Paused" in page.text("#pools tr:nth-child(3)")
                page.until(lambda: page.one("figure path.c0").attribute("d"))
                assert page.text("figcaption span") == "1 min"
                page.driver.run("document.querySelector('#moment').focus()")
                page.driver.active().type(LEFT)
                assert page.text("figcaption span") == "1 s ago"
                assert page.one("#moment").attribute("aria-valuetext").startswith("1 s ago: Jobs per second: ended ")
                page.driver.active().type(TAB)
                assert page.text("figcaption span") == "1 min"
                page.button("reports").click()
                page.until(lambda: page.text("#name") == "reports")
                assert page.text("#state") == "Paused"
                assert not page.one("#actions").is_displayed()

            await browse(steps)

    asyncio.run(main())


def test_a_replay_from_the_page_runs_the_job_again(page: Page) -> None:
    is_broken = True
    runs: list[int] = []

    async def handler(job: int) -> None:
        runs.append(job)
        if is_broken:
            raise ConnectionError(f"no route to host {job}")

    async def main() -> None:
        nonlocal is_broken
        letters: DeadLetters[int] = DeadLetters()
        async with WorkerPool(handler, workers=2, dead_letters=letters) as pool:
            await pool.outcomes(range(5))
            is_broken = False
            runs.clear()
            async with served(pool, actions=True) as server:

                def steps() -> None:
                    page.open(server.url)
                    page.until(lambda: "5 \u00d7 ConnectionError" in page.text("#letters summary"))
                    page.one("#letters summary").click()
                    page.button("Replay", "#letters tbody").click()  # of the newest
                    page.until(lambda: page.text("#said") == "Replayed 1 job.")
                    page.until(lambda: page.text("#letters-note") == "4 letters")
                    assert page.driver.run("return document.activeElement.id") == "letters-card"  # not another letter
                    page.until(lambda: page.figure("Succeeded") == "1")
                    page.button("Discard…", "#letters tbody").click()
                    page.until(lambda: page.one("#ask").is_displayed())
                    page.button("Cancel", "#ask").click()
                    page.button("Discard…", "#letters tbody").click()
                    page.until(lambda: page.one("#ask").is_displayed())
                    page.button("Discard", "#ask").click()
                    page.until(lambda: page.text("#letters-note") == "3 letters")
                    page.button("Replay all").click()
                    page.until(lambda: page.text("#letters-note") == "None.")
                    page.until(lambda: page.figure("Succeeded") == "4")

                await browse(steps)
            assert len(runs) == 4
            assert len(letters) == 0

    asyncio.run(main())


def test_the_letters_of_one_pool_are_not_shown_as_those_of_another(page: Page, tmp_path: Path) -> None:
    page.expected += ["409 (Conflict)"]
    path, moved = tmp_path / "letters", tmp_path / "moved"

    async def handler(job: int) -> None:
        raise ConnectionError(f"no route to host {job}")

    async def main() -> None:
        async with (
            WorkerPool(handler, workers=2, dead_letters=DeadLetters[int](), name="first") as first,
            WorkerPool(handler, workers=2, dead_letters=DeadLetterFile[int](path), name="second") as second,
            served(first, second, actions=True) as server,
        ):
            await first.outcomes(range(5))
            await second.outcomes(range(3))
            path.rename(moved)
            path.mkdir()  # cannot be read

            def steps() -> None:
                page.open(server.url)
                page.until(lambda: page.text("#letters-note") == "5 letters")
                page.button("second").click()
                page.until(lambda: "cannot be read" in page.text("#letters-note"))
                assert page.text("#letters") == ""
                assert page.all("#letters-actions button") == []  # they would discard letters that are not shown
                path.rmdir()
                moved.rename(path)
                page.driver.run("letters.due = 0")  # the page tries again after three seconds
                page.until(lambda: page.text("#letters-note") == "3 letters")

            await browse(steps)

    asyncio.run(main())


def test_a_question_about_the_last_program_is_closed_when_the_next_one_answers(page: Page) -> None:
    page.expected += ["net::ERR_"]

    async def main() -> None:
        async with WorkerPool(echo, workers=1, name="first") as pool, served(pool, actions=True) as server:

            def begin() -> None:
                page.open(server.url)
                page.until_live()
                page.button("Drain…").click()
                page.until(lambda: page.one("#ask").is_displayed())

            await browse(begin)
        async with WorkerPool(echo, workers=1, name="second") as pool:
            async with served(pool, port=server.port, actions=True):

                def again() -> None:
                    page.until(lambda: page.text("#name") == "second")
                    page.until(lambda: not page.one("#ask").is_displayed())

                await browse(again)
            assert pool.state == "open"

    asyncio.run(main())


def test_pools_are_paused_resized_and_drained_by_keyboard(page: Page) -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=2) as pool, served(pool, actions=True) as server:

            def press(text: str) -> None:
                page.driver.run("arguments[0].focus()", page.button(text, "#actions"))
                page.driver.active().type(ENTER)

            def steps() -> None:
                page.open(server.url)
                page.until(lambda: page.text("#state") == "Open")
                press("Pause")
                page.until(lambda: page.text("#state") == "Paused")
                assert page.driver.active().text == "Resume"  # the focus stays
                page.driver.active().type(ENTER)
                page.until(lambda: page.text("#state") == "Open")
                press("Resize…")
                page.until(lambda: page.one("#ask-input").is_displayed())
                page.one("#ask-input").clear()
                page.one("#ask-input").type("7", TAB, TAB)
                page.driver.active().type(ENTER)
                page.until(lambda: "at most 7" in page.text("#figures"))
                press("Drain…")
                page.until(lambda: page.one("#ask").is_displayed())
                page.driver.active().type(ESCAPE)
                page.until(lambda: not page.one("#ask").is_displayed())
                assert page.text("#state") == "Open"
                press("Drain…")
                page.until(lambda: page.one("#ask").is_displayed())
                page.button("Drain", "#ask").click()
                page.until(lambda: page.text("#state") == "Closed")
                page.until(lambda: not page.one("#actions").is_displayed())
                assert page.driver.run("return document.activeElement.id") == "pool"

            await browse(steps)
            assert pool.stats.target_workers == 7

    asyncio.run(main())


def test_a_running_job_is_cancelled(page: Page) -> None:
    async def main() -> None:
        async with WorkerPool(asyncio.sleep, workers=2) as pool, served(pool, actions=True) as server:
            handle = pool.submit_nowait(1000)

            def steps() -> None:
                page.open(server.url)
                page.until(lambda: page.all("#running button"))
                page.one("#running button").click()
                page.until(lambda: page.one("#ask").is_displayed())
                page.button("Cancel job", "#ask").click()
                page.until(lambda: page.figure("Cancelled") == "1")

            await browse(steps)
            assert handle.done()

    asyncio.run(main())


ATTACK = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\"'><svg onload=window.hacked=1>"


class Attack:
    def __repr__(self) -> str:
        return ATTACK


def test_attacks_stay_text(page: Page) -> None:
    async def handler(job: Any) -> None:
        if job == "fail":
            raise ValueError(ATTACK)
        await asyncio.sleep(1000)

    async def main() -> None:
        letters: DeadLetters[Any] = DeadLetters()
        async with WorkerPool(handler, workers=2, name=ATTACK, dead_letters=letters) as pool:
            await pool.outcomes(["fail"])
            pool.submit_nowait(Attack())
            async with served(pool, WorkerPool(echo, workers=1), actions=True, title=ATTACK) as server:

                def steps() -> None:
                    page.open(server.url)
                    page.until(lambda: ATTACK in page.text("#running"))
                    page.until(lambda: ATTACK[:50] in page.text("#letters"))
                    page.one("#letters summary").click()
                    for place in ("#title", "#name", "#pools", "#letters"):
                        assert ATTACK in page.text(place).replace("\n", ""), place
                    found = "return [window.hacked, document.images.length, document.scripts.length]"
                    assert page.driver.run(found) == [None, 0, 1]

                await browse(steps)
                pool.cancel()

    asyncio.run(main())


def test_the_policy_of_the_page_blocks_what_gets_into_it(page: Page) -> None:
    page.expected += ["Content Security Policy", "TrustedHTML", "Trusted", "violates"]

    async def main() -> None:
        async with served(WorkerPool(echo, workers=1)) as server:

            def steps() -> None:
                page.open(server.url)
                page.until_live()
                inject = """
                    const script = document.createElement("script");
                    try { script.textContent = "window.hacked = 1"; document.body.append(script); } catch {}
                    try { document.body.insertAdjacentHTML("beforeend", "<b id=hacked></b>"); } catch {}
                    const button = document.createElement("button");
                    document.body.append(button);
                    try { button.setAttribute("onclick", "window.hacked = 1"); } catch {}
                    button.click();
                    return [window.hacked ?? null, document.getElementById("hacked")];
                """
                assert page.driver.run(inject) == [None, None]
                load = "fetch('http://example.com/').then(() => arguments[0]('loaded'), () => arguments[0]('blocked'))"
                assert page.driver.run_async(load) == "blocked"

            await browse(steps)

    asyncio.run(main())


def test_a_token_is_needed_and_leaves_the_address(page: Page) -> None:
    page.expected += ["401 (Unauthorized)"]

    async def main() -> None:
        async with served(WorkerPool(echo, workers=1, name="secret"), actions=True) as server:
            address = server.url.partition("#")[0]

            def steps() -> None:
                page.open(address)
                page.until(lambda: page.one("#login").is_displayed())
                assert "secret" not in page.driver.page_source
                page.one("#token").type("wrong-wrong-wrong-wrong", ENTER)
                page.until(lambda: "The token is wrong" in page.text("#login"))
                page.one("#token").type(TOKEN, ENTER)
                page.until_live()
                assert page.text("#name") == "secret"
                page.driver.refresh()  # kept for this tab
                page.until_live()
                page.driver.run("sessionStorage.clear()")
                page.open(server.url)
                page.until_live()
                assert page.driver.current_url == address
                assert TOKEN not in page.driver.run("return JSON.stringify(history.state) + document.cookie")

            await browse(steps)

    asyncio.run(main())


def test_another_token_in_the_address_of_an_open_page_is_used(page: Page) -> None:
    page.expected += ["401 (Unauthorized)"]

    async def main() -> None:
        async with served(WorkerPool(echo, workers=1, name="secret")) as server:
            address = server.url.partition("#")[0]

            def steps() -> None:
                page.open(f"{address}#token=wrong-wrong-wrong-wrong")
                page.until(lambda: page.one("#login").is_displayed())
                page.driver.get(server.url)  # which does not load the page again
                page.until_live()
                assert not page.one("#login").is_displayed()
                assert page.driver.current_url == address

            await browse(steps)

    asyncio.run(main())


def test_the_page_reconnects_to_the_next_program(page: Page) -> None:
    page.expected += ["net::ERR_"]

    async def main() -> None:
        async with served(WorkerPool(echo, workers=1, name="first")) as server:

            def begin() -> None:
                page.open(server.url)
                page.until(lambda: page.text("#name") == "first")

            await browse(begin)

        def lose() -> None:
            page.until(lambda: "connect" in page.text("#link").lower() and page.text("#link") != "Live")

        await browse(lose)
        async with served(WorkerPool(echo, workers=1, name="second"), port=server.port):

            def again() -> None:
                page.until(lambda: page.text("#name") == "second")
                page.until_live()

            await browse(again)

    asyncio.run(main())


def test_a_page_behind_something_else_than_the_dashboard_says_so(page: Page) -> None:
    async def answer(request: web.Request) -> web.Response:
        asset = ASSETS.get(request.path[1:] or "index.html")  # a proxy lets these through, and asks for a password else
        if asset is None:
            return web.Response(text="Password:", content_type="text/html")
        return web.Response(body=asset.body, headers={"Content-Type": asset.content_type})

    async def main() -> None:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

        def steps() -> None:
            page.open(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            page.until(lambda: page.text("#link") == "Not connected: something else than the dashboard answers")

        await browse(steps)
        await runner.cleanup()

    asyncio.run(main())


def test_the_page_shows_a_pool_that_closes_and_one_of_another_loop(page: Page) -> None:
    async def main() -> None:
        loop = asyncio.new_event_loop()
        far: WorkerPool[Any, Any] = WorkerPool(echo, workers=1, name="far")
        pool: WorkerPool[Any, Any] = WorkerPool(echo, workers=1)
        await pool.start()
        async with served(pool, far) as server:
            await asyncio.to_thread(lambda: loop.run_until_complete(far.start()))

            def steps() -> None:
                page.open(server.url)
                page.until(lambda: "On another loop" in page.text("#pools tr:nth-child(2)"))
                page.button("far").click()
                page.until(lambda: "runs on another event loop" in page.text("#tags"))
                assert not page.one("#figures").is_displayed()
                page.button("pool").click()
                page.until(lambda: page.text("#state") == "Open")
                assert page.one("#figures").is_displayed()

            await browse(steps)
            await pool.close()
            await browse(lambda: page.until(lambda: page.text("#state") == "Closed"))
        await asyncio.to_thread(lambda: loop.run_until_complete(far.close()))
        loop.close()

    asyncio.run(main())


def test_everything_has_a_name_for_screen_readers(page: Page) -> None:
    async def main() -> None:
        async with scene() as pools, served(*pools, actions=True) as server:

            def steps() -> None:
                page.open(server.url)
                page.until(lambda: page.all("#running tr"))
                unnamed = """
                    const all = (selector) => [...document.querySelectorAll(selector)];
                    const named = (node) => node.ariaLabel || node.innerText || node.labels?.length
                        || node.querySelector(".sr") || document.getElementById(node.getAttribute("aria-labelledby"));
                    return all("button, input, [role=img], th, section, dialog").filter(
                        (node) => node.checkVisibility() && !named(node)).map((node) => node.outerHTML);
                """
                assert page.driver.run(unnamed) == []
                assert page.driver.run("return [...document.querySelectorAll('th:not([scope])')].length") == 0
                headings = page.driver.run("return [...document.querySelectorAll('h1')].length")
                assert headings == 1

            await browse(steps)

    asyncio.run(main())


# The texts whose contrast to their background is below 4.5, which WCAG 2 wants for small ones.
PALE = """
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, at) => value * a + below[at] * (1 - a));
    const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, at) => {
        const value = color[at] / 255;
        return sum + weight * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    }, 0);
    const behind = (node) => node ? over(numbers(getComputedStyle(node).backgroundColor), behind(node.parentElement))
        : [255, 255, 255];
    const opacity = (node) => node ? getComputedStyle(node).opacity * opacity(node.parentElement) : 1;
    const contrast = (node) => {
        const below = behind(node), [r, g, b, a = 1] = numbers(getComputedStyle(node).color);
        const levels = [light(over([r, g, b, a * opacity(node)], below)), light(below)].sort((one, two) => one - two);
        return (levels[1] + 0.05) / (levels[0] + 0.05);
    };
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
        if (text && node.checkVisibility() && contrast(node) < 4.5) found.push([text, contrast(node)]);
    }
    return found;
"""


def test_the_page_can_be_read_in_light_and_dark_on_a_screen_and_on_a_phone(page: Page) -> None:
    page.expected += ["net::ERR_"]

    async def handler(job: int) -> None:
        if job:
            raise ConnectionError(f"no route to host {job}")
        await asyncio.sleep(1000)

    async def main() -> None:
        async with WorkerPool(handler, workers=2, dead_letters=DeadLetters[int]()) as pool:
            await pool.outcomes(range(1, 6))
            pool.submit_nowait(0)
            async with served(pool, WorkerPool(echo, workers=1), actions=True) as server:

                def steps() -> None:
                    page.open(server.url)
                    page.until(lambda: page.all("#letters summary"))
                    page.one("#letters summary").click()
                    backgrounds = []
                    for scheme in ("light", "dark"):
                        page.driver.use_scheme(scheme)
                        backgrounds.append(page.driver.run("return getComputedStyle(document.body).backgroundColor"))
                        assert page.driver.run(PALE) == []
                        for width in (1280, 390):
                            page.driver.resize(width, 1400)
                            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
                            assert page.driver.run(wide) <= 0, (scheme, width)
                    page.driver.resize(1280, 1400)
                    assert backgrounds[0] != backgrounds[1]

                await browse(steps)

            def lost() -> None:
                page.until(lambda: page.driver.run("return document.body.classList.contains('stale')"))
                assert page.driver.run(PALE) == []
                page.driver.use_scheme("")

            await browse(lost)
            pool.cancel()

    asyncio.run(main())
