"""Draw the floors of the package, and who imports from whom: `python docs/draw_floors.py`.

Made from the imports in the files and from the table of CONTRIBUTING.md.
"""

from __future__ import annotations

from html import escape

from import_graph import ROOT, floor_of, floors, imports

PICTURE = ROOT / "docs" / "figures" / "floors.svg"

ROW, BAR, CELL, TOP, RIGHT = 34, 260, 38, 130, 100
INK, PALE, DOT = "#1f2d3d", "#e8eef5", "#2f6db3"


def title(names: list[str]) -> str:
    """What a floor is called: its folder, or its files."""
    first, *rest = names
    return f"{first}, {rest[0]}, ..." if len(rest) > 1 else ", ".join(names)


def draw() -> str:
    """The picture as SVG, the same for the same imports."""
    names = list(floors())
    graph = imports()
    arrows = {
        (floor_of(module), floor_of(other)) for module, others in graph.items() for other in others
    }
    width, height = BAR + CELL * len(names) + RIGHT, TOP + ROW * len(names) + 10
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
        f"width='{width}' height='{height}' font-family='sans-serif' font-size='14' fill='{INK}'>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
    ]
    for row, (name, rooms) in enumerate(floors().items()):
        y, x = TOP + ROW * row, BAR + CELL * row
        bar = f"width='{width - RIGHT}' height='{ROW - 6}' rx='4' fill='{PALE}'"
        lines += [
            f"<rect x='8' y='{y + 3}' {bar}/>",
            f"<text x='18' y='{y + 22}'>{escape(title(rooms))}</text>",
            f"<text transform='translate({x + 21},{TOP - 8}) rotate(-50)'>{rooms[0]}</text>",
        ]
        for column, below in enumerate(names):
            if (name, below) in arrows and below != name:
                cx, cy = BAR + CELL * column + CELL / 2, y + ROW / 2
                lines.append(
                    f"<circle cx='{cx:g}' cy='{cy:g}' r='7' fill='{DOT}'>"
                    f"<title>{escape(name)} imports from {escape(below)}</title></circle>"
                )
        lines.append(
            f"<rect x='{x + 8}' y='{y + 8}' width='{CELL - 16}' height='{ROW - 16}' "
            f"fill='none' stroke='{INK}' stroke-opacity='.35'/>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw())
