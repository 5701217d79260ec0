"""Which tokenizer.json is followed: one made of the parts that LLaMA's, Vicuna's, Llama 3's, SmolLM2's, CLIP's and this
project's own are made of.

The file is a small program that a stranger wrote for the `tokenizers` library: a normalizer can double a text forty
times, a regular expression can need years, and what the library does not expect is a panic, which it prints itself. So
each part is looked up in a list, and any other is refused before the library sees it. What is no JSON of this shape at
all raises whatever Python raises, which `Tokenizer` puts into a sentence.
"""

from minillava.errors import UserError

NORMALIZERS = ("Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase")
PRE_TOKENIZERS = ("Metaspace", "ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit")
MOST_PARTS = 20  # each may add a character to every word
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
REGEXES = (  # those that take at least one character, and little time whatever the text
    r"\s",
    r"\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{WORDS}|\p{{N}}{{1,3}}|{SIGNS}",  # Llama 3
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{WORDS}|\p{{N}}|{SIGNS}",  # Qwen 2
    CLIP,
    r"<\|startoftext\|>|<\|endoftext\|>|" + CLIP,
)


def check_spec(spec: dict) -> None:
    """UserError where a part that changes the ids is none of those known here."""
    _check_model(spec["model"])
    for token in spec.get("added_tokens") or []:
        if not 0 <= token["id"] < 2**31 or spec["model"]["vocab"].get(token["content"], token["id"]) != token["id"]:
            raise UserError(f"its added token {token['content'][:40]!r} cannot have the id {token['id']}.")
    for part in _parts(spec.get("normalizer"), "normalizers", NORMALIZERS):
        replaced = len(part.get("pattern", {}).get("String", " "))
        if len(part.get("content", "")) > replaced or len(part.get("prepend", "")) > 1:
            raise UserError("its normalizer makes texts longer than they are.")
    split = _parts(spec.get("pre_tokenizer"), "pretokenizers", PRE_TOKENIZERS)
    if sum(part["type"] == "ByteLevel" for part in split) > 1:  # each doubles what is not ASCII
        raise UserError("its pre_tokenizer splits into bytes more than once.")


def _check_model(model: dict) -> None:
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"its model is {str(model['type'])[:40]!r}, but only BPE is known here.")
    for option in ("dropout", "continuing_subword_prefix"):
        if model.get(option):
            raise UserError(f"its {option} {str(model[option])[:40]!r} is not known here.")
    if model.get("unk_token") is not None and model["unk_token"] not in model["vocab"]:
        raise UserError(f"its vocab does not hold the unk_token {model['unk_token'][:40]!r}.")


def _parts(part: dict | None, within: str, known: tuple[str, ...]) -> list[dict]:
    """The parts of a normalizer or pre_tokenizer, in their order."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        parts = [inner for outer in part[within] for inner in _parts(outer, within, known)]
        if len(parts) > MOST_PARTS:
            raise UserError(f"it has {len(parts)} {within}, but at most {MOST_PARTS} are used here.")
        return parts
    if part["type"] not in known:
        raise UserError(f"{str(part['type'])[:40]!r} of its {within} is not known here.")
    regex = part.get("pattern", {}).get("Regex")
    if regex is not None and regex not in REGEXES:
        raise UserError(f"its regular expression {regex[:40]!r} is none of those known here.")
    return [part]


def first_token(processor: dict | None) -> str | None:
    """The name of the token that a post-processor puts before a text, as LLaMA's "<s>"; None where it puts none."""
    kind = processor["type"] if processor else None
    if kind == "Sequence":
        return next(filter(None, map(first_token, processor["processors"])), None)
    if kind in ("BertProcessing", "RobertaProcessing"):
        return processor["cls"][0]
    if kind != "TemplateProcessing":
        return None
    names = [piece.get("SpecialToken", {}).get("id") for piece in processor["single"]]
    lost = [name for name in names if name is not None and name not in processor["special_tokens"]]
    if lost:
        raise UserError(f"its post_processor adds {lost[0][:40]!r}, which it does not define.")
    return names[0] if names else None
