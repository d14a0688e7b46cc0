"""Numbers in OpenCV's old font, which its version 5 no longer has."""

import cv2
import numpy as np

# Hershey's simplex characters (A. V. Hershey, "Calligraphy for Computers", 1967; public domain):
# the left and right limit of the character, then its strokes, each a row of points x, y. Letters
# stand for numbers, R for 0; y grows downwards and the base line is at 9.
_GLYPHS = {
    "0": r"H\ QFNGLJKOKRLWNZQ[S[VZXWYRYOXJVGSFQF",
    "1": r"H\ NJPISFS[",
    "2": r"H\ LKLJMHNGPFTFVGWHXJXLWNUQK[Y[",
    "3": r"H\ MFXFRNUNWOXPYSYUXXVZS[P[MZLYKW",
    "4": r"H\ UFKTZT UFU[",
    "5": r"H\ WFMFLOMNPMSMVNXPYSYUXXVZS[P[MZLYKW",
    "6": r"H\ XIWGTFRFOGMJLOLTMXOZR[S[VZXXYUYTXQVOSNRNOOMQLT",
    "7": r"H\ YFO[ KFYF",
    "8": r"H\ PFMGLILKMMONSOVPXRYTYWXYWZT[P[MZLYKWKTLRNPQOUNWMXKXIWGTFPF",
    "9": r"H\ XMWPURRSQSNRLPKMKLLINGQFRFUGWIXMXRWWUZR[P[MZLX",
    ".": r"MW RYQZR[SZRY",
    "-": r"E_ IR[R",
}
_BASE_LINE = 9
_SHIFT = 16  # bits behind the point of a pixel's coordinates
_MARGIN = 3  # pixels that a line may reach beyond its points


def draw_number(
    canvas: np.ndarray,
    text: str,
    at_xy: tuple[int, int],
    scale: float,
    colour: tuple[int, int, int],
) -> None:
    """Draws what `cv2.putText` of OpenCV 4 draws with FONT_HERSHEY_SIMPLEX, smooth, in place.

    Args:
        canvas: uint8 [H, W, 3]; what lies outside is cut off.
        text: Of digits, points and minus signs.
        at_xy: The pixel where the base line begins.
        scale: 1 is about 21 pixels high.
        colour: In the canvas's order of channels.

    Raises:
        KeyError: another character.
    """
    # In a window, so that places anywhere in a large picture fit 32 bits.
    x, y = at_xy
    left, top = max(x - _MARGIN, 0), max(y - round(22 * scale) - _MARGIN, 0)
    window = canvas[top : max(y + round(22 * scale) + _MARGIN, 0), left:]
    window = window[:, : round(30 * scale * len(text)) + 2 * _MARGIN]
    if not window.size:
        return
    size = round(scale * (1 << _SHIFT))
    start, base = (x - left) << _SHIFT, ((y - top) << _SHIFT) - _BASE_LINE * size
    for character in text:
        limits, *strokes = _GLYPHS[character].split(" ")
        low, high = _numbers(limits)
        start -= size * low
        lines = [
            np.array([start, base]) + size * np.reshape(_numbers(stroke), (-1, 2))
            for stroke in strokes
        ]
        for line in lines:
            points = [line.astype(np.int32)]
            cv2.polylines(window, points, False, colour, 1, cv2.LINE_AA, _SHIFT)
        start += size * high


def _numbers(letters: str) -> list[int]:
    return [ord(letter) - ord("R") for letter in letters]
