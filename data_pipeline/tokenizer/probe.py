"""Text that is hard to encode: on it the backends of an Encoder must agree."""

from __future__ import annotations

import random
from typing import Any

from data_pipeline.tokenizer.spec import SPECIAL_TOKENS, byte_of_char

_BLANKS = (0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x3000)
_PROBE_FIXED = (
    "",
    "def loop(x: int) -> int:\n\treturn x**2 + 0x1F  # it's 'quoted'; we'LL see\r\n\n\n    pass\n",
    '#include <a.h>\n#define M(x) ((x)<<3)\nint main(){for(int i=0;i<10;++i)printf("%d\\n",i);}',
    "I'm sure they've said we'd DON'T; naïve café façade. “Quotes” — dashes…",
    "漢字とかなカナ混じり文。中文字符没有空格\uff0c한국어 텍스트 ภาษาไทย हिन्दी १२३ ٣٤٥ Ⅷ ½ ²",
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇩🇪🇫🇷 1\ufe0f\u20e3 ☺\ufe0f a👩\u200d💻b",
    "שנה טבה \u202eמערב abc\u202c العربية ١٢٣ \u200f.",
    "e\u0301 a\u0308\u0323 \u0301start Z\u0351\u036b\u0343\u036a\u0302 क्षि ก็ Å\u212b ﬁ ﷺ",
    "".join(map(chr, range(0xA0))) + "a\x00b\x00\x00c\x7f\x1b[0m",
    "".join(f"x{chr(c)}y {chr(c)}{chr(c)}z" for c in (*range(9, 14), *range(28, 33), 0x85, 0xA0)),
    "".join(f"x{chr(c)}y {chr(c)}{chr(c)}" for c in _BLANKS),
    "a\rb\r\rc\r\n\rd\n\re \r f\r",
    "".join(f"{b * n}{end}" for b in " \t\n\r" for n in (*range(1, 20), 300) for end in "a "),
    " \t \n \t\n\n  \r\n \u3000 \xa0 \n",
    " " * 4096,
    "0 12 345 6789 01234567890123456789 3.14e-10 1_000_000 ٠١٢ \U0001d7d8\U0001d7d9 ①②",
    # noncharacters, and text that once was UTF-8 read as Latin-1
    "\ufffd\ufffe\uffff\U0010ffff\U0001fffe\ue000\ufeffÃ©â\u201a¬ï¿½\xc0\x80\xed\xff\ud7ff\U00010000",
    '!!!???...;;;---===###@@@$$$%%%^^^&&&***(((()))){{{}}}[[[]]]|||\\\\\\///<<<>>>~~~```"""',
    "a" * 5000 + "ab" * 2000 + "漢" * 1000 + "=" * 5000,
)
_PROBE_CLASSES = (
    "abcdefghijklmnopqrstuvwxyzABCDEF",
    "  \t\n\r",
    "0123456789",
    "äßñçœ\u0301\u0327",
    "漢字かな한글",
    "🙂🜁👩\u200d\ufe0f",
    "\u2028\x00\ufeff\xad\x85\xa0",
    ".,;:'\"()[]{}<>|/\\-_=+*&^%$#@!~`",
    "'st're'll",
)


def probe_texts(spec: dict[str, Any]) -> list[str]:
    """Return the adversarial corpus for a tokenizer.json: fixed texts, its tokens, and noise.

    It is the same for the same tokenizer, about 0.2 MB.
    """
    rng = random.Random(0)
    names = [t["content"] for t in spec["added_tokens"]] + list(SPECIAL_TOKENS)
    spelled = [
        "".join(names),
        " ".join(names),
        "".join(f"a{n}b  {n}  {n[:-1]}\n{n}\n" for n in names),
    ]
    table = byte_of_char()
    tokens = [
        bytes(map(table.__getitem__, token))
        for token in spec["model"]["vocab"]
        if table.keys() >= set(token)
    ]
    # tokens in any order: merges compete across their borders
    shuffled = [b"".join(rng.choices(tokens, k=1000)).decode(errors="replace") for _ in range(8)]
    noise = [
        "".join(rng.choice(rng.choice(_PROBE_CLASSES)) for _ in range(rng.randrange(1, 4000)))
        for _ in range(8)
    ]
    words = "".join(rng.choices(_PROBE_CLASSES[0] + _PROBE_CLASSES[2] + '  ,"{}:_', k=70_000))
    return [*_PROBE_FIXED, *spelled, *shuffled, *noise, words]
