"""The two documents, OpenAPI 3.1 and AsyncAPI 3.0, out of the declared commands and the events of `protocol/`.

Pure and deterministic: the same commands give the same bytes, so that a test can hold the files in `docs/` to the code.
"""

from hub.contract.parts import VERSION, JsonObject, text
from hub.contract.rest import openapi
from hub.contract.sockets import asyncapi

__all__ = ["VERSION", "JsonObject", "asyncapi", "openapi", "text"]
