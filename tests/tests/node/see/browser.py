"""Looks at the node's page as a person does: headless Chromium, in both themes and at three widths, and by keyboard alone.

Usage: browser.py URL DIRECTORY NEEDLE...

Writes a screenshot of each theme and width into DIRECTORY. Fails if the console has an error, if anything is loaded from
elsewhere, if the page is wider than the window, if text does not stand out from what is behind it (WCAG 2.2, 1.4.3: 4.5 to 1),
if something cannot be reached or used by keyboard, or if the page does not show every NEEDLE.
"""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

import websockets

WIDTHS = {"narrow": 390, "middle": 820, "wide": 1440}
THEMES = ("light", "dark")
LIMIT = 30

# The worst contrast of text with what is behind it, and where.
CONTRAST = """
(() => {
  const parse = text => { const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number); return { r, g, b, a: a ?? 1 }; };
  const light = ({ r, g, b }) => { const f = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const behind = one => { for (; one; one = one.parentElement) { const c = parse(getComputedStyle(one).backgroundColor); if (c.a > 0.99) return c; } return parse("rgb(255,255,255)"); };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const one = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || ["SCRIPT", "STYLE"].includes(one.tagName) || !one.checkVisibility()) continue;
    const colour = parse(getComputedStyle(one)[one.closest("svg") ? "fill" : "color"]);
    const [high, low] = [light(colour), light(behind(one))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), walk.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
})()
"""

# Everything that can be used, by what it is called.
USABLE = """
[...document.querySelectorAll("a[href], button, input, select, [tabindex='0']")].filter(one => one.checkVisibility()).map(one => one.id || one.getAttribute("href") || one.getAttribute("aria-label"))
"""

FOCUSED = """
(() => { const one = document.activeElement; if (!one || one === document.body) return null;
  const box = one.getBoundingClientRect(), style = getComputedStyle(one);
  return { name: one.id || one.getAttribute("href") || one.getAttribute("aria-label"), seen: box.width > 0 && box.right > 0 && box.left >= 0 && box.bottom > 0 && box.top < innerHeight, ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 }; })()
"""


class Refused(SystemExit):
    """The browser does not do it now, as where the page that was asked is being left."""


class Page:
    def __init__(self, socket):
        self.socket, self.number, self.waiting, self.errors, self.asked = socket, 0, {}, [], set()
        self.reading = asyncio.create_task(self.read())

    async def read(self):
        async for text in self.socket:
            told = json.loads(text)
            if "id" in told:
                # Who asked may have waited long enough.
                answer = self.waiting.pop(told["id"], None)
                if answer and not answer.done():
                    answer.set_result(told)
                continue
            method, what = told["method"], told["params"]
            if method == "Runtime.exceptionThrown":
                self.errors.append(what["exceptionDetails"]["text"])
            elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
                self.errors.append(what["entry"]["text"] + " " + what["entry"].get("url", ""))
            elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning"):
                self.errors.append(str([one.get("value") for one in what["args"]]))
            elif method == "Network.requestWillBeSent":
                self.asked.add(what["request"]["url"])

    async def call(self, method, **params):
        self.number += 1
        answer = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        told = await asyncio.wait_for(answer, LIMIT)
        if "error" in told:
            raise Refused(f"{method}: {told['error']}")
        return told["result"]

    async def run(self, script):
        told = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise SystemExit(f"{script[:60]}: {told['exceptionDetails']}")
        return told["result"].get("value")

    async def until(self, script, what, accept=bool):
        """Waits until what a script says is as it should be. What is on its way, and a page that is just being left, has its time."""
        end = time.monotonic() + LIMIT
        while True:
            try:
                said = await self.run(script)
                if accept(said):
                    return said
            except Refused as refused:
                said = refused
            if time.monotonic() > end:
                raise SystemExit(f"{what}, not within {LIMIT} s: {said}; the page says:\n{await self.run('document.body.innerText')}")
            await asyncio.sleep(0.1)

    async def go(self, url):
        """Opens a page anew, and has left the one before."""
        await self.run("window.left = true")
        await self.call("Page.navigate", url=url)
        await self.until("!window.left && document.readyState === 'complete'", f"{url} is opened")

    async def key(self, key, code, number, text=None, shift=False):
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def tab(self):
        await self.key("Tab", "Tab", 9)
        return await self.run(FOCUSED)

    async def enter(self):
        await self.key("Enter", "Enter", 13, "\r")


def check(holds, what):
    if not holds:
        raise SystemExit(what)


async def looks(page, url, directory, needles):
    for theme in THEMES:
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        for name, width in WIDTHS.items():
            await page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            await page.go(url)
            for needle in needles:
                await page.until(f"document.body.innerText.includes({json.dumps(needle)})", f"the page shows {needle!r}")
            await page.until("document.documentElement.dataset.theme", f"the page is {theme} by itself", lambda said, theme=theme: said == theme)
            await page.until("document.scrollingElement.scrollWidth", f"at {width} the page is no wider", lambda said, width=width: said <= width)
            await page.until(CONTRAST, f"{theme}: all text has a contrast of 4.5", lambda said: said and said[0] >= 4.5)
            height = await page.run("document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            shot = await page.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
            (directory / f"{theme}-{name}.png").write_bytes(base64.b64decode(shot["data"]))


async def keyboard(page):
    """Every control gets the focus in the order of the page, seen and with a ring; and each does its work by keys."""
    # What the page shows changes: again, where it did meanwhile.
    for _ in range(5):
        await page.run("scrollTo(0, 0), document.activeElement.blur()")
        usable, reached = await page.run(USABLE), []
        for _ in range(len(usable)):
            focused = await page.tab()
            check(focused, f"after {reached[-1:]} nothing has the focus")
            check(focused["seen"] and focused["ring"], f"{focused['name']} has the focus, and it is not to be seen")
            reached.append(focused["name"])
        if reached == usable or await page.run(USABLE) == usable:
            break
    check(reached == usable, f"by keyboard {reached} are reached, of {usable}")

    async def to(name):
        await page.run("document.activeElement.blur()")
        for _ in range(len(usable) + 2):
            focused = await page.tab()
            if focused and focused["name"] == name:
                return
        raise SystemExit(f"{name} is not reached")

    await to("#flows")
    await page.enter()
    await page.until("location.hash === '#flows'", "the link to the flows does something")
    before = await page.run("document.documentElement.dataset.theme")
    await to("theme")
    await page.enter()
    await page.until("document.documentElement.dataset.theme", "the theme changes", lambda said: said != before)
    await page.enter()
    await to("pause")
    await page.key(" ", "Space", 32, " ")
    await page.until("at('pause').getAttribute('aria-pressed') === 'true'", "the flows pause")
    await page.key(" ", "Space", 32, " ")
    await to("text")
    for letter in "no such flow":
        await page.key(letter, "", ord(letter.upper()), letter)
    await page.until("[...at('list').rows].every(one => one.innerText.includes('LOST'))", "a filter leaves nothing")
    await page.call("Input.dispatchKeyEvent", type="keyDown", key="a", code="KeyA", windowsVirtualKeyCode=65, modifiers=2, commands=["selectAll"])
    await page.key("Delete", "Delete", 46)
    await to("verdict")
    await page.key("D", "KeyD", 68, "D")
    await page.until("at('verdict').value === 'DROPPED' && [...at('list').rows].every(one => one.cells[3].innerText.includes('DROPPED') || one.innerText.includes('LOST'))", "the list has dropped flows alone")


def port_of(browser):
    """Where the browser takes commands, once it says so."""
    for line in browser.stderr:
        if "DevTools listening on" in line:
            return line.split("://")[1].split("/")[0].rsplit(":", 1)[1]
    raise SystemExit("chromium does not start")


def target_of(port):
    """The address of its page, once there is one."""
    end = time.monotonic() + LIMIT
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=LIMIT) as listed:
            for one in json.load(listed):
                if one["type"] == "page":
                    return one["webSocketDebuggerUrl"]
        if time.monotonic() > end:
            raise SystemExit(f"chromium has no page after {LIMIT} s")
        time.sleep(0.1)


async def main(url, directory, *needles):
    # All of it is on this machine, whatever proxy the environment names.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    profile = tempfile.mkdtemp(prefix="sluice-browser-")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        port = await asyncio.wait_for(asyncio.to_thread(port_of, browser), 2 * LIMIT)
        asyncio.get_running_loop().run_in_executor(None, browser.stderr.read)
        target = await asyncio.to_thread(target_of, port)
        async with websockets.connect(target, max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await looks(page, url, directory, needles)
            await keyboard(page)
            check(not page.errors, f"the console says {page.errors}")
            elsewhere = [asked for asked in page.asked if not asked.startswith((url, "data:"))]
            check(not elsewhere, f"the page loads {elsewhere}")
    finally:
        browser.kill()
        browser.wait()
        with contextlib.suppress(OSError):
            shutil.rmtree(profile)
    print("the page is seen in both themes at three widths, and used by keyboard alone")


asyncio.run(main(*sys.argv[1:]))
