"""A byte-complete CLIP vocabulary small enough for a tiny text encoder, in the files CLIPTokenizer reads."""
import json
import re
from collections import Counter

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+")
# Words captions do not use, so that other prompts are not all single letters.
OTHERS = """the and with in on at wearing has photo image drawing girl boy style color colour hair head face eyes jacket
coat shirt hat dark light bright small large one two very this that is it for to by from no not her his their tag
photograph woman's man's purple yellow orange violet cyan gold silver crest spiky checkered checkerboard pattern""".split()


def alphabet():
    """Byte → the character GPT-2 and CLIP write it as; dict in the order of CLIP's vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(plain))
    return table


def build(texts, most=1000):
    """(vocab, merges) by byte-pair encoding of the words in `texts`, until every word met twice is one token."""
    table = alphabet()
    counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
    # Words met once are the random tags.
    counts = Counter({word: n for word, n in counts.items() if n > 20 and len(word) > 1})
    counts.update({word: 1 for word in OTHERS})
    words = {}
    for word, n in counts.items():
        symbols = [table[b] for b in word.encode()]
        symbols[-1] += "</w>"
        words[word] = (symbols, n)
    merges = []
    while len(merges) < most:
        pairs = Counter()
        for symbols, n in words.values():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, (symbols, n) in words.items():
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i:i + 2] = ["".join(best)]
                i += 1
    tokens = list(table.values()) + [c + "</w>" for c in table.values()] + ["".join(m) for m in merges] + [BOS, EOS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return vocab, merges


def save(folder, vocab, merges):
    """Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    token = lambda content: {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {"bos_token": token(BOS), "eos_token": token(EOS), "pad_token": EOS, "unk_token": token(EOS)}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    settings = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": LENGTH,
                "tokenizer_class": "CLIPTokenizer", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
