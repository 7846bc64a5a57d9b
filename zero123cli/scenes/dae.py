"""Reads DAE (COLLADA): the visual scene as triangles.

Letters: V vertices, F triangles, N entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

import numpy as np

from ..errors import MeshError
from .parts import MAX_VISITS, Part, Shelf, as_count, check_parts, check_size, fan_out, paint, place_part
from .surface import Material, to_linear

MAX_ELEMENTS = 500_000  # of an XML document
MAX_XML_DEPTH = 1000  # COLLADA nests its nodes
UPRIGHT = {  # what turns the file's axes into ours
    "X_UP": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "Y_UP": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "Z_UP": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
}
MAX_INPUTS = 64  # of a list of polygons
Tag = ElementTree.Element
Picked = tuple[np.ndarray, np.ndarray]  # entries of a source, and which of them each corner takes


class Builder(ElementTree.TreeBuilder):
    """Builds the tree without name spaces; stops at a DOCTYPE, where entities would be declared."""

    depth = elements = 0

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise MeshError("XML with a DOCTYPE", remedy="take the DOCTYPE out")

    def start(self, tag: str, attributes: dict[str, str]) -> Tag:
        self.depth, self.elements = self.depth + 1, self.elements + 1
        if self.depth > MAX_XML_DEPTH or self.elements > MAX_ELEMENTS:
            raise MeshError(f"XML nested deeper than {MAX_XML_DEPTH}, or of over {MAX_ELEMENTS} elements")
        return super().start(tag.rpartition("}")[2], attributes)

    def end(self, tag: str) -> Tag:
        self.depth -= 1
        return super().end(tag.rpartition("}")[2])


def read_dae(data: bytes, shelf: Shelf) -> tuple[list[Part], list[Material]]:
    parser = ElementTree.XMLParser(target=Builder())
    parser.feed(data)
    return Dae(parser.close(), shelf).read()


class Dae:
    def __init__(self, root: Tag, shelf: Shelf) -> None:
        self.root = root
        self.shelf = shelf
        self.names = {tag.attrib["id"]: tag for tag in root.iter() if "id" in tag.attrib}
        self.sources: dict[str, np.ndarray] = {}
        self.materials: dict[str, tuple[int, Material]] = {"": (0, Material((1, 1, 1, 1)))}
        self.effects: dict[str, Material] = {}
        self.shapes: dict[str, list[tuple[str, Part]]] = {}
        self.bound: dict[Tag, dict[str, Tag]] = {}

    def follow(self, tag: Tag, key: str = "url") -> Tag:
        """What an attribute such as url="#id" means."""
        name = tag.attrib[key]
        if not name.startswith("#") or name[1:] not in self.names:
            raise MeshError(f"names {name[:60]!r}, which is not in it")
        return self.names[name[1:]]

    def read(self) -> tuple[list[Part], list[Material]]:
        upright = np.eye(4)
        upright[:3, :3] = UPRIGHT[self.root.findtext("asset/up_axis", "Y_UP").strip()]
        scene = self.root.find("scene/instance_visual_scene")
        if self.root.tag != "COLLADA" or scene is None:
            raise MeshError("no COLLADA scene")
        parts: list[Part] = []
        visits = steps = faces = vertices = 0
        waiting = [(node, upright) for node in reversed(self.follow(scene).findall("node"))]
        while waiting:
            node, matrix = waiting.pop()
            visits, steps = visits + 1, steps + len(node)
            if visits > MAX_VISITS or steps > 10 * MAX_VISITS:
                raise MeshError(f"over {MAX_VISITS} nodes, or a node within itself")
            below = []
            for tag in node:
                if tag.tag in MOVES:
                    matrix = matrix @ MOVES[tag.tag](np.array((tag.text or "").split(), np.float64))
                elif tag.tag in ("lookat", "skew"):
                    raise MeshError(f"a node moved by {tag.tag}")
                elif tag.tag in ("node", "instance_node"):
                    below.append(tag if tag.tag == "node" else self.follow(tag))
                elif tag.tag in ("instance_geometry", "instance_controller"):
                    for part in self.place(tag, matrix):
                        faces, vertices = faces + len(part.faces), vertices + len(part.positions)
                        check_size(faces, vertices)
                        parts.append(part)
                        check_parts(len(parts))
            waiting += [(tag, matrix) for tag in reversed(below)]
            if len(waiting) > MAX_ELEMENTS:
                raise MeshError(f"over {MAX_VISITS} nodes, or a node within itself")
        return parts, [material for _, material in self.materials.values()]

    def place(self, instance: Tag, matrix: np.ndarray) -> Iterator[Part]:
        target = self.follow(instance)
        if target.tag == "controller":  # the shape at rest of what a skin bends
            skin = target.find("skin")
            if skin is None:
                raise MeshError("a controller that is no skin")
            target = self.follow(skin, "source")
        if instance not in self.bound:
            self.bound[instance] = {tag.attrib["symbol"]: tag for tag in instance.iter("instance_material")}
        bound = self.bound[instance]
        key = target.attrib["id"]
        if key not in self.shapes:
            self.shapes[key] = [*self.shape(target)]
        for symbol, part in self.shapes[key]:
            number = self.material(self.follow(bound[symbol], "target")) if symbol in bound else 0
            yield place_part(part._replace(material=number), matrix)

    def shape(self, geometry: Tag) -> Iterator[tuple[str, Part]]:
        """The parts of a geometry, each with the symbol of its material."""
        for tag in geometry.iterfind("mesh/*"):
            if tag.tag not in ("triangles", "polylist", "polygons"):
                if tag.tag in ("tristrips", "trifans"):
                    raise MeshError(f"triangles as {tag.tag}", remedy="export it with plain triangles")
                continue
            inputs = tag.findall("input")
            if len(inputs) > MAX_INPUTS:
                raise MeshError(f"over {MAX_INPUTS} inputs")
            width = 1 + max(as_count({"offset": int(entry.attrib["offset"])}, "offset") for entry in inputs)
            lists = [np.array((found.text or "").split(), np.int64) for found in tag.findall("p")]
            corners = np.concatenate([np.zeros(0, np.int64), *lists]).reshape(-1, width)
            if tag.tag == "polygons":
                lengths = np.array([len(found) // width for found in lists], np.int64)
            elif tag.tag == "polylist":
                lengths = np.array(tag.findtext("vcount", "").split(), np.int64)
            else:
                lengths = np.full(len(corners) // 3, 3)
            if lengths.min(initial=0) < 0 or lengths.max(initial=0) > len(corners) or lengths.sum() != len(corners):
                raise MeshError("polygons that do not fit their corners")
            taken: dict[str, Picked] = {}
            for entry in inputs:
                column = corners[:, int(entry.attrib["offset"])]
                source = self.follow(entry, "source")
                inner = source.findall("input") if source.tag == "vertices" else [entry]
                for one in inner[:MAX_INPUTS]:
                    semantic = one.attrib["semantic"]
                    if semantic in ("POSITION", "TEXCOORD", "COLOR") and semantic not in taken:
                        taken[semantic] = self.source(self.follow(one, "source")), column
            fan, _ = fan_out(lengths)
            for values, column in taken.values():
                if column.min(initial=0) < 0 or column.max(initial=-1) >= len(values):
                    raise MeshError("a triangle names a vertex that is not there")
            if not len(fan):
                continue
            values, column = taken["POSITION"]
            uv = colours = None
            if "TEXCOORD" in taken:
                entries, which = taken["TEXCOORD"]
                uv = entries[which[fan], :2]
            if "COLOR" in taken:
                entries, which = taken["COLOR"]
                colours = paint(entries[which[fan.ravel()]]).reshape(-1, 3, 4)
            yield tag.get("material", ""), Part(values[:, :3], column[fan], 0, uv, colours)

    def source(self, tag: Tag) -> np.ndarray:
        """The entries of a source (N, stride)."""
        key = tag.attrib["id"]
        if key not in self.sources:
            values = np.array((tag.findtext("float_array") or "").split(), np.float64)
            accessor = tag.find("technique_common/accessor")
            stride = as_count({"stride": int(accessor.get("stride", "1"))}, "stride") if accessor is not None else 3
            self.sources[key] = values[: len(values) // stride * stride].reshape(-1, stride)
        return self.sources[key]

    def material(self, tag: Tag) -> int:
        """Its number; made on first use."""
        key = tag.attrib["id"]
        if key not in self.materials:
            instance = tag.find("instance_effect")
            effect = self.follow(instance) if instance is not None else tag
            name = effect.attrib["id"]
            if name not in self.effects:
                self.effects[name] = self.effect(effect)
            self.materials[key] = len(self.materials), self.effects[name]
        return self.materials[key][0]

    def effect(self, effect: Tag) -> Material:
        texture, colour = effect.find(".//diffuse/texture"), effect.findtext(".//diffuse/color")
        if texture is not None:
            name = texture.attrib["texture"]
            named = {tag.attrib["sid"]: tag for tag in effect.iter("newparam")}
            for kind in ("sampler2D/source", "surface/init_from"):
                name = named[name].findtext(kind, name).strip() if name in named else name
            image = self.names[name]
            place = image.findtext("init_from/ref") or image.findtext("init_from") or ""
            return Material((1, 1, 1, 1), self.shelf.picture(place.strip()))
        rgb = np.array((colour or "1 1 1").split()[:3], np.float64)
        red, green, blue = to_linear(np.clip(rgb, 0, 1)).tolist()
        return Material((red, green, blue, 1))


def _shift(values: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = values.reshape(3)
    return matrix


def _stretch(values: np.ndarray) -> np.ndarray:
    return np.diag([*values.reshape(3), 1])


def _turn(values: np.ndarray) -> np.ndarray:
    """About an axis by an angle in degrees."""
    *axis, degrees = values
    x, y, z = np.array(axis) / (np.linalg.norm(axis) or 1)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] += math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return matrix


MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "matrix": lambda values: values.reshape(4, 4),
    "translate": _shift,
    "rotate": _turn,
    "scale": _stretch,
}
