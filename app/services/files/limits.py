"""How large files may be."""

_MEGABYTE = 1_000_000
FILE_BYTES = 20 * _MEGABYTE
IN_DATABASE_BYTES = _MEGABYTE
"""Larger ones are in the file store."""
TOOL_IMAGE_BYTES = 5 * _MEGABYTE
"""Of an image in the result of a tool."""
TOOL_IMAGES = 4
"""Of one result."""
PIXELS = 25_000_000
MESSAGE_FILES = 8
PROMPT_IMAGE_BYTES = 48 * _MEGABYTE
"""Of all images that one prompt shows, and so of those of one message."""
IMAGE_TOKENS = 1_100
"""What an image counts before the provider has counted it."""
TEXT_TOKENS = 50_000
"""Of a document."""
_BYTES_PER_TOKEN = 3
_OVERHEAD_TOKENS = 4
TEXT_BYTES = (TEXT_TOKENS - _OVERHEAD_TOKENS + 1) * _BYTES_PER_TOKEN - 1


def text_tokens(size_bytes: int) -> int:
    """Estimate the tokens of a text of `size_bytes` in UTF-8, as prompts do."""
    return size_bytes // _BYTES_PER_TOKEN + _OVERHEAD_TOKENS
