"""Words as captions' scores count them: the Penn Treebank's tokens in lower case, without punctuation.

Published scores come from CoreNLP 3.4.1's PTBTokenizer (`-lowerCase`), a Java program, and the list of tokens that
pycocoevalcap then drops. This is the part of its rules that captions meet, as one expression; where rules compete the
longer token stands first. What differs from what one would write:

- Brackets stay, as -lrb- and -rrb-: the list has them in capitals. So do two marks together (?!, !!), * and %.
- "street.A" and "yes!no" are one word, and so are the parts of "black/white" and "x-ray"; "don't" is do n't, and
  "cannot" can not.
- A full stop stays with what may be an abbreviation: with single letters, "st.", "wed.", "sq.", and so on. A few, as
  "Miss." and "Wash.", have to begin with a capital.
- £ is #, € is $, ¢ is "cents", ½ is 1/2. Emoji and what else that program does not know vanish.
"""

import re

_APOSTROPHE = r"['\u2019]"
# Dropped. Longer dashes and rows of dots come in single ones here.
PUNCTUATION = {*".?!,:;-'\u2019\"`"}
_ABBREVIATIONS = """adj adm adv ala? apr ariz assn aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr
  cos? col colo conn corp cpl ct dak dec dept det drs? elec ens esq est etc ext feb fla fri ft ga gen gov hon inc ind
  insp intl invt jan jos jr jul jun kans? ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mon? mont mrs? ms mt
  mtg natl neb nev nov oct okla penn pfc ph plc pres prof pte pty pvt rd reps? rev rt sens? sept? seq sfc sgt spc sq sr
  st ste supt sys tel tenn thu thurs tues? univ va vs vt wed wisc? wm wyo"""
_TOKEN = re.compile(
  rf"""
  </?[a-z][\w:.-]*(?:\s[^<>]*)?> | &\#\d+;
  | https?://[^\s"<>|()]+[^\s"<>|.!?(){{}},-]
  | (?:www\.(?:[^\s"<>|.!?(){{}},]+\.)+[a-z]{{2,4}} | (?:[^\s"`'<>|.!?(){{}},_$-]+\.)+(?:com|net|org|edu)\b)
    (?:/[^\s"<>|()]+[^\s"<>|.!?(){{}},-])?
  | [a-z0-9][^\s"<>|()]*@(?:[^\s"<>|().]+\.)*[^\s"<>|().\[\]{{}}]+ | @[a-z_]\w* | \#[a-z]+
  | [^\W_]+(?:[-._/][^\W_]+)*\.(?:gif|gz|html?|jpe?g|mp[34]|pdf|php|png|txt|xml|zip)\b
  # can't, cannot, gonna
  | n{_APOSTROPHE}t | [a-z]*[a-mo-z](?=n{_APOSTROPHE}t)
  | (?:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:gim|lem)(?=me\b))(?!\w+-)
  # it's, 'tis, '60s, '05; o'clock, ma'am, y'all
  | {_APOSTROPHE}(?:[msd]|re|ve|ll)(?![^\W_])
  | {_APOSTROPHE}(?:t(?=is\b|was)|(?:em|till?|[2-9]0s)\b|n(?:{_APOSTROPHE}|\b)|\d\d(?=\s|$))
  | [a-hj-xz]{_APOSTROPHE}[^\W\d_]{{2,}} | c'mon | ol'(?!\w) | y{_APOSTROPHE}(?=[a-z])
  | [^\W\d_]+[aeiouy]{_APOSTROPHE}[aeiou][^\W\d_]*
  # 12/25/2010, 1/2, -1,000.5, 10:30; a.m., St., No. 5
  | \d{{1,2}}[-/]\d{{1,2}}[-/]\d{{2,4}} | \d{{1,4}}/\d{{1,4}}(?!\w) | [-+]?\d*(?:[.:,]\d+)+ | [-+]\d+
  | (?:[a-z]\.){{2,}}(?![^\W_-]|-\w) | ph\.d\. | [a-z]\.(?![^\W\d]|\.\.|\s*$)
  | (?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)
  | (?-i:Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash)\.(?!\w|\.\.) | (?:nos?|figs?|pp)\.(?=\s*\d)
  # black/white, AT&T, U.S.-made, street.A, x-ray
  | [a-z0-9]+(?:-[a-z]+){{0,2}}(?:/[a-z0-9]+(?:-[a-z]+){{0,2}}){{1,2}} | (?-i:[A-Z]+(?:[+&][A-Z]+)+)
  | [a-z0-9][a-z0-9.,]*(?:-(?:[a-z](?:\.[a-z])+\.|[a-z0-9]+))+
  | [^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)+ | c\+\+ | c\#
  | (?:[dol]{_APOSTROPHE})?[^\W_]+(?:[-_\u2010\u2011](?:[dol]{_APOSTROPHE})?[^\W_]+)*
  | [:;=]-?(?:[()]|[dp]\b) | [!?]+ | \*+ | _+ | [!-~¡-϶‖-‣‰-※‾-⁂℀-⅏←-⯿]""",
  re.IGNORECASE | re.VERBOSE,
)
_SPELT = str.maketrans(
  {
    **dict.fromkeys("\u2018\u201b\u2039\u203a\u201c\u201d«»\u2013\u2014\u2015\u2026", " "),
    **{"½": " 1/2", "⅓": " 1/3", "¼": " 1/4", "⅔": " 2/3", "¾": " 3/4"},
    **{"£": " # ", "€": " $ ", "¤": " $ ", "¢": " cents "},
  }
)
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def tokens(text: str) -> list[str]:
  """The words of a caption; see the top of this file."""
  text = re.sub(f"&({'|'.join(_ENTITIES)});", lambda m: _ENTITIES[m[1]], text.translate(_SPELT))
  found = (match[0].lower() for match in _TOKEN.finditer(text))
  return [_written(token) for token in found if token not in PUNCTUATION]


def _written(token: str) -> str:
  if re.fullmatch(r"\u2019(t|[msd]|re|ve|ll)|n\u2019t", token):  # the curled one of o'clock stays
    return token.replace("\u2019", "'")
  return "".join(_BRACKETS.get(character, character) for character in token)
