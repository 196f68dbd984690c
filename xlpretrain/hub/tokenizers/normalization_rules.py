"""The normalization rules of a SentencePiece model, and the character sequences they apply to. Torch-free."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache


@lru_cache(maxsize=1)
def charsmap_joint_pattern(charsmap: bytes) -> str:
    """`joint_pattern` of the rules in `normalizer_spec.precompiled_charsmap`."""
    return joint_pattern(read_rules(charsmap))


def read_rules(charsmap: bytes) -> dict[str, str]:
    """The replacement of each character sequence, read from `normalizer_spec.precompiled_charsmap`.

    The format is the length of a trie, the trie (32-bit units of Darts-clone, which encode the children of nodes), and
    the results, each terminated by a zero byte. SentencePiece applies the longest rule at each position.
    """
    if not charsmap:
        return {}
    (length,) = struct.unpack_from("<I", charsmap)
    units = struct.unpack_from(f"<{length // 4}I", charsmap, 4)
    results = charsmap[4 + length :]
    children: dict[int, list[int]] = defaultdict(list)  # by offset; a child is at offset ^ byte
    for node, unit in enumerate(units):
        if 0 < unit & 0x800000FF < 256:
            children[node ^ unit & 0xFF].append(node)
    rules = {}
    nodes = [(_children_of(units, 0), b"")]
    while nodes:
        start, read = nodes.pop()
        for node in children[start]:
            below, key = _children_of(units, node), read + bytes([node ^ start])
            if units[node] >> 8 & 1:  # end of a rule: child 0 has the start of its result
                begin = units[below] & 0x7FFFFFFF
                rules[key.decode()] = results[begin : results.index(b"\0", begin)].decode()
            nodes.append((below, key))
    return rules


def joint_pattern(rules: Iterable[str]) -> str:
    """A zero-width regular expression (Oniguruma) that matches between characters of the same rule.

    There are hundreds of thousands of rules, but they are products of a few hundred sets of characters.
    """
    firsts: dict[str, set[str]] = defaultdict(set)
    for rule in rules:
        if len(rule) > 1:
            firsts[rule[1:]].add(rule[0])
    products: dict[tuple[frozenset[str], str], set[str]] = defaultdict(set)
    for rest, first in firsts.items():
        products[frozenset(first), rest[1:]].add(rest[0])
    alternatives = []
    for (first_set, rest), second_set in products.items():
        places = [characters(first_set), characters(second_set), *map(characters, rest)]
        for cut in range(1, len(places)):
            alternatives.append(f"(?<={''.join(places[:cut])}){''.join(places[cut:])}")
    later = {character for rest in firsts for character in rest}
    return f"(?={characters(later)})(?:{'|'.join(alternatives)})" if later else "(?!)"


def characters(among: Iterable[str]) -> str:
    """A regular expression for a class of characters."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, among)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"\\x{{{a:x}}}" + (f"-\\x{{{b:x}}}" if b > a else "") for a, b in ranges) + "]"


def _children_of(units: Sequence[int], node: int) -> int:
    """The offset of a node's children: child `byte` is at this offset, exclusive-or the byte."""
    unit = units[node]
    return node ^ ((unit >> 10) << ((unit & 0x200) >> 6))
