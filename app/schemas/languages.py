"""The codes of languages, and what a client is told that sends a name."""

import re

_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?")
_CODES = {
    "arabic": "ar", "bengali": "bn", "bulgarian": "bg", "catalan": "ca", "chinese": "zh",
    "mandarin": "zh", "croatian": "hr", "czech": "cs", "danish": "da", "dutch": "nl",
    "english": "en", "estonian": "et", "finnish": "fi", "french": "fr", "german": "de",
    "greek": "el", "hebrew": "he", "hindi": "hi", "hungarian": "hu", "indonesian": "id",
    "italian": "it", "japanese": "ja", "korean": "ko", "latvian": "lv", "lithuanian": "lt",
    "malay": "ms", "norwegian": "no", "persian": "fa", "polish": "pl", "portuguese": "pt",
    "romanian": "ro", "russian": "ru", "serbian": "sr", "slovak": "sk", "slovenian": "sl",
    "spanish": "es", "swahili": "sw", "swedish": "sv", "tamil": "ta", "thai": "th",
    "turkish": "tr", "ukrainian": "uk", "urdu": "ur", "vietnamese": "vi",
    "deutsch": "de", "español": "es", "français": "fr", "italiano": "it", "português": "pt",
    "русский": "ru", "中文": "zh", "日本語": "ja",
}  # fmt: skip


def language_code(language: str) -> str:
    """Return a code such as `en` or `pt-BR`. Raises `ValueError` that says which to use."""
    if _CODE.fullmatch(language):
        return language
    name = language.strip().lower()
    code = _CODES.get(name)
    first, _, region = name.replace("_", "-").partition("-")
    if code is None and _CODE.fullmatch(first) and len(first) == 2:  # noqa: PLR2004  # ISO 639-1
        code = f"{first}-{region.upper()}" if region.isalnum() else first
    if code is None or not _CODE.fullmatch(code):
        raise ValueError("must be a code of ISO 639-1 such as `en`, or `pt-BR`")
    raise ValueError(f"must be a code of ISO 639-1: use `{code}`")
