"""Privacy of recorded events: keyed hashes, redaction of text, and the switch that enables storing text."""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_ml.errors import StoreError

KEY_FILE = "events.key"
_KEY_BYTES = 32

MAX_TEXT_CHARS = 20_000  # of one stored text; the encoder reads far less

# The word for password in the commoner languages; those written without spaces stand apart.
_PASSWORD = (
    r"(?:pass(?:word|wd|phrase|code|wort|ord)|pwd|pin|pass[ _-]?key|kennwort|geheimzahl|zugangscode"
    r"|mot[ _]de[ _]passe|mdp"
    r"|code[ _]secret|contrase[nñ]a|clave|senha|palavra[ _-]?passe|parola(?:[ _]d['’]ordine)?|wachtwoord|l[öo]senord"
    r"|adgangskode|kodeord|salasana|has[łl]o|heslo|geslo|lozinka|parol[aăeė]?|jelsz[óo]|[şs]ifre|парол[ья]|парола|лозинка"
    r"|κωδικ[όο]ς?|συνθηματικ[όο]|סיסמ[הא]|كلمة (?:المرور|السر)|رمز عبور|पासवर्ड|mật khẩu|(?:kata )?sandi|nenosiri)"
    r"(?:s|et|en|i|im|em|om|m|si)?"
)
_PASSWORD_CJK = r"(?:密[码碼]|口令|パスワード|暗証番号|비밀번호|암호|รหัสผ่าน)"
_SECRET = (
    r"(?:secret|credentials?|(?:(?:access|auth|refresh|session|id)[ _-]?)?token|(?:api|private|secret|access)[ _-]?key"
    r"|client[ _-]?secret|signature)"
)
_NAMED = rf"(?i)(?<![^\W_])(?:{_PASSWORD}|{_SECRET})(?!\w)"
_IS = (
    r"(?:(?:is|are|was|ist|lautet|heißt|est|es|é|è|[äæe]r|on|to|je|jest|это|είναι|הוא|هي|هو|है|là|adalah)(?!\w)"
    r"|는|은|가|이|は|が|是|为|為|[:=：＝]|[-=]>|—|–|→)"
)
_VALUE = (
    r"""(?:"[^"\n]{1,200}"|'[^'\n]{1,200}'|“[^”\n]{1,200}”|«[^»\n]{1,200}»|`[^`\n]{1,200}`"""
    r"""|[!-~]++|\S++)"""
)
_OF = r"(?:\s(?:for|of|to|para|de|del|für|zu|zum|pour|du|di|do|voor|till|для|от)\b(?:\s[\w.-]{1,30}){1,3}?)?"

_STEMS = (  # one of them stands in every text that the patterns of named secrets match, lower-cased
    "pass", "pwd", "pin", "kennwort", "geheim", "zugang", "mdp", "code", "contrase", "clave", "senha", "parol", "wacht",
    "senord", "adgang", "kodeord", "salasana", "has", "heslo", "geslo", "lozinka", "jelsz", "ifre", "парол", "лозинк",
    "κωδικ", "συνθηματ", "סיסמ", "كلمة", "رمز", "पासवर्ड", "mật", "sandi", "nenosiri", "secret", "credential", "token",
    "key", "signature",
)  # fmt: skip
# Every pattern takes time linear in the text: repetitions are possessive or bounded, and a lookbehind keeps a match
# from starting again inside what failed. It is tried where one of its words is in the text, lower-cased. Order matters:
# what is narrow comes before what is wide.
_PATTERNS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (kind, words, re.compile(pattern))
    for kind, words, pattern in (
        ("secret", ("-----begin",), r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]*+(?:-----END [A-Z ]{0,30}-----)?"),
        ("secret", ("authorization", "cookie", "key", "token"),
         r"(?i)(?<![\w-])(?:(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,30}(?:key|token))\s{0,5}[:=][^\n]++"),
        ("secret", ("bearer", "basic"), r"(?i)(?<!\w)(?:bearer|basic)\s{1,5}[\w.~+/=-]{8,}+"),
        ("credentials", ("://",), r"(?<=://)[^\s/@?#]++(?=@)"),
        ("email", ("@",), r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)+"),
        ("secret", ("eyj",), r"(?<![\w.-])eyJ[\w-]{8,}+\.[\w-]{4,}+(?:\.[\w-]*+)?"),
        ("secret", _STEMS, rf"{_NAMED}{_OF}['\"]?\s{{0,5}}{_IS}(?:\s{{0,3}}{_IS})?\s{{0,5}}{_VALUE}"),
        ("secret", ("",), rf"{_PASSWORD_CJK}\s{{0,5}}{_IS}?\s{{0,5}}{_VALUE}"),
        ("secret", _STEMS, rf"{_NAMED}\s{{1,5}}(?=[^\s\d]{{0,60}}\d)[!-~]++"),
        ("secret", ("",), r"(?<![\w-])(?:sk|pk|rk|gh[opsur]|github_pat|glpat|xox[a-z]|xapp|hf|npm|pypi|dop_v1|shpat"
                          r"|ya29|AKIA|ASIA|AIza)[-_.]?(?=[\w-]{16})[\w-]++"),
        ("iban", ("",), r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,4})?\b"),
        ("address", (":", "-"), r"(?i)(?<![\w:.-])(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![\w:-])"),
        ("address", (":",), r"(?<![\w:.])[0-9A-Fa-f:]{1,40}:(?:\d{1,3}\.){3}\d{1,3}(?![\w])"),
        ("address", (":",), r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{3,45}+(?![\w:])(?:%\w{1,15})?"),
        ("address", (".",), r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w)"),
        ("number", ("",), r"(?<![\w.])\+?\d(?:[ ()./-]{0,2}\d){7,}+(?!\w)"),
        ("secret", ("",), r"(?<!\w)(?=[^\W\d]*+\d)(?=\d*+[^\W\d])\w{32,}+"),
    )
)  # fmt: skip


def redact(text: str) -> str:
    """Return the text with addresses, numbers of eight digits and more, and what looks like a secret replaced.

    Each becomes its kind in brackets, such as `[email]`. Takes time linear in the length of the text."""
    lowered = text.lower()
    for kind, words, pattern in _PATTERNS:
        if any(word in lowered for word in words):
            text = pattern.sub(functools.partial(_replacement, kind), text)
    return text


def _replacement(kind: str, match: re.Match[str]) -> str:
    found = match[0]
    if kind == "address" and found.count(":") > 1 and not _is_address(found):
        return found
    return f"[{kind}]"


def _is_address(text: str) -> bool:
    """Return whether colons make an IPv6 or hardware address; not a time of day, nor `a::b` of a program."""
    if len(text) == 17 and text.count(":") == 5:
        return True
    try:
        address = ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return False
    return sum(map(len, text.split(":"))) >= 4 and int(address) > 1


_URL_SECRETS = re.compile(
    r"(?i)(?<=://)[^\s/@?#\"'\\]++(?=@)|(?<=[?&])((?:[\w-]{0,30}[_-])?(?:token|key|secret|password|pwd|signature|sig|auth))"
    r"=[^&\s#\"'\\]++"
)


def without_url_secrets(text: str) -> str:
    """Return text (or JSON) with user, password and secret query values of every URL in it replaced."""
    if "://" not in text:
        return text
    return _URL_SECRETS.sub(lambda found: f"{found[1]}=[secret]" if found[1] else "[credentials]", text)


def redacted(value: Any) -> Any:
    """Return a JSON value with every text in it cut to `MAX_TEXT_CHARS` and redacted."""
    if isinstance(value, str):
        return redact(_cut(value))
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list) else value


def _cut(text: str) -> str:
    """Return the beginning of a long text, without a word cut in two, which might be half a secret."""
    return text if len(text) <= MAX_TEXT_CHARS else " ".join(text[:MAX_TEXT_CHARS].rsplit(None, 1)[:1])


@dataclass(frozen=True, slots=True)
class Privacy:
    """How the private parts of an event are written; text is left out by default."""

    key: bytes
    keep_text: bool = False
    keep_features: bool = False

    def digest(self, value: str) -> str:
        """Return a keyed hash (HMAC-SHA-256, 128 bits): equal values can be joined, but not guessed without the key."""
        return hmac.new(self.key, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def clean(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the dictionary form of an event, its private parts hashed, redacted or left out. Changes `row`."""
        if "unit" in row:
            row["unit"] = self.digest(row["unit"])
        text = row.pop("text", None)
        if text is not None:
            row["query_key"] = self.digest(text)
            if self.keep_text:
                row["text"] = redacted(text)
        context = row.pop("context", None)
        if context and "text" in row:
            row["context"] = redacted(context)
        comment = row.pop("comment", None)
        if comment is not None and self.keep_text:
            row["comment"] = redacted(comment)
        return row


def load_key(folder: Path) -> bytes:
    """Return the key of keyed hashes, made on first use with access for its owner only.

    Raises `StoreError` if it can be neither read nor made."""
    path = folder / KEY_FILE
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read or make the key {path}: {error.strerror}; check its permissions") from error
    if len(key) < _KEY_BYTES:
        raise StoreError(f"the key {path} is too short; delete it to get a new one (old hashes will not join)")
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):  # another process was faster: all share one key
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
