"""Parses the collectives of a compiled program from XLA's text form (``compiled.as_text()``)."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

WORK = (
    "fusion",
    "convolution",
    "dot",
    "custom-call",
    "reduce",
    "reduce-window",
    "select-and-scatter",
    "while",
    "call",
    "conditional",
)
"""Opcodes that take time on a device, other than communication."""


class Collective(NamedTuple):
    """One collective operation of a program.

    kind: one of KINDS.  sizes: {element type: bytes} of the whole array, which is one device's
    array before it is scattered or after it is gathered.  group: number of participating devices,
    None for all.  times: executions per run; None inside a loop whose trip count depends on data.
    asynchronous: the device computes something else in the meantime.  source: the operation's name
    in JAX.
    """

    kind: str
    sizes: dict[str, float]
    group: int | None
    times: int | None
    asynchronous: bool
    source: str

    @property
    def bytes(self) -> float:
        """Bytes of all element types, for one execution."""
        return sum(self.sizes.values())


class Instruction(NamedTuple):
    """``name = shape opcode(operands), attributes``; shape is the result's."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str


def collectives(text: str) -> list[Collective]:
    """All collectives that the program reaches from its entry, in program order.

    On TPUs an asynchronous collective is split over several fusions; it is listed once.
    Raises ValueError if the text has no entry computation.
    """
    computations, entry = parse(text)
    operations, chains = [], set()
    for collective, chain in _walk(computations, entry, 1, False):
        if chain is None or chain not in chains:
            operations.append(collective)
            chains.add(chain)
    return operations


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """{name: instructions} of a program's computations, and the name of the entry computation.

    Raises ValueError if there is no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, body = None, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            body = computations[header["name"]] = []
            entry = header["name"] if header["entry"] else entry
        elif line.startswith("}"):
            body = None
        elif body is not None and (start := _START.match(line)):
            shape, rest = _shape_and_rest(line[start.end() :])
            call = _CALL.match(rest)
            if call:
                end = _closing(rest, call.end() - 1)
                body.append(
                    Instruction(
                        start["name"],
                        shape,
                        call["opcode"],
                        rest[call.end() : end],
                        rest[end + 1 :],
                    )
                )
    if entry is None:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    return computations, entry


def sizes(shape: str) -> dict[str, float]:
    """{element type: bytes} of a shape: "(f32[2,3]{1,0}, bf16[])" -> {"f32": 24, "bf16": 2}."""
    totals: dict[str, float] = {}
    for dtype, axes in _ARRAY.findall(shape):
        bits = re.search(r"\d+", dtype)
        width = 8 if dtype == "pred" else int(bits[0]) if bits else 0
        totals[dtype] = (
            totals.get(dtype, 0)
            + math.prod(int(size) for size in axes.split(",") if size) * width / 8
        )
    return totals


_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .*\{$")
_START = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = ")
_CALL = re.compile(r"\s*(?P<opcode>[\w-]+)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|\w+_computations?)=(?:%?([\w.-]+)|\{([^}]*)\})"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] *\{([^}]*)\})"
)
_AXIS = re.compile(r"'([^']*)'=(\d+)")
_NAME = re.compile(r"[\w.-]+")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


def _group(attributes: str) -> int | None:
    """Devices in a group: XLA writes {{0,1},{2,3}}, [groups,size], or mesh and reduced axes."""
    groups = _GROUPS.search(attributes)
    if groups is None:
        return None
    members, size, mesh, axes = groups.groups()
    if mesh is not None:
        sizes = {name: int(length) for name, length in _AXIS.findall(mesh)}
        return math.prod(sizes[name] for name in re.findall(r"'([^']*)'", axes))
    return int(size) if size else len(members.split(",")) if members else None


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at ``start``."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text)


def _shape_and_rest(text: str) -> tuple[str, str]:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    return text[:end], text[end:]


def _walk(
    computations: dict[str, list[Instruction]], name: str, times: int | None, asynchronous: bool
) -> Iterator[tuple[Collective, str | None]]:
    """Yields (collective, chain): parts of one asynchronous collective share a chain."""
    body = computations.get(name, [])
    for number, instruction in enumerate(body):
        kind = instruction.opcode.removesuffix("-start")
        overlaps = asynchronous or _overlaps(body, number)
        if kind in KINDS:
            chain = _CHAIN.search(instruction.attributes)
            yield (
                _collective(instruction, kind, times, overlaps or chain is not None),
                chain[1] if chain else None,
            )
            continue
        called = {key: [one or part.strip().lstrip("%") for part in (several or one).split(",")]
                  for key, one, several in _CALLED.findall(instruction.attributes)}  # fmt: skip
        trips = _trips(computations, instruction, called) if instruction.opcode == "while" else 1
        inner = None if times is None or trips is None else times * trips
        for computation in itertools.chain.from_iterable(called.values()):
            yield from _walk(computations, computation, inner, overlaps)


def _overlaps(body: list[Instruction], number: int) -> bool:
    """Whether the instruction is a start, and work is scheduled before its done."""
    start = body[number]
    if not start.opcode.endswith("-start"):
        return False
    done = start.opcode.removesuffix("-start") + "-done"
    later = itertools.takewhile(
        lambda other: other.opcode != done or start.name not in _NAME.findall(other.operands),
        body[number + 1 :],
    )
    return any(other.opcode in WORK for other in later)


def _collective(
    instruction: Instruction, kind: str, times: int | None, asynchronous: bool
) -> Collective:
    group = _group(instruction.attributes)
    shape = instruction.shape
    if instruction.opcode != kind and kind != "all-reduce":
        shape = _results(shape)
    # The result of a reduce-scatter is one device's part of the whole array.
    scale = group or 1 if kind == "reduce-scatter" else 1
    totals = {dtype: size * scale for dtype, size in sizes(shape).items()}
    source = _SOURCE.search(instruction.attributes)
    return Collective(kind, totals, group, times, asynchronous, source[1] if source else "")


def _results(shape: str) -> str:
    """The results in the shape (operands, results, contexts ...) of an asynchronous start."""
    parts, depth, start = [], 0, 1
    for position, character in enumerate(shape):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            parts.append(shape[start:position])
            start = position + 1
    return parts[1] if len(parts) > 1 else shape


def _trips(
    computations: dict[str, list[Instruction]], loop: Instruction, called: dict[str, list[str]]
) -> int | None:
    """Trip count of a loop: XLA's own, or else the bound in its condition; None if unknown."""
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    condition = computations.get(called.get("condition", [""])[0], [])
    constants = {
        instruction.name: instruction.operands
        for instruction in condition
        if instruction.opcode == "constant"
    }
    if (
        not condition
        or condition[-1].opcode != "compare"
        or "direction=LT" not in condition[-1].attributes
    ):
        return None
    bound = condition[-1].operands.split(",")[-1].split()[-1].lstrip("%")
    return int(constants[bound]) if constants.get(bound, "").isdecimal() else None
