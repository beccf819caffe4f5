"""Draws what `tmux capture-pane -p -e` wrote as a PNG, in DejaVu Sans Mono on a dark ground.

Run by the picture's test: draw.py CAPTURE PNG COLUMNS ROWS. Knows the attributes that the live view uses and no others;
block elements are drawn as rectangles, so that bars and sparklines have no gaps between cells.
"""

import re
import sys
import unicodedata

from PIL import Image, ImageDraw, ImageFont

FOLDER = "/usr/share/fonts/truetype/dejavu/"
SIZE = 18
MARGIN = 14
GROUND = (24, 26, 31)
TEXT = (214, 218, 224)
COLOURS = {1: (235, 100, 95), 2: (120, 200, 120), 3: (226, 190, 90)}
SGR = re.compile("\x1b\\[([0-9;:]*)m")


class Pen:
    def __init__(self):
        self.reset()

    def reset(self):
        self.colour, self.bold, self.dim, self.reverse = TEXT, False, False, False

    def apply(self, parameters):
        codes = [int(code or 0) for code in re.split("[;:]", parameters)] or [0]
        while codes:
            code = codes.pop(0)
            if code == 0:
                self.reset()
            elif code == 1:
                self.bold = True
            elif code == 2:
                self.dim = True
            elif code == 7:
                self.reverse = True
            elif code == 22:
                self.bold = self.dim = False
            elif code == 27:
                self.reverse = False
            elif code == 39:
                self.colour = TEXT
            elif 30 <= code <= 37:
                self.colour = COLOURS.get(code - 30, TEXT)
            elif code == 38 and codes[:1] == [5]:
                number = codes[1]
                codes = codes[2:]
                # The grey ramp of the 256 colours.
                self.colour = (8 + 10 * (number - 232),) * 3 if number >= 232 else COLOURS.get(number, TEXT)

    @property
    def colours(self):
        front = self.colour
        if self.dim:
            front = tuple((a + b) // 2 for a, b in zip(front, GROUND))
        return (GROUND, front) if self.reverse else (front, GROUND)


def cells(line, pen):
    """Each character of a line with its place and the pen as it was."""
    column = 0
    position = 0
    for match in list(SGR.finditer(line)) + [None]:
        end = match.start() if match else len(line)
        for character in line[position:end]:
            wide = unicodedata.east_asian_width(character) in "WF"
            yield column, 2 if wide else 1, character, pen.colours, pen.bold
            column += 2 if wide else 1
        if match:
            pen.apply(match.group(1))
            position = match.end()


def block(character):
    """A block element as the part of its cell it fills: left, top, right, bottom."""
    code = ord(character)
    if 0x2581 <= code <= 0x2588:
        return 0, 1 - (code - 0x2580) / 8, 1, 1
    if 0x2589 <= code <= 0x258F:
        return 0, 0.12, (0x2590 - code) / 8, 0.88
    return None


def draw(text, columns, rows):
    fonts = [ImageFont.truetype(FOLDER + name, SIZE) for name in ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")]
    width = fonts[0].getlength("M")
    height = sum(fonts[0].getmetrics()) + 1
    image = Image.new("RGB", (round(columns * width) + 2 * MARGIN, rows * height + 2 * MARGIN), GROUND)
    canvas = ImageDraw.Draw(image)
    pen = Pen()
    for row, line in enumerate(text.split("\n")[:rows]):
        y = MARGIN + row * height
        for column, span, character, (front, back), bold in cells(line, pen):
            x = MARGIN + column * width
            right = MARGIN + (column + span) * width
            if back != GROUND:
                canvas.rectangle((round(x), y, round(right) - 1, y + height - 1), fill=back)
            part = block(character)
            if part:
                left, top, end, bottom = part
                canvas.rectangle(
                    (round(x + left * (right - x)), round(y + top * height), round(x + end * (right - x)) - 1,
                     round(y + bottom * height) - 1), fill=front)
            elif character == "─":
                canvas.line((round(x), y + height // 2, round(right), y + height // 2), fill=front)
            elif character != " ":
                canvas.text((x, y), character, font=fonts[bold], fill=front)
    return image


if __name__ == "__main__":
    capture, picture, columns, rows = sys.argv[1:]
    with open(capture, encoding="utf-8") as file:
        draw(file.read(), int(columns), int(rows)).save(picture, optimize=True)
