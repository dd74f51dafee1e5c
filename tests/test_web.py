"""The web page at `/`: it is served, it is whole, and under the strict policy nothing of it is refused."""

import re
from html.parser import HTMLParser
from posixpath import dirname, join, normpath

import pytest
from django.conf import settings
from django.test import AsyncClient

from chatgpt_backend.ops.middleware import SecurityHeadersMiddleware

APP = settings.BASE_DIR / "static" / "app"
SCRIPTS = sorted(path.name for path in APP.glob("*.js"))
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
REFERENCES = {"src", "href", "action", "formaction", "poster", "srcset", "data"}


class Page(HTMLParser):
    """What the page refers to, and what of it a strict policy would refuse."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.words: set[str] = set()
        self.refused: list[str] = []
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in REFERENCES:
                self.references.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name.startswith("data-i18n"):
                self.words.add(value or "")
            elif name == "style" or name.startswith("on"):
                self.refused.append(f"<{tag} {name}>")
        if tag == "style":
            self.refused.append("<style>")
        self.inside = "script" if tag == "script" else None

    def handle_data(self, data):
        if self.inside == "script" and data.strip():
            self.refused.append("an inline script")

    def handle_endtag(self, tag):
        self.inside = None


async def read_page() -> Page:
    response = await AsyncClient().get("/")
    assert response.status_code == 200
    return Page(response.content.decode())


async def fetch(path: str) -> tuple[str, str]:
    """Return the type and the text of a static file as the server gives it out."""
    response = await AsyncClient().get(path)
    assert response.status_code == 200, path
    content = b"".join([part async for part in response]) if response.streaming else response.content
    return response.headers["Content-Type"], content.decode()


async def test_the_page_is_served_under_the_strict_policy():
    response = await AsyncClient().get("/")

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Security-Policy"] == SecurityHeadersMiddleware.STRICT
    assert "Set-Cookie" not in response.headers


async def test_nothing_in_the_page_is_inline():
    assert (await read_page()).refused == []


async def test_every_reference_of_the_page_is_ours_and_resolves():
    page = await read_page()

    files = {reference for reference in page.references if not reference.startswith("#")}
    assert files == {"/static/app/app.css", "/static/app/app.js", "/static/app/favicon.svg"}
    for file in files:
        content_type, text = await fetch(file)
        assert content_type.partition(";")[0] == TYPES["." + file.rpartition(".")[2]]
        assert text
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)


async def test_every_import_is_ours_and_resolves():
    found, waiting = set(), ["/static/app/app.js"]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        content_type, text = await fetch(module)
        assert content_type.partition(";")[0] == "text/javascript"
        for imported in re.findall(r"""(?:\bfrom|\bimport)\s*\(?\s*["']([^"']+)["']""", text):
            assert imported.startswith("./"), imported
            waiting.append(normpath(join(dirname(module), imported)))
    assert {path.rpartition("/")[2] for path in found} == set(SCRIPTS)


async def test_the_style_sheet_loads_nothing():
    _, text = await fetch("/static/app/app.css")
    assert not re.search(r"@import|url\(|image-set\(", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_never_turns_text_into_html_or_code(name):
    text = (APP / name).read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|DOMParser|createContextualFragment"
        r"|\beval\(|new Function|setAttribute\(\"(?:style|on)",
        text,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_keeps_no_token(name):
    """Only the language, the last model and why the page was left are kept by the browser."""
    kept = re.findall(r"(?:local|session)Storage\.setItem\((\w+)", (APP / name).read_text())
    assert set(kept) <= {"KEPT", "LAST_MODEL", "LEFT"}


def words() -> dict[str, tuple[str, str]]:
    rows = re.findall(r'^  "([\w.]+)": \["(.+?)", "(.+?)"\],$', (APP / "i18n.js").read_text(), re.M)
    return {key: (english, chinese) for key, english, chinese in rows}


async def test_every_word_that_the_page_and_its_scripts_name_is_there_in_both_languages():
    named = (await read_page()).words
    for name in SCRIPTS:
        named |= set(re.findall(r"""\bt\(\s*"([\w.]+)\"""", (APP / name).read_text()))

    table = words()
    assert len(table) == (APP / "i18n.js").read_text().count('": ["')
    assert len(named) > 50
    assert named <= table.keys()


def test_both_languages_fill_in_the_same_values():
    for key, (english, chinese) in words().items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), key


async def test_every_element_that_a_script_asks_for_is_in_the_page():
    ids = set((await read_page()).ids)
    for name in SCRIPTS:
        text = (APP / name).read_text()
        assert set(re.findall(r"""\bbyId\("([\w-]+)"\)""", text)) <= ids, name
        assert {f"icon-{icon}" for icon in re.findall(r"""\bicon\("([\w-]+)"\)""", text)} <= ids, name
