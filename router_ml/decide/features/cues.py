"""Word cues: which everyday words hint at conditions, sequences, references, domains.

A dictionary lookup per word keeps this to microseconds. The lists are hints for a learned model and for the
heuristic fallback; they are never a decision by themselves.
"""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:]\d+)*")
ASCII_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+(?:[.,:][0-9]+)*")  # the same in lower-case ASCII text, faster

CUES: dict[str, str] = {
    "question": "what who whom whose where when why how which was wer wo wann warum wie qué quién dónde cuándo cómo "
    "qui quoi où quand comment chi cosa dove quando come kto co gdzie что кто где когда как ne nasıl",
    "joiner": "and also plus und y e et och en и та ve dan và na oraz i",
    "sequence": "then afterwards after before once until next first finally later danach dann luego después ensuite "
    "puis poi dopo potom потом sonra lalu",
    "condition": "if when whenever unless otherwise else depending soon case wenn falls sobald si cuando quand lorsque "
    "se quando если когда eğer jika nếu jeśli als",
    "comparison": "compare versus vs cheapest cheaper best better worst fastest closest nearest lowest highest "
    "fewer difference between most least vergleiche billigste compara barato meilleur moins migliore",
    "reference": "it that this those these them they him her he she one ones there same thing stuff other another "
    "es das dies ihn ihm eso esto lo la ça cela le celui quello questo это его её bunu onu itu nó",
    "self": "me my mine i i'm i've i'd we our us ich mein mir wir yo mi je mon moi io mio я мне мой",
    "hedge": "maybe perhaps something somehow whatever somewhere sometime anything guess think sort kind probably",
    "politeness": "please thanks thank kindly could would bitte danke por gracias merci grazie prego пожалуйста lütfen",
    "greeting": "hi hello hey morning evening bye goodbye hallo hola bonjour salut ciao привет merhaba halo",
    "write": "write rewrite draft summarise summarize summary translate rephrase shorten proofread essay letter "
    "paragraph poem article speech blog schreibe übersetze escribe traduce écris traduis scrivi traduci",
    "plan": "plan organise organize arrange prepare figure sort coordinate decide recommend suggest planifica planen",
    "quantifier": "all every each any both everyone everything none several alle jede todos todas tous tutti все",
    "negation": "not no don't doesn't never without except but cannot can't won't isn't nicht kein sin pas sans non не",
    "time": "today tomorrow tonight yesterday now monday tuesday wednesday thursday friday saturday sunday week month "
    "weekend noon midnight pm am hour hours minutes minute january february march april may june july august september "
    "october november december heute morgen mañana hoy demain aujourd'hui domani oggi завтра yarın",
    "math": "solve equation integral derivative probability sum product area volume triangle percent ratio average "
    "calculate compute factor root matrix vector theorem proof radius",
    "code": "function code python java javascript class bug error compile regex sql api script git docker return array "
    "list string variable loop",
}

DOMAINS: dict[str, str] = {
    "mail": "email e-mail mail mails inbox gmail unread newsletter correo courriel",
    "calendar": "calendar meeting meetings appointment schedule reschedule event invite slot "
    "kalender termin reunión cita agenda",
    "contacts": "contact contacts address phonebook",
    "message": "message text sms whatsapp slack dm call ring voicemail chat nachricht mensaje",
    "files": "file files folder document pdf spreadsheet sheet drive upload download attachment slides",
    "notes": "note notes notebook list todo tasks task reminder remind",
    "web": "search google look find lookup website article",
    "weather": "weather rain rainy snow forecast temperature sunny wetter tiempo météo",
    "home": "lights light lamp thermostat heating lock door garage vacuum alarm blinds camera oven plug",
    "shopping": "buy order cart basket price delivery return refund shop amazon kaufen comprar acheter",
    "travel": "flight flights hotel train ticket booking trip airport visa itinerary flug vuelo vol",
    "maps": "route traffic directions drive map distance navigate commute",
    "finance": "invoice bank balance payment pay transfer budget tax expense stock shares rechnung factura facture",
    "media": "play song music playlist movie film podcast episode album volume",
    "health": "doctor medication prescription workout steps sleep calories heart appointment",
    "food": "recipe restaurant dinner lunch breakfast table cook meal",
    "work": "project ticket sprint deploy server incident customer contract report budget",
}

CUE_NAMES = tuple(CUES)


def _index() -> dict[str, tuple[int, ...]]:
    table: dict[str, list[int]] = {}
    for position, words in enumerate((*CUES.values(), *DOMAINS.values())):
        for word in words.split():
            table.setdefault(word, []).append(position)
    return {word: tuple(positions) for word, positions in table.items()}


_INDEX = _index()
_N = len(CUES) + len(DOMAINS)


def count_cues(words: list[str]) -> list[int]:
    """Count how often each cue (first) and each domain (after them) occurs among lower-case words."""
    counts = [0] * _N
    for positions in map(_INDEX.get, words):
        if positions is not None:
            for position in positions:
                counts[position] += 1
    return counts
