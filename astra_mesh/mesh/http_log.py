"""What aiohttp logs of requests that cannot be read: a traceback for each, whoever sends them."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError


def without_bad_requests(name: str) -> logging.Logger:
    """The log of a module, for aiohttp: malformed requests do not reach it."""
    logger = logging.getLogger(name)
    if not logger.filters:
        logger.addFilter(lambda record: not _is_bad_http(record))
    return logger


def _is_bad_http(record: logging.LogRecord) -> bool:
    bad = (HttpProcessingError, web.RequestPayloadError)
    return record.exc_info is not None and isinstance(record.exc_info[1], bad)
