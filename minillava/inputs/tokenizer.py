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
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from minillava.errors import UserError
from minillava.files import read_json, write_atomically, write_json
from minillava.inputs.tokenizer_spec import check_spec, first_token

# LLaMA's names, and llava-hf's two
CONTROL_TOKENS = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "image": "<image>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# private-use characters that stand for control tokens inside the library
FIRST_CONTROL, LAST_CONTROL = 0x10F000, 0x10FFFD
NO_CONTROL = dict.fromkeys(range(FIRST_CONTROL, LAST_CONTROL + 1), "\N{REPLACEMENT CHARACTER}")


HALF = re.compile("[\ud800-\udfff]")
LONGEST = 1_000_000  # characters that are encoded at once: 2 seconds and 0.5 GB
LARGEST = 1 << 26  # bytes of a tokenizer.json: 67 MB, twice the largest that is in use


class Control(str):
    """The name of a control token ("<image>", "</s>") as a part of a prompt; any other str is text."""


class Tokenizer:
    """Encodes with character offsets, decodes in a stream; holds the content of one tokenizer.json."""

    def __init__(self, spec: dict, names: dict[str, str] | None = None):
        self.spec = spec
        self.names = {**CONTROL_TOKENS, **(names or {})}
        with _sentences("The tokenizer.json cannot be used"):
            check_spec(spec)
            self._build()

    def _build(self) -> None:
        """The library's tokenizer with a private-use character in place of each control token's name."""
        added, vocabulary = self.spec.get("added_tokens") or [], self.spec["model"]["vocab"]
        named = set(self.names.values())
        self.controls = {t["content"]: t["id"] for t in added if t.get("special") or t["content"] in named}
        if len(self.controls) > len(NO_CONTROL):
            raise UserError(f"it has {len(self.controls)} control tokens, but only {len(NO_CONTROL)} are told apart.")
        self._character = {name: chr(FIRST_CONTROL + i) for i, name in enumerate(self.controls)}
        kept = {key: self.spec.get(key) for key in ("version", "normalizer", "pre_tokenizer", "model")}
        self._inner = tokenizers.Tokenizer.from_str(json.dumps({**kept, "added_tokens": []}))
        self._inner.add_tokens(list(map(self._inner_token, added)))
        # the library gives added tokens other ids
        inner = {t["id"]: self._inner.token_to_id(self._character.get(t["content"], t["content"])) for t in added}
        self._official_id = {own: official for official, own in inner.items()}
        self._text_of_added = {t["id"]: t["content"] for t in added}
        self._pieces = {token_id: piece for piece, token_id in vocabulary.items()}
        self.ids = {*self._pieces, *self._text_of_added}
        self.vocab_size = max(self.ids, default=-1) + 1  # one more than the largest id
        decoder = json.dumps(self.spec.get("decoder"))
        self._byte_level = "ByteLevel" in decoder
        self._strips_space = not self._byte_level and ('"Strip"' in decoder or '"Metaspace"' in decoder)
        self._bytes: dict[int, bytes] = {}
        # LLaMA's post-processor puts <s> first; GPT-2's kin do not
        first = first_token(self.spec.get("post_processor"))
        self.adds_bos = first is not None and first == self.names["bos"] and first in self.controls

    def _inner_token(self, token: dict) -> AddedToken:
        flags = {key: token.get(key, False) for key in ("lstrip", "rstrip", "single_word")}
        name = token["content"]
        normalized = name not in self.controls and token.get("normalized", True)
        return AddedToken(self._character.get(name, name), normalized=normalized, special=False, **flags)

    # ------------------------------------------------------------ making, reading and saving
    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json (or the folder that holds it); names of bos, eos, ...

        from tokenizer_config.json beside it.
        """
        path = Path(path)
        path = path if path.suffix == ".json" else path / "tokenizer.json"
        if not path.exists() and path.with_name("tokenizer.model").exists():
            remedy = "copy that of llava-hf/llava-1.5-7b-hf into it"
            raise UserError(f"{path.parent} has a tokenizer.model but no tokenizer.json: {remedy}.")
        spec, config = read_json(path, LARGEST), path.with_name("tokenizer_config.json")
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
        cat,".
        """
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
        """<pad>, or what the original LLaVA pads with: <unk>, and without that the end token."""
        return self.special(next((r for r in ("pad", "unk") if self.names[r] in self.controls), "eos"))

    # ------------------------------------------------------------ text -> ids
    def encode(self, parts: str | Iterable[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, or of a prompt's parts, and the characters [start, end) that each id came from.

        Nothing is added at either end. A `Control` part counts as one character; every other part is plain text.
        """
        parts = [parts] if isinstance(parts, str) else parts
        text = "".join(self._character_of(p) if isinstance(p, Control) else p.translate(NO_CONTROL) for p in parts)
        if len(text) > LONGEST:
            raise UserError(f"The text has {len(text):,} characters, but at most {LONGEST:,} are read at once.")
        if not text.isascii() and HALF.search(text):
            raise UserError("The text holds half a surrogate pair, which is not a character.")
        with _sentences("The text cannot be read with this tokenizer.json"):
            encoding = self._inner.encode(text, add_special_tokens=False)
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
        piece = self._pieces.get(token_id, "")
        if self._byte_level:
            return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in piece)
        if len(piece) == 6 and piece in BYTE_PIECES:
            return bytes([BYTE_PIECES[piece]])
        return piece.replace("▁", " ").encode()


@contextmanager
def _sentences(beginning: str) -> Iterator[None]:
    """Whatever the library raises, its panics too, as a UserError."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{beginning}: {said.rstrip('.')}.") from None


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
