"""Makes the files of this folder: pictures as other programs write them, and what LittleCMS makes of inks.

Needs Pillow with LittleCMS: `python make.py`. Made with Pillow 13.0.0 and LittleCMS 2.19.
"""

import itertools
import struct
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageCms

HERE = Path(__file__).parent


def lab_of_light(light):
    """CIE L*a*b* (D50) of linear sRGB light."""
    to_xyz = ((0.4361, 0.3851, 0.1431), (0.2225, 0.7169, 0.0606), (0.0139, 0.0971, 0.7142))
    white = (0.9643, 1.0, 0.8252)
    x, y, z = (sum(a * b for a, b in zip(row, light)) / w for row, w in zip(to_xyz, white))
    f = lambda t: t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
    return 116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))


def light_of_inks(amounts):
    """What inks leave of white light: murkier inks than the plain formula's, so that the two can be told apart."""
    inks = ((0.02, 0.36, 0.72), (0.60, 0.03, 0.22), (0.92, 0.78, 0.03), (0.02, 0.02, 0.02))
    light = [1.0, 1.0, 1.0]
    for amount, ink in zip(amounts, inks):
        light = [old * (1 - amount**1.2 * (1 - left)) for old, left in zip(light, ink)]
    return light


def ink_profile(grid=5):
    """An ICC profile (version 2) of four inks: one table of `grid` to the fourth colours."""
    table = b""
    for steps in itertools.product(range(grid), repeat=4):
        lightness, a, b = lab_of_light(light_of_inks([step / (grid - 1) for step in steps]))
        words = (lightness / 100 * 0xFF00, (a + 128) * 256, (b + 128) * 256)
        table += struct.pack(">3H", *(round(max(0, min(0xFFFF, word))) for word in words))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    straight = struct.pack(">2H", 0, 0xFFFF)
    lut = b"mft2" + bytes(4) + bytes([4, 3, grid, 0]) + identity + struct.pack(">2H", 2, 2)
    lut += straight * 4 + table + straight * 3
    name = b"Inks of a test\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(4 + 4 + 2 + 1 + 67)
    tags = {
        b"desc": description,
        b"cprt": b"text" + bytes(4) + b"No copyright, use freely\0",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D),
        b"A2B0": lut,
    }
    at = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        directory += tag + struct.pack(">2I", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D) + bytes(48)
    return header + directory + body


def inks():
    """`inks.jpg`, squares of 16 pixels; `inks.txt`, the inks of each and the sRGB that LittleCMS makes of them."""
    profile = ink_profile()
    (HERE / "inks.icc").write_bytes(profile)
    amounts = list(itertools.product((0, 100, 255), (0, 160, 255), (0, 200), (0, 90))) + [(0, 0, 0, 255)] * 4
    squares = Image.new("CMYK", (10, len(amounts) // 10))
    squares.putdata(amounts)
    picture = squares.resize((160, 16 * squares.height), Image.Resampling.NEAREST)
    picture.save(HERE / "inks.jpg", quality=95, subsampling=0, icc_profile=profile)
    to_srgb = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), "CMYK", "RGB",
        renderingIntent=ImageCms.Intent.PERCEPTUAL,
    )
    colours = ImageCms.applyTransform(squares, to_srgb)
    lines = [" ".join(map(str, (*ink, *rgb))) for ink, rgb in zip(amounts, colours.get_flattened_data())]
    (HERE / "inks.txt").write_text("\n".join(lines) + "\n")


def several():
    """Files of three pictures each."""
    frames = [Image.new("RGB", (12, 8), colour) for colour in ("red", "green", "blue")]
    for name in ("frames.png", "frames.webp", "pages.tif"):
        frames[0].save(HERE / name, save_all=True, append_images=frames[1:])


if __name__ == "__main__":
    inks()
    several()
