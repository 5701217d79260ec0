"""Text to token ids and back: a thin wrapper of the `tokenizers` library.

    encode("a cat.")                               -> ids [263, 6635, 29889], offsets [(0, 1), (1, 5), (5, 6)]
    encode(["USER: ", Control("<image>"), "\\nHi"])  -> one pass over the whole prompt; a Control is one character of it

What differs from the textbook: **typed text never becomes a control token.** Ordinary tokenizers search the text for
"</s>", so a person who types it ends the turn. Here the library does not know the control tokens by their names: a
private-use character stands for each, and in typed text such characters become U+FFFD. The library still sees the whole
prompt at once, so the ids are the official ones (whether a word after `<image>` gets a "▁" is decided by the
tokenizer.json), and a typed "</s>" is four ordinary characters.

Source: LLaMA's sentencepiece BPE (arXiv 2302.13971, section 2.1: digits split, unknown characters fall back to bytes).
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from minillava.errors import UserError
from minillava.files import read_json, write_atomically, write_json

# LLaMA's names, and llava-hf's two
CONTROL_TOKENS = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "image": "<image>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# private-use characters that stand for control tokens inside the library
FIRST_CONTROL, LAST_CONTROL = 0x10F000, 0x10FFFD
NO_CONTROL = dict.fromkeys(range(FIRST_CONTROL, LAST_CONTROL + 1), "\N{REPLACEMENT CHARACTER}")


class Control(str):
    """The name of a control token ("<image>", "</s>") as a part of a prompt; any other str is text."""


class Tokenizer:
    """Encodes with character offsets, decodes in a stream; holds the content of one tokenizer.json."""

    def __init__(self, spec: dict, names: dict[str, str] | None = None):
        self.spec = spec
        self.names = {**CONTROL_TOKENS, **(names or {})}
        try:
            self._official = tokenizers.Tokenizer.from_str(json.dumps(spec))
            self._build()
        except BaseException as error:  # the library raises bare Exception for what it cannot read, and panics where it does not look first
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UserError(f"The tokenizer.json cannot be used: {' '.join(str(error).split())}.") from None

    def _build(self) -> None:
        """The library's tokenizer with a private-use character in place of each control token's name."""
        added = self.spec.get("added_tokens", [])
        named = set(self.names.values())
        self.controls = {t["content"]: t["id"] for t in added if t.get("special") or t["content"] in named}
        self._inner = tokenizers.Tokenizer.from_str(
            json.dumps({**self.spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
        )
        self._character = {name: chr(FIRST_CONTROL + i) for i, name in enumerate(self.controls)}
        self._official_id: dict[int, int] = {}  # the inner tokenizer gives added tokens other ids
        for token in added:
            flags = {key: token.get(key, False) for key in ("lstrip", "rstrip", "single_word")}
            control = token["content"] in self.controls
            content = self._character[token["content"]] if control else token["content"]
            normalized = not control and token.get("normalized", True)
            self._inner.add_tokens([AddedToken(content, normalized=normalized, special=False, **flags)])
            self._official_id[self._inner.token_to_id(content)] = token["id"]
        self._text_of_added = {t["id"]: t["content"] for t in added}
        self._byte_level = "ByteLevel" in json.dumps(self.spec.get("decoder"))
        self._strips_space = not self._byte_level and any(
            kind in json.dumps(self.spec.get("decoder")) for kind in ('"Strip"', '"Metaspace"')
        )
        self._bytes: dict[int, bytes] = {}
        first = self._official.encode("a").ids[:1]
        # LLaMA's post-processor puts <s> first; GPT-2's kin do not
        self.adds_bos = first == [self.controls.get(self.names["bos"])]

    # ------------------------------------------------------------ making, reading and saving
    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json (or the folder that holds it); names of bos, eos, ...

        from tokenizer_config.json beside it.
        """
        path = Path(path)
        path = path if path.suffix == ".json" else path / "tokenizer.json"
        if not path.exists() and path.with_name("tokenizer.model").exists():
            raise UserError(
                f"{path.parent} has a tokenizer.model but no tokenizer.json: copy that of llava-hf/llava-1.5-7b-hf into it."
            )
        spec, config = read_json(path), path.with_name("tokenizer_config.json")
        names = {}
        for role, value in read_json(config).items() if config.exists() else ():
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and role.removesuffix("_token") in CONTROL_TOKENS and role.endswith("_token"):
                names[role.removesuffix("_token")] = value
        try:
            return cls(spec, names)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A LLaMA-like BPE of at most `vocab_size` ids: <unk> <s> </s>, 256 bytes, pieces, <image>, <pad>.

        Unlike LLaMA's, punctuation and newlines are tokens of their own, so " cat" is the same token in "a cat." and "a
        cat,"."""
        first = [CONTROL_TOKENS["unk"], CONTROL_TOKENS["bos"], CONTROL_TOKENS["eos"]]
        model = tokenizers.Tokenizer(models.BPE(unk_token=CONTROL_TOKENS["unk"], byte_fallback=True, fuse_unk=True))
        model.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"),
                pre_tokenizers.Split(Regex(r"\s"), "isolated"),
                pre_tokenizers.Punctuation("isolated"),
                pre_tokenizers.Digits(individual_digits=True),
            ]
        )
        model.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        model.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
        ascii_letters = [chr(code) for code in range(32, 127)]
        model.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocab_size - 2,  # <image> and <pad> come last
                special_tokens=first + BYTES,
                initial_alphabet=ascii_letters,
                min_frequency=2,
                show_progress=False,
            ),
        )
        spec = json.loads(model.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in first]
        return cls(spec).extended(CONTROL_TOKENS["image"], CONTROL_TOKENS["pad"])

    def extended(self, *names: str) -> "Tokenizer":
        """This tokenizer with further control tokens after its last id; names that it already knows keep their ids."""
        added, next_id = list(self.spec.get("added_tokens", [])), self.vocab_size
        for name in names:
            if name not in self.controls:
                flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                added.append({"id": next_id, "content": name, **flags})
                next_id += 1
        return Tokenizer({**self.spec, "added_tokens": added}, self.names)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json, atomically, and beside it the tokenizer_config.json that transformers'
        AutoTokenizer reads.
        """
        write_atomically(path, json.dumps(self.spec, indent=2, ensure_ascii=False) + "\n")
        tokens = {f"{role}_token": name for role, name in self.names.items() if name in self.controls}
        image = {"extra_special_tokens": {"image_token": tokens.pop("image_token")}} if "image_token" in tokens else {}
        kind = "PreTrainedTokenizerFast"  # the tokenizer.json as it stands; LlamaTokenizer would rebuild it
        write_json(
            Path(path).with_name("tokenizer_config.json"),
            {"tokenizer_class": kind, "clean_up_tokenization_spaces": False, **image, **tokens},
        )

    # ------------------------------------------------------------ the control tokens
    def special(self, name: str) -> int:
        """The id of a control token by its name ("</s>") or its role ("eos"); UserError if there is none."""
        try:
            return self.controls[self.names.get(name, name)]
        except KeyError:
            raise UserError(f"The tokenizer has no control token {self.names.get(name, name)!r}.") from None

    @property
    def bos_id(self) -> int:
        return self.special("bos")

    @property
    def eos_id(self) -> int:
        return self.special("eos")

    @property
    def image_id(self) -> int:
        return self.special("image")

    @property
    def pad_id(self) -> int:
        """<pad>, or what the original LLaVA pads with: <unk>, and for want of that the end token."""
        return next(self.controls[n] for n in map(self.names.get, ("pad", "unk", "eos")) if n in self.controls)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._official.get_vocab(with_added_tokens=True).values()) + 1

    # ------------------------------------------------------------ text -> ids
    def encode(self, parts: str | Iterable[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, or of a prompt's parts, and the characters [start, end) that each id came from.

        Nothing is added at either end. A `Control` part counts as one character; every other part is plain text.
        """
        parts = [parts] if isinstance(parts, str) else parts
        text = "".join(self._character_of(p) if isinstance(p, Control) else p.translate(NO_CONTROL) for p in parts)
        try:
            encoding = self._inner.encode(text, add_special_tokens=False)
        except TypeError:
            raise UserError("The text holds half a surrogate pair, which is not a character.") from None
        return [self._official_id.get(i, i) for i in encoding.ids], encoding.offsets

    def _character_of(self, control: Control) -> str:
        self.special(control)
        return self._character[self.names.get(control, control)]

    # ------------------------------------------------------------ ids -> text
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that form no character become U+FFFD."""
        return "".join(self.stream(ids, skip_special))

    def stream(self, ids: Iterable[int], skip_special: bool = True) -> Iterator[str]:
        """Yield text as ids arrive, never half a character; the pieces joined are `decode` of all the ids."""
        decoder = StreamDecoder(self, skip_special)
        for token_id in ids:
            if piece := decoder.add(int(token_id)):
                yield piece
        if piece := decoder.end():
            yield piece

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that one id stands for, which may be part of a character; none for an id without a token."""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._find_bytes(token_id)
        return self._bytes[token_id]

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._text_of_added:
            return self._text_of_added[token_id].encode()
        piece = self._official.id_to_token(token_id) or ""
        if self._byte_level:
            return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in piece)
        if len(piece) == 6 and piece in BYTE_PIECES:
            return bytes([BYTE_PIECES[piece]])
        return piece.replace("▁", " ").encode()


class StreamDecoder:
    """Turns ids into text one at a time, holding back bytes that are not yet a whole character.

    Constant work for each id.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self.tokenizer = tokenizer
        self.skipped = set(tokenizer.controls.values()) if skip_special else set()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer._strips_space  # sentencepiece puts a space before the first word

    def add(self, token_id: int) -> str:
        """The text that this id completes, often one word, sometimes nothing."""
        return self._text(b"" if token_id in self.skipped else self.tokenizer.token_bytes(token_id))

    def end(self) -> str:
        """The text of what is still held back, U+FFFD for bytes that are no whole character."""
        return self._text(b"", final=True)

    def _text(self, data: bytes, final: bool = False) -> str:
        text = self._utf8.decode(data, final)
        if text and self._at_start:
            self._at_start = False
            text = text.removeprefix(" ")
        return text


BYTE_PIECES = {piece: byte for byte, piece in enumerate(BYTES)}


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


BYTE_OF = _byte_level_alphabet()
