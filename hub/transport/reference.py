"""The page at `/docs`: both documents as one HTML page of our own. No third-party file, no network, no build. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any, Final

import msgspec

Json = dict[str, Any]

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff; --card: #f6f8fa; --line: #d8dee4;
  --accent: #0b57d0; --get: #0a7d33; --post: #0b57d0; --patch: #8a5a00; --delete: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --paper: #0f1419; --card: #171d24;
  --line: #2b343e; --accent: #8ab4f8; --get: #6dd58c; --post: #8ab4f8; --patch: #f2c14e; --delete: #f2847c; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 4.5rem; }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
header { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center;
  padding: .75rem 1.5rem; background: var(--paper); border-bottom: 1px solid var(--line); }
header h1 { margin: 0; font-size: 1.1rem; } header h1 small { color: var(--soft); font-weight: 400; }
header input { flex: 1 1 14rem; max-width: 28rem; padding: .45rem .75rem; font: inherit; color: inherit;
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
header output { color: var(--soft); font-size: .875rem; }
.page { display: grid; grid-template-columns: 17rem minmax(0, 1fr); gap: 2rem; max-width: 88rem; margin: 0 auto;
  padding: 0 1.5rem; }
nav { position: sticky; top: 4rem; align-self: start; max-height: calc(100vh - 4.5rem); overflow: auto;
  padding: 1rem 0; font-size: .875rem; }
nav h2 { margin: 1rem 0 .25rem; font-size: .75rem; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft); }
nav ul { margin: 0; padding: 0; list-style: none; } nav a { display: block; padding: .1rem 0; overflow: hidden;
  white-space: nowrap; text-overflow: ellipsis; color: inherit; }
main { min-width: 0; padding-bottom: 6rem; } main > h2 { margin: 2.5rem 0 .5rem; font-size: 1.5rem; }
article { margin: 1rem 0; padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; }
article h3 { display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: baseline; margin: 0; font-size: 1rem; }
article h3 code { font-size: 1rem; overflow-wrap: anywhere; } article p { margin: .5rem 0; }
.verb { font: 600 .75rem/1 ui-monospace, monospace; text-transform: uppercase; } .get { color: var(--get); }
.post { color: var(--post); } .patch, .put { color: var(--patch); } .delete { color: var(--delete); }
.note { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { padding: .35rem .75rem .35rem 0; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; border-top: 0; }
pre { margin: .5rem 0 0; padding: .75rem 1rem; overflow: auto; max-height: 26rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: .5rem; }
summary { margin-top: .5rem; cursor: pointer; color: var(--soft); font-size: .875rem; }
[hidden] { display: none !important; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 60rem) { .page { display: block; padding: 0 1rem; } nav { display: none; } }
@media print { header input, nav { display: none; } .page { display: block; } }
"""

SCRIPT: Final = """
const box = document.getElementById('search'), count = document.getElementById('count');
const items = [...document.querySelectorAll('article')].map(node => [node, node.textContent.toLowerCase(),
  document.querySelector(`nav a[href="#${CSS.escape(node.id)}"]`)]);
const show = () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const [node, text, link] of items) {
    const fits = words.every(word => text.includes(word));
    node.hidden = !fits; if (link) link.parentElement.hidden = !fits; shown += fits;
  }
  for (const title of document.querySelectorAll('main > section')) {
    title.hidden = !title.querySelector('article:not([hidden])');
  }
  count.textContent = words.length ? `${shown} of ${items.length}` : '';
};
box.addEventListener('input', show);
addEventListener('keydown', event => {
  if (event.key === '/' && document.activeElement !== box) { event.preventDefault(); box.focus(); }
  if (event.key === 'Escape') { box.value = ''; show(); }
});
addEventListener('hashchange', () => { if (box.value) { box.value = ''; show();
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView(); } });
show();
"""


def page(openapi: Json, asyncapi: Json) -> str:
    """The whole page."""
    messages = asyncapi["components"]["messages"]
    spoken = {key: one for key, one in asyncapi["operations"].items() if one["action"] == "receive"}
    told = {key: one for key, one in asyncapi["operations"].items() if one["action"] == "send"}
    schemas = {**asyncapi["components"]["schemas"], **openapi["components"]["schemas"]}
    sections = [
        ("REST", "Base `/api/v1`, `Authorization: Bearer`. Refusals are `application/problem+json`.", _routes(openapi)),
        (
            "Socket commands",
            "One object out, one ack back: `{ok:true, data}` or `{ok:false, error}`.",
            [_command(messages, key, operation) for key, operation in spoken.items()],
        ),
        (
            "Socket events",
            "Recorded events of a room carry `{epoch, offset}`, come in order, and can be had again.",
            [_event(messages[key]) for key in told],
        ),
        ("Errors", "The same codes in acks and in HTTP answers.", _errors(openapi, asyncapi)),
        ("Schemas", "", [_schema(name, schema) for name, schema in sorted(schemas.items())]),
    ]
    body = "".join(_section(title, lead, items) for title, lead, items in sections)
    links = "".join(_links(title, items) for title, _, items in sections)
    version = _text(openapi["info"]["version"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>AuraLink Hub: API</title><style>{STYLE}</style></head><body>
<header><h1>AuraLink Hub <small>{version}</small></h1>
<input id="search" type="search" placeholder="Search ( / )" aria-label="Search" autocomplete="off" spellcheck="false">
<output id="count" for="search"></output>
<span><a href="/openapi.json">openapi.json</a> · <a href="/asyncapi.json">asyncapi.json</a></span></header>
<div class="page"><nav aria-label="Contents">{links}</nav><main>{body}</main></div>
<script>{SCRIPT}</script></body></html>
"""


class _Item(msgspec.Struct, frozen=True):
    """One article: its anchor, its name in the contents, its HTML."""

    anchor: str
    label: str
    html: str


def _routes(openapi: Json) -> list[_Item]:
    return [
        _route(path, verb, operation, openapi["components"])
        for path, verbs in openapi["paths"].items()
        for verb, operation in verbs.items()
    ]


def _route(path: str, verb: str, operation: Json, components: Json) -> _Item:
    parts = [_prose(operation.get("description") or operation["summary"])]
    if operation.get("parameters"):
        rows = [
            (one["name"], f"{_type(one['schema'])}, {one['in']}", one.get("required", False), one.get("description"))
            for one in operation["parameters"]
        ]
        parts.append(_fields(rows))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body ({_code(kind)}): {_type(content['schema'])}</p>{_example(content.get('example'))}")
    for status, response in operation["responses"].items():
        for content in response.get("content", {}).values():
            answer = _type(content["schema"])
            parts.append(f"<p>Answer {_code(status)}: {answer}</p>{_example(content.get('example'))}")
    parts.append(_refusals(operation["responses"], components["responses"]))
    label = f"{verb.upper()} {path.removeprefix('/api/v1')}"
    title = f'<span class="verb {verb}">{verb}</span> {_code(path)}'
    return _article(f"rest-{verb}-{path.strip('/').replace('/', '-')}", label, title, "".join(parts))


def _refusals(responses: Json, known: Json) -> str:
    codes = [known[status]["description"] for status in responses if status in known and status != "default"]
    return f'<p class="note">Refusals: {_inline(", ".join(codes))}</p>' if codes else ""


def _command(messages: Json, key: str, operation: Json) -> _Item:
    message, ack = messages[key], messages[f"{key}.ack"]
    example = ack["examples"][0]["payload"]
    parts = [
        _prose(operation["description"]),
        _object(message["payload"]),
        _example(message["examples"][0]["payload"], "Example"),
        f"<p>Ack data: {_type(ack['payload']['oneOf'][0]['properties']['data'])}</p>",
        _example(example, "Example of the ack"),
    ]
    return _article(f"command-{key}", message["name"], _code(message["name"]), "".join(parts))


def _event(message: Json) -> _Item:
    recorded = "recorded: in order, and again after a reconnect" if message["x-recorded"] else "once, to who is there"
    parts = [
        _prose(message["summary"]),
        f'<p class="note">{recorded}</p>',
        _object(message["payload"]),
        _example(message["examples"][0]["payload"], "Example"),
    ]
    anchor = "event-" + message["name"].replace(":", "_")
    return _article(anchor, message["name"], _code(message["name"]), "".join(parts))


def _errors(openapi: Json, asyncapi: Json) -> list[_Item]:
    return [
        _article(
            f"error-{code}",
            code,
            _code(code),
            f"<p>{_inline(error['description'])}.</p>"
            f'<p class="note">HTTP {error["status"] or "–"} · {"retryable" if error["retryable"] else "not retryable"}'
            f"{'' if code in openapi['x-errors'] and error['status'] else ' · sockets only'}</p>",
        )
        for code, error in asyncapi["x-errors"].items()
    ]


def _schema(name: str, schema: Json) -> _Item:
    body = _prose(schema.get("description", ""))
    body += _object(schema) if schema.get("properties") else f"<p>{_type(schema)}</p>"
    return _article(f"schema-{name}", name, _code(name), body)


def _object(schema: Json) -> str:
    required = schema.get("required", ())
    rows = [(name, _type(part), name in required, _note(part)) for name, part in schema.get("properties", {}).items()]
    return _fields(rows) if rows else '<p class="note">No fields.</p>'


def _note(schema: Json) -> str:
    default = schema.get("default")
    told = [schema.get("description", "")]
    if default not in (None, {}, []):
        told.append(f"Default `{msgspec.json.encode(default).decode()}`.")
    return " ".join(filter(None, told))


def _fields(rows: Iterable[tuple[str, str, bool, str | None]]) -> str:
    """`type` of a row is HTML already, everything else is text."""
    lines = "".join(
        f"<tr><td>{_code(name)}{'' if required else ' <span class=note>optional</span>'}</td><td>{kind}</td>"
        f"<td>{_inline(note or '')}</td></tr>"
        for name, kind, required, note in rows
    )
    head = "<thead><tr><th>Field</th><th>Type</th><th>Meaning</th></tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{lines}</tbody></table></div>'


def _type(schema: Json) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "const" in schema:
        return _code(msgspec.json.encode(schema["const"]).decode())
    if "enum" in schema:
        return " | ".join(_code(str(value)) for value in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " | ".join(_type(kind) for kind in schema[several])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}{_bounds(schema, 'minItems', 'maxItems')}"
    kind = _text(str(schema.get("format") or schema.get("type") or "any"))
    low, high = ("minLength", "maxLength") if schema.get("type") == "string" else ("minimum", "maximum")
    return kind + _bounds(schema, low, high)


def _bounds(schema: Json, low: str, high: str) -> str:
    if low not in schema and high not in schema:
        return ""
    return f' <span class="note">{schema.get(low, "")}…{schema.get(high, "")}</span>'


def _example(value: Any, title: str = "Example") -> str:
    if value in (None, {}):
        return ""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return f"<details><summary>{title}</summary><pre>{_text(text)}</pre></details>"


def _section(title: str, lead: str, items: list[_Item]) -> str:
    articles = "".join(item.html for item in items)
    return f'<section><h2>{_text(title)}</h2><p class="note">{_inline(lead)}</p>{articles}</section>'


def _links(title: str, items: list[_Item]) -> str:
    rows = "".join(f'<li><a href="#{_text(item.anchor)}">{_text(item.label)}</a></li>' for item in items)
    return f"<h2>{_text(title)}</h2><ul>{rows}</ul>"


def _article(anchor: str, label: str, title: str, body: str) -> _Item:
    return _Item(anchor, label, f'<article id="{_text(anchor)}"><h3>{title}</h3>{body}</article>')


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    """Text with `code` in it."""
    parts = _text(text).split("`")
    if len(parts) % 2 == 0:
        return _text(text)
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
