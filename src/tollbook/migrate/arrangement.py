"""Boxes placed beside one another in layers: what is referred to stands left of what refers to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP_X, GAP_Y, MARGIN = 84.0, 26.0, 24.0
COLUMN_HEIGHT_MAX = 1_500.0  # a layer that is taller goes on in another column
SHEET_RATIO = 1.7
SWEEPS = 8
BETWEEN = "\0"  # in the name of a lane, and in no table's
LANE = 8.0  # the height that a line takes where it passes a layer

Edge = tuple[str, str]


@dataclass(slots=True)
class Box:
    """A box: its size, and where its upper left corner is put."""

    width: float
    height: float
    x: float = 0.0
    y: float = 0.0

    @property
    def middle(self) -> float:
        """How far down its middle is."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Sheet:
    """How large the sheet is, and the lanes that links which pass a layer are to go through, in order."""

    width: float
    height: float
    lanes: Mapping[Edge, Sequence[Box]]


def place(boxes: dict[str, Box], links: Sequence[Edge]) -> Sheet:
    """Place the boxes; a link leads from a box to one it refers to."""
    lanes: dict[Edge, list[Box]] = {}
    edges = sorted({(one, other) for one, other in links if one != other})
    groups = _find_groups(boxes, edges)
    sizes = [_place_group(group, boxes, edges, lanes) for group in groups]
    width, height = _pack(groups, sizes, boxes)
    for name in [name for group in groups for name in group if BETWEEN in name]:
        del boxes[name]
    return Sheet(width, height, lanes)


def _find_groups(names: Iterable[str], edges: Sequence[Edge]) -> list[list[str]]:
    """Return what hangs together, the largest first."""
    leader = {name: name for name in names}

    def lead(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for one, other in edges:
        leader[lead(one)] = lead(other)
    groups: dict[str, list[str]] = {}
    for name in leader:
        groups.setdefault(lead(name), []).append(name)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))


def _place_group(
    group: list[str], boxes: dict[str, Box], edges: Sequence[Edge], lanes: dict[Edge, list[Box]]
) -> tuple[float, float]:
    """Place a group with its corner at 0, 0, and its lanes, which are added to it. Returns its size."""
    members = set(group)
    own = [edge for edge in edges if edge[0] in members]
    layers = _find_layers(group, own)
    near: dict[str, list[str]] = {name: [] for name in group}
    depth = {name: index for index, layer in enumerate(layers) for name in layer}
    for one, other in own:
        way = [one]
        for index in range(depth[one] - 1, depth[other], -1):
            way.append(f"{one}{BETWEEN}{other}{BETWEEN}{index}")
            boxes[way[-1]] = Box(0, LANE)
            layers[index].append(way[-1])
            near[way[-1]] = []
        lanes[one, other] = [boxes[name] for name in way[1:]]
        group += way[1:]
        for before, after in pairwise([*way, other]):
            near[before].append(after)
            near[after].append(before)
    _order(layers, near)
    columns = [column for layer in layers for column in _split(layer, boxes)]
    x = height = 0.0
    placed: set[str] = set()
    for column in columns:
        bottom = 0.0
        for name in column:
            box = boxes[name]
            beside = [boxes[other].middle for other in near[name] if other in placed]
            wanted = sum(beside) / len(beside) - box.height / 2 if beside else bottom
            box.x, box.y = x, max(bottom, wanted)
            bottom = box.y + box.height + GAP_Y
        placed.update(column)
        height = max(height, bottom - GAP_Y)
        width = max(boxes[name].width for name in column)
        for name in column:
            if BETWEEN in name:
                boxes[name].width = width
        x += width + GAP_X
    top = min(boxes[name].y for name in group)
    for name in group:
        boxes[name].y -= top
    return x - GAP_X, height - top


def _find_layers(group: Sequence[str], edges: Sequence[Edge]) -> list[list[str]]:
    """Return layers by the longest way to a box that refers to none; of a circle, one link is passed over."""
    out: dict[str, list[str]] = {name: [] for name in group}
    for one, other in edges:
        out[one].append(other)
    depth: dict[str, int] = {}
    for start in group:
        under_way: list[tuple[str, int]] = [(start, 0)]
        open_ones = {start}
        while under_way:
            name, index = under_way.pop()
            if name in depth:
                continue
            targets = out[name]
            if index < len(targets):
                under_way.append((name, index + 1))
                if targets[index] not in depth and targets[index] not in open_ones:
                    open_ones.add(targets[index])
                    under_way.append((targets[index], 0))
            else:
                depth[name] = 1 + max((depth[other] for other in targets if other in depth), default=-1)
                open_ones.discard(name)
    layers: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for name in group:
        layers[depth[name]].append(name)
    return layers


def _order(layers: Sequence[list[str]], near: Mapping[str, Sequence[str]]) -> None:
    """Order each layer by where its neighbours stand, to and fro, so that few lines cross."""
    at = {name: float(index) for layer in layers for index, name in enumerate(layer)}
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            middles = {
                name: sum(at[other] for other in near[name]) / len(near[name]) if near[name] else at[name]
                for name in layer
            }
            layer.sort(key=lambda name: (middles[name], name))
            for index, name in enumerate(layer):
                at[name] = index - len(layer) / 2


def _split(layer: Sequence[str], boxes: Mapping[str, Box]) -> list[list[str]]:
    columns: list[list[str]] = [[]]
    height = 0.0
    for name in layer:
        if columns[-1] and height + boxes[name].height > COLUMN_HEIGHT_MAX:
            columns.append([])
            height = 0.0
        columns[-1].append(name)
        height += boxes[name].height + GAP_Y
    return columns


def _pack(
    groups: Sequence[Sequence[str]], sizes: Sequence[tuple[float, float]], boxes: Mapping[str, Box]
) -> tuple[float, float]:
    """Put the groups into rows of a sheet that is wider than high."""
    area = sum((width + GAP_X) * (height + GAP_Y) for width, height in sizes)
    widest = max([(area * SHEET_RATIO) ** 0.5, *(width for width, _ in sizes), 320.0])
    x = y = tallest = used = 0.0
    for group, (width, height) in zip(groups, sizes, strict=True):
        if x and x + width > widest:
            x, y, tallest = 0.0, y + tallest + GAP_Y * 1.5, 0.0
        for name in group:
            boxes[name].x += x + MARGIN
            boxes[name].y += y + MARGIN
        x += width + GAP_X / 2
        tallest = max(tallest, height)
        used = max(used, x - GAP_X / 2)
    return max(used, 200.0) + 2 * MARGIN + 24, max(y + tallest, 40.0) + 2 * MARGIN
