"""Language codes that the sentence splitter knows."""

from __future__ import annotations

import difflib
import re

_NAMES = """\
am amharic amh | ar arabic ara | bg bulgarian bul | bn bengali ben | ca catalan català cat | cs czech čeština ces cze
da danish dansk dan | de german deutsch deu ger | el greek ell gre | en english eng | es spanish español castellano spa
fa persian farsi fas per | fi finnish suomi fin | fr french français francais fra fre | gu gujarati guj | he hebrew heb
hi hindi hin | hu hungarian magyar hun | hy armenian hye arm | id indonesian ind | it italian italiano ita
ja japanese jpn | kk kazakh kaz | kn kannada kan | ko korean kor | ml malayalam mal | mr marathi mar
my burmese myanmar mya bur | nl dutch nederlands nld dut | no norwegian norsk nor | pa punjabi pan
pl polish polski pol | pt portuguese português por | ro romanian ron rum | ru russian русский rus
sk slovak slovenčina slk slo
sv swedish svenska swe | ta tamil tam | te telugu tel | th thai tha | tr turkish türkçe tur | uk ukrainian ukr
ur urdu urd | vi vietnamese vie | zh chinese mandarin zho chi"""
CODES_BY_NAME = {name: entry.split()[0] for entry in re.split(r" \| |\n", _NAMES) for name in entry.split()}

_WITH_RULES = "am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk"
_AS_A_RELATIVE = (  # sentencex uses the rules of a related language
    "acm aeb aeb-arab als alt anp apc arn arq ary arz ast avk awa bar bci blk bpy bxr csb de-at de-ch de-formal dsb "
    "dua egl eml es-formal ext fit fon frc frp frr fur gcf gcr gld gsw guc hke hrx hsb hyw inh jut kaa kab kbp kea kjh "
    "kjp kk-latn koi krc krl ksh ksw kum lad lbe lez lij lld lmo lua mag mai mdf mhr mnw mrj mwl myv nah nap nds "
    "nds-nl nl-informal olo pcd pdc pdt pfl pms pnt pt-br qug rgn rue rut sah scn sdc ses shy sjd sli smn sro srn stq "
    "sty szl aae tcy tet tyv udm vec vls vmf vmw vot wls xal"
)
_ISO_639_1 = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv "
    "ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mo mr ms mt my na nb nd "
    "ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr "
    "ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
_KNOWN = frozenset(f"{_WITH_RULES} {_AS_A_RELATIVE} {_ISO_639_1}".split())
_REGIONAL = re.compile(r"(en|zh)-\w+")  # regions make no difference


def find_language_problem(code: str) -> str | None:
    """A message about an unknown language code, with a suggestion; None if the code is known.

    sentencex itself treats an unknown code as English.
    """
    if code in _KNOWN or _REGIONAL.fullmatch(code):
        return None
    base = re.split(r"[-_.]", code.lower())[0]
    if base in _KNOWN:
        meant = base
    else:
        names = difflib.get_close_matches(base, CODES_BY_NAME, 1, 0.75)
        meant = CODES_BY_NAME[names[0]] if names else ""
    hint = f" (did you mean {meant!r}?)" if meant else ""
    with_rules = _WITH_RULES.replace(" ", ", ")
    return (
        f"unknown language {code!r}{hint}; expected an ISO 639-1 code: {with_rules} have their own rules, other "
        "languages are split like English"
    )
