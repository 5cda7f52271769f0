"""The doors: HTTP, webhooks, health, and the sockets. The only code that knows aiohttp's requests."""
