"""`/join/{code}`: where the URL of a link leads a browser. One page of our own, without anything from elsewhere.

It looks the link up as `link:resolve` does, so it counts the click and is throttled with it, and asks for what the link
asks for. Its script sends that to `link:validate` and shows what the answer says.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from aiohttp import hdrs, web

from hub.context import NOBODY, Context, Hub
from hub.dispatch import Dispatcher
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.links import ResolvedLink
from hub.transport.address import Network, networks
from hub.transport.middleware import REQUEST_ID
from hub.transport.rest import visitor_of

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #f3f5f8; --card: #fff; --line: #d8dee4;
  --accent: #0b57d0; --on: #fff; --bad: #b3261e; --good: #0a7d33; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --paper: #0f1419; --card: #171d24;
  --line: #2b343e; --accent: #8ab4f8; --on: #0f1419; --bad: #f2847c; --good: #6dd58c; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { width: 100%; max-width: 26rem; padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 1rem; }
h1 { margin: 0 0 .25rem; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
p { margin: .25rem 0 1rem; } .soft { color: var(--soft); } .bad { color: var(--bad); } .good { color: var(--good); }
label { display: block; margin: 1rem 0 .25rem; font-weight: 500; }
input { width: 100%; padding: .6rem .75rem; font: inherit; color: inherit; background: var(--paper);
  border: 1px solid var(--line); border-radius: .5rem; }
button { width: 100%; margin-top: 1.5rem; padding: .7rem 1rem; font: inherit; font-weight: 600; color: var(--on);
  background: var(--accent); border: 0; border-radius: .5rem; cursor: pointer; }
button:disabled { opacity: .6; cursor: default; }
button.plain { color: inherit; background: none; border: 1px solid var(--line); }
dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem; margin: 1rem 0; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
[hidden] { display: none !important; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
"""

SCRIPT: Final = """
const page = document.querySelector('main'), form = document.querySelector('form');
const say = (id, text) => { const at = document.getElementById(id); at.textContent = text; at.hidden = !text; };
const words = {
  link_password_required: 'This link asks for a password.',
  link_password_invalid: 'That is not the password.',
  link_expired: 'This link does not work any more.',
  link_exhausted: 'This link has been used up.',
  link_restricted: 'This link is for other people.',
  unauthenticated: 'This link is for certain people: open it in the app, where you are signed in.',
  validation_failed: 'That name cannot be shown. Try another one.',
};
const wait = ms => `Too many attempts. Try again in ${Math.max(1, Math.ceil((ms || 1000) / 1000))} s.`;
let ticket = '';
if (form) form.addEventListener('submit', async event => {
  event.preventDefault();
  const button = form.querySelector('button'), body = {};
  for (const field of form.elements) if (field.name && field.value) body[field.name] = field.value;
  button.disabled = true; say('error', '');
  try {
    const response = await fetch(`/api/v1/links/validate/${encodeURIComponent(page.dataset.code)}`, {
      method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
    const answer = await response.json();
    if (!response.ok) {
      say('error', answer.code === 'rate_limited' ? wait(answer.retry_after_ms)
        : words[answer.code] || 'That did not work. Try again.');
      return;
    }
    ticket = answer.guest_token;
    say('call', answer.call.name); say('role', answer.role);
    say('next', answer.lobby ? 'Somebody inside lets you in.' : 'The door is open.');
    const off = Object.entries(answer.features).filter(([, on]) => !on).map(([name]) => name.replace('_', ' '));
    say('off', off.join(', ') || 'nothing');
    say('until', new Date(answer.expires_at).toLocaleTimeString());
    form.hidden = true; document.getElementById('passed').hidden = false;
    document.getElementById('copy').focus();
  } catch { say('error', 'The server does not answer. Try again.'); } finally { button.disabled = false; }
});
document.getElementById('copy')?.addEventListener('click', async event => {
  try { await navigator.clipboard.writeText(ticket); event.target.textContent = 'Copied'; }
  catch { event.target.textContent = 'Copying is not allowed here'; }
});
"""


def setup(app: web.Application, dispatcher: Dispatcher, hub: Hub, *, proxies: Iterable[str] = ()) -> None:
    """Serve the page. `proxies`: networks whose X-Forwarded-For is believed."""
    app.router.add_get("/join/{short_code}", _handler(dispatcher, hub, networks(proxies)))


def _handler(
    dispatcher: Dispatcher, hub: Hub, trusted: tuple[Network, ...]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    command = dispatcher.commands.get("link:resolve")
    assert command is not None

    async def answer(request: web.Request) -> web.StreamResponse:
        visitor = visitor_of(request, trusted)
        ctx = Context(hub=hub, actor=NOBODY, request_id=request[REQUEST_ID], visitor=visitor)
        code = request.match_info["short_code"][:512].replace("\0", "")
        try:
            link = (await dispatcher.run_for(ctx, command, {"short_code": code}, door="page")).data
        except errors.ValidationFailed:
            # Text that no message may hold cannot be a code.
            return _response(closed(errors.LinkExpired()), errors.LinkExpired())
        except HubError as error:
            return _response(closed(error), error)
        return _response(opened(link))

    return answer


def opened(link: ResolvedLink) -> str:
    """The page of a link that leads somewhere."""
    title = html.escape(link.title or "You are invited to a call")
    if link.next_step == "sign_in":
        inner = "<p>This link is for certain people. Open it in the app, where you are signed in.</p>"
        return _page(title, link.short_code, inner)
    field = """
<label for="password">Password</label>
<input id="password" name="password" type="password" maxlength="200" autocomplete="off" required>"""
    inner = f"""
<p class="soft">{"Somebody inside will let you in." if link.require_approval else "Come in as a guest."}</p>
<form>
<label for="name">Your name</label>
<input id="name" name="display_name" maxlength="128" autocomplete="name" required autofocus>{
        field if link.next_step == "password" else ""
    }
<p id="error" class="bad" role="alert" hidden></p>
<button>Continue</button>
<noscript><p class="bad">This page needs JavaScript.</p></noscript>
</form>
<section id="passed" hidden>
<p id="next" class="good" role="status"></p>
<dl><dt>Call</dt><dd id="call"></dd><dt>You are</dt><dd id="role"></dd><dt>Switched off</dt><dd id="off"></dd>
<dt>Good until</dt><dd id="until"></dd></dl>
<button id="copy" class="plain" type="button">Copy the guest token for the app</button>
</section>"""
    return _page(title, link.short_code, inner)


def closed(error: HubError) -> str:
    """The page of a link that does not work, or not now."""
    if error.retryable:
        title, text = "Not now", "Too many attempts, or too much to do. Try again in a moment."
    else:
        title, text = (
            "This link does not work",
            "It may be mistyped, or it is not open. Ask whoever sent it for another.",
        )
    return _page(title, "", f"<p>{text}</p>")


def _page(title: str, code: str, inner: str) -> str:
    """`title` and `inner`: HTML."""
    script = f"<script>{SCRIPT}</script>" if code else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>{title}</title><style>{STYLE}</style></head>
<body><main data-code="{html.escape(code)}"><h1>{title}</h1>{inner}</main>{script}</body></html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Our one style and our one script, which speaks to this hub alone.
_POLICY: Final = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _response(page: str, error: HubError | None = None) -> web.Response:
    headers = {"Content-Security-Policy": _POLICY}
    if error is not None and error.retryable:
        headers[hdrs.RETRY_AFTER] = str(max(1, -(-(error.retry_after_ms or 1000) // 1000)))
    return web.Response(
        text=page, status=error.status if error else 200, content_type="text/html", charset="utf-8", headers=headers
    )
