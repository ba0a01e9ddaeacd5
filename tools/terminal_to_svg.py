#!/usr/bin/env python3
"""A picture of a terminal: reads what `tmux capture-pane -e -p` prints, writes an SVG.

tmux capture-pane -e -p | tools/terminal_to_svg.py TITLE >docs/images/run.svg
"""

import html
import re
import sys

COLUMN, LINE, MARGIN, BAR = 8.43, 18, 16, 34
COLOURS = {"36": "#56b6c2", "90": "#5c6370", "32": "#98c379", "31": "#e06c75", "33": "#e5c07b"}


def spans(line, style):
    """(text, style) of one line with its escape sequences; ends with the style that the next line begins with."""
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if not part.startswith("\x1b"):
            if part:
                yield part, style
            continue
        codes = part[2:-1].split(";")
        if codes in (["0"], [""], ["39"]):
            style = ""
        for code in codes:
            if code == "1":
                style = ' font-weight="700"'
            elif code == "2":
                style = ' fill="#7f8694"'
            elif code in COLOURS:
                style = f' fill="{COLOURS[code]}"'
    yield "", style


def main():
    title = sys.argv[1]
    lines = sys.stdin.read().rstrip().split("\n")
    width = max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) * COLUMN + 2 * MARGIN
    height = len(lines) * LINE + BAR + MARGIN
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14">'
    )
    print(f'<rect width="100%" height="100%" rx="9" fill="#1e2127"/>')
    for i, colour in enumerate(("#e06c75", "#e5c07b", "#98c379")):
        print(f'<circle cx="{20 + 20 * i}" cy="17" r="6" fill="{colour}"/>')
    print(
        f'<text x="{width / 2:.0f}" y="22" text-anchor="middle" fill="#7f8694" font-size="12">{html.escape(title)}</text>'
    )
    style = ""
    for row, line in enumerate(lines):
        column = 0
        for text, style in spans(line, style):
            if not text:
                continue
            x, y = MARGIN + column * COLUMN, BAR + (row + 1) * LINE - 4
            shown = html.escape(text).replace(" ", "\u00a0")
            length = f' textLength="{len(text) * COLUMN:.1f}"' if text.strip() else ""
            print(
                f'<text x="{x:.1f}" y="{y}"{style or " fill=" + chr(34) + "#d7dae0" + chr(34)}{length}>{shown}</text>'
            )
            column += len(text)
    print("</svg>")


if __name__ == "__main__":
    main()
