"""The first sentence of a docstring, and the request that can be made of it."""

from __future__ import annotations

import re

_MARKUP = re.compile(r":[\w:]+:`[~!]?([^`]+)`")
_VERBS = """
accept add analyze append apply approximate archive assign associate attach back build calculate
cancel check clear close combine compare compile compose compress compute concatenate configure
construct convert copy count create crop cut decode decompress decrypt define delete derive
describe detach detect determine disable disassociate display divide download draw emit enable
encode encrypt enumerate escape estimate evaluate execute expand export extract factor fetch
fill filter find fit flatten format generate get give grant group hash identify import
initialize insert install inspect interpolate invert invoke iterate join launch limit link list
load locate lock look lookup make map mark match measure merge modify move multiply normalize
obtain open order pack pad parse partition perform pick plot predict print process produce
provide publish pull push put query quote raise read rearrange rebuild receive record redirect
reduce register reject remove rename render repeat replace report request reset resize resolve
restart restore retrieve return reverse revoke roll rotate round run sample save scale scan
schedule search select send serve set shift show shuffle simplify sleep solve sort split squeeze
start stop store strip subscribe subtract sum swap tag take terminate test tile transform
translate transpose trim truncate turn unescape unlink unlock unpack unquote unregister
unsubscribe untag update upload use validate verify view visualize wait warn wrap write yield
zip
"""


def summary(docstring: str) -> str:
    """Return the first sentence of a docstring without markup, or "" if there is no usual one."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip())[0].split())
    match = re.match(r"(.+?[.!?])(?:\s+[A-Z(`]|$)", paragraph)
    sentence = match[1] if match else paragraph
    sentence = _MARKUP.sub(r"`\1`", sentence).replace("``", "`")
    sentence = re.sub(r"(?<!\*)\*(\w+)\*(?!\*)", r"`\1`", sentence)
    odd = re.search(r"->|>>>|::|\\|\$|\{\{|\[\d|_$|http|deprecat|self\b|TODO|XXX", sentence, re.I)
    if odd or not 12 <= len(sentence) <= 160 or sentence.count("`") % 2:
        return ""
    if sentence.count("(") != sentence.count(")") or not sentence[0].isupper():
        return ""
    if re.search(r"\b(as|by|of|in|to|the|a|for|is|and|or|with|following)\W*$", sentence):
        return ""
    return sentence if sentence[-1] in ".!?" else f"{sentence}."


def act(docstring: str) -> str:
    """Return a summary as what someone asks for, such as `sort the rows of a table`, or ""."""
    sentence = summary(docstring)
    first, _, rest = sentence.rstrip(".!?").partition(" ")
    verb = first.lower()
    known = _VERBS.split()
    if verb not in known:
        for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
            stem = verb.removesuffix(ending) + instead
            if verb.endswith(ending) and stem in known:
                verb = stem
                break
        else:
            return ""
    if not rest or re.search(r"^of\b|\b(this|these|above|see|its)\b|:|;|\. ", rest):
        return ""
    return f"{verb} {rest}"
