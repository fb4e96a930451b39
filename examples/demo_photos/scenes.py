"""Procedural landscapes: each scene is a function that paints a picture, always the same for the same arguments.

`photos.py` enlarges the picture to the size of a photo, adds grain and writes the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias, TypeVar

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from examples.demo_photos.brushes import (
    BLACK,
    WHITE,
    Color,
    Size,
    below,
    clouds,
    curve,
    glow,
    mix,
    noise,
    ridge,
    shaded,
    shine,
    sky,
    stars,
    tint,
    water,
    window,
)

__all__ = ["SCENES", "Scene"]

T = TypeVar("T")
Scene: TypeAlias = Callable[[Random, Size, int], Image.Image]
"""Paints a picture of the given size. The number is the mood, which selects one of the color sets of the scene."""


def pick(moods: Sequence[T], mood: int) -> T:
    """The set of colors of a mood."""
    return moods[mood % len(moods)]


DAWNS: Sequence[Sequence[Color]] = (
    [(38, 54, 105), (118, 110, 160), (233, 150, 140), (255, 205, 140)],
    [(60, 130, 200), (120, 178, 225), (190, 218, 236), (236, 240, 240)],
    [(60, 26, 66), (160, 50, 78), (238, 116, 70), (255, 200, 110)],
    [(30, 60, 86), (86, 140, 156), (190, 206, 190), (250, 232, 190)],
)


def _ranges(rng: Random, size: Size, dawn: Sequence[Color], horizon: float) -> Image.Image:
    picture = sky(size, dawn)
    tint(picture, mix(dawn[-1], WHITE, 0.55), window(clouds(rng, size, (3, 6)), 120, 255, 150))
    sun = (rng.uniform(0.2, 0.8), horizon - rng.uniform(0.12, 0.22))
    picture = shine(picture, mix(dawn[-1], WHITE, 0.3), glow(size, sun, size[0] * 0.45, 0.8))
    picture = shine(picture, WHITE, glow(size, sun, size[0] * 0.06))
    near = mix(dawn[0], BLACK, 0.72)
    layers = 5
    for layer in range(layers):
        share = (layer + 1) / layers
        base = size[1] * (horizon + 0.13 * share * share + 0.02 * layer)
        skyline = ridge(rng, size[0], base, size[1] * (0.34 - 0.2 * share), 0.52)
        color = mix(mix(dawn[-2], dawn[1], 0.45), near, share**0.8)
        ground = shaded(rng, size, mix(color, BLACK, 0.3 * share + 0.05), mix(color, dawn[-1], 0.3), (12, 9))
        picture.paste(ground, (0, 0), below(size, skyline))
        if layer < layers - 1:  # mist lies in the valley behind the next range
            low = below(size, [(x, y + size[1] * 0.05) for x, y in skyline])
            mist = curve(low.filter(ImageFilter.GaussianBlur(size[1] * 0.03)), lambda gray: gray * 0.34)
            tint(picture, mix(dawn[-2], dawn[1], 0.4), mist)
    return picture


def mountains(rng: Random, size: Size, mood: int) -> Image.Image:
    """Ranges behind ranges, in the haze of the morning."""
    return _ranges(rng, size, pick(DAWNS, mood), 0.62)


def lake(rng: Random, size: Size, mood: int) -> Image.Image:
    """A mountain range and its reflection."""
    shore = round(size[1] * 0.58)
    dawn = pick(DAWNS, mood + 2)
    land = _ranges(rng, (size[0], shore), dawn, 0.72)
    picture = Image.new("RGB", size)
    picture.paste(land, (0, 0))
    picture.paste(water(rng, land, (size[0], size[1] - shore), mix(dawn[0], BLACK, 0.5), 0.3), (0, shore))
    bank = below(size, [(x, shore + (y - shore) * 0.6) for x, y in ridge(rng, size[0], shore + 6, 16, 0.6)])
    ImageDraw.Draw(bank).rectangle((0, shore + 5, size[0], size[1]), fill=0)
    tint(picture, mix(dawn[0], BLACK, 0.8), bank)
    return picture


def sea(rng: Random, size: Size, mood: int) -> Image.Image:
    """The sun over the open sea, and its path on the waves."""
    dawn = pick(DAWNS, mood + 2)
    horizon = round(size[1] * 0.52)
    picture = sky((size[0], horizon), dawn)
    veil = clouds(rng, picture.size, (4, 9))
    tint(picture, mix(dawn[-2], WHITE, 0.5), window(veil, 110, 240, 190))
    tint(picture, mix(dawn[1], BLACK, 0.25), window(veil, 190, 255, 90))
    x = rng.uniform(0.3, 0.7)
    picture = shine(picture, dawn[-1], glow(picture.size, (x, 0.86), size[0] * 0.5, 0.9))
    picture = shine(picture, WHITE, curve(glow(picture.size, (x, 0.86), size[0] * 0.05), lambda gray: gray * 3))
    # Waves: noise that is stretched sideways and compressed towards the horizon.
    sea_size = (size[0], size[1] - horizon)
    surface = sky(sea_size, [mix(dawn[-2], dawn[0], 0.4), mix(dawn[0], BLACK, 0.35), mix(dawn[0], BLACK, 0.65)])
    waves = clouds(rng, sea_size, (10, 60), 4)
    left, right, depth = size[0] * 0.3, size[0] * 0.7, sea_size[1]
    waves = waves.transform(
        sea_size,
        Image.Transform.QUAD,
        (0, 0, left, depth, right, depth, size[0], 0),
        Image.Resampling.BICUBIC,
    )
    surface = shine(surface, mix(dawn[1], WHITE, 0.2), window(waves, 110, 230, 110))
    lane = glow(sea_size, (x, 0.1), size[0] * 0.42)
    surface = shine(surface, dawn[-1], ImageChops.multiply(window(waves, 130, 200), lane))
    whole = Image.new("RGB", size)
    whole.paste(picture, (0, 0))
    whole.paste(surface, (0, horizon))
    return whole


def aurora(rng: Random, size: Size, mood: int) -> Image.Image:
    """Northern lights over a dark forest."""
    picture = sky(size, [(6, 10, 28), (10, 22, 50), (18, 46, 70), (30, 66, 80)])
    stars(rng, picture, 1400, 0.8)
    lights: Sequence[Sequence[Color]] = (
        [(150, 110, 255), (60, 230, 200), (70, 255, 150)],
        [(255, 90, 160), (150, 110, 255), (60, 230, 200)],
    )
    for color, place in zip(pick(lights, mood), (0.26, 0.4, 0.52), strict=True):
        rays = window(noise(rng, size, (size[0] // 14, 2)), 60, 255)
        folds = window(noise(rng, size, (9, 2)), 80, 230)
        curtain = Image.new("L", size)
        draw = ImageDraw.Draw(curtain)
        wave, phase = rng.uniform(1.2, 2.6), rng.uniform(0, 6.3)
        points = [
            (
                i * size[0] / 80,
                size[1] * (place + 0.09 * math.sin(phase + wave * i / 12) + 0.03 * math.sin(i / 3)),
            )
            for i in range(81)
        ]
        # The lower edge is sharp and the light fades upwards: draw strips that get fainter with their height.
        for strip in range(26, 0, -1):
            rise = strip * size[1] * 0.013
            higher = [(px, py - rise) for px, py in reversed(points)]
            draw.polygon([*points, *higher], fill=round(235 * (1 - strip / 27)))
        curtain = curtain.filter(ImageFilter.GaussianBlur(size[1] * 0.012))
        curtain = ImageChops.multiply(curtain, ImageChops.lighter(folds, curve(rays, lambda gray: gray * 0.5)))
        picture = shine(picture, color, ImageChops.multiply(curtain, curve(rays, lambda gray: 110 + gray * 0.55)))
    return _forest(rng, picture, (4, 9, 14))


def _forest(rng: Random, picture: Image.Image, color: Color) -> Image.Image:
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, height * 0.93, width, height), fill=color)
    for depth, count in ((0.35, 90), (0.0, 60)):
        shade = mix(color, (40, 66, 72), depth)
        for _ in range(count):
            x, foot = rng.random() * width, height * rng.uniform(0.93, 1.02)
            tall = height * rng.uniform(0.07, 0.16 if depth else 0.24)
            for tier in range(7):
                top = foot - tall * (1 - tier / 8)
                half = tall * (0.035 + 0.026 * tier)
                draw.polygon([(x, top), (x - half, top + tall * 0.24), (x + half, top + tall * 0.24)], fill=shade)
    return picture


def dunes(rng: Random, size: Size, mood: int) -> Image.Image:
    """Sand dunes, each crest with a lit side and a shadow side."""
    sand, dusk = pick(
        [((236, 178, 112), (96, 50, 46)), ((222, 132, 84), (70, 30, 50)), ((240, 206, 160), (110, 84, 90))],
        mood,
    )
    picture = sky(size, [mix((70, 120, 190), dusk, 0.3), mix((150, 180, 210), sand, 0.3), mix(sand, WHITE, 0.5)])
    ripples = window(clouds(rng, size, (14, 70), 4), 60, 220)
    for layer in range(5):
        share = layer / 4
        middle = size[1] * (0.46 + 0.13 * layer)
        swing, wave, phase = size[1] * (0.04 + 0.05 * share), rng.uniform(1.0, 2.2), rng.uniform(0, 6.3)
        crest = [
            (
                x,
                middle
                + swing * (math.sin(phase + wave * 6.28 * x / size[0]) - abs(math.sin(phase + 4.4 * x / size[0]))),
            )
            for x in range(0, size[0] + 8, 8)
        ]
        body = below(size, crest)
        lit = mix(mix(sand, WHITE, 0.35), sand, share)
        tint(picture, lit, body)
        # The shadow side hangs from the crest, and is soft at its lower edge.
        fall = [(x + size[1] * 0.1 + 40 * math.sin(x / 90), y + size[1] * (0.10 + 0.10 * share)) for x, y in crest]
        shadow = ImageChops.subtract(body, below(size, fall).filter(ImageFilter.GaussianBlur(size[1] * 0.02)))
        tint(picture, mix(lit, dusk, 0.75), curve(shadow, lambda gray: gray * 0.8))
        grain = ImageChops.multiply(ImageChops.multiply(ripples, body), Image.new("L", size, round(30 + 60 * share)))
        tint(picture, mix(sand, dusk, 0.5), grain)
    x = rng.uniform(0.2, 0.8)
    return shine(picture, mix(sand, WHITE, 0.4), glow(size, (x, 0.36), size[0] * 0.3, 0.8))


def city(rng: Random, size: Size, mood: int) -> Image.Image:
    """A skyline at the blue hour with lit windows, reflected in the river."""
    shore = round(size[1] * 0.68)
    dusk: Sequence[Color] = pick(
        [
            [(18, 24, 66), (60, 58, 120), (190, 100, 120), (255, 178, 120)],
            [(8, 16, 44), (20, 48, 96), (60, 110, 150), (160, 190, 190)],
        ],
        mood,
    )
    picture = sky((size[0], shore), dusk)
    tint(picture, mix(dusk[-2], WHITE, 0.2), window(clouds(rng, picture.size, (3, 8)), 130, 255, 120))
    draw = ImageDraw.Draw(picture)
    for layer in range(3):
        wall = mix(mix(dusk[1], dusk[2], 0.4), (14, 16, 32), 0.4 + 0.28 * layer)
        x = -20.0
        while x < size[0]:
            wide = rng.uniform(0.022, 0.062) * size[0]
            middle = 1 - abs((x / size[0]) - 0.5)
            top = shore * (1 - rng.uniform(0.12, 0.62 - 0.13 * layer) * middle)
            draw.rectangle((x, top, x + wide, shore), fill=wall)
            if rng.random() < 0.3:
                draw.line((x + wide / 2, top, x + wide / 2, top - shore * 0.07), fill=wall, width=3)
            lamp = rng.choice([(255, 214, 140), (255, 232, 190), (255, 186, 110), (200, 225, 255)])
            step = rng.choice([9, 11, 13])
            for wy in range(round(top) + 8, shore - 6, step):
                for wx in range(round(x) + 5, round(x + wide) - 6, step):
                    if rng.random() < 0.16 + 0.16 * layer:
                        draw.rectangle((wx, wy, wx + 4, wy + 5), fill=mix(wall, lamp, rng.uniform(0.35, 1.0)))
            x += wide + rng.uniform(-2, 16)
    lights = curve(picture.filter(ImageFilter.GaussianBlur(9)), lambda value: value - 90)
    picture = ImageChops.screen(picture, lights)
    whole = Image.new("RGB", size)
    whole.paste(picture, (0, 0))
    whole.paste(water(rng, picture, (size[0], size[1] - shore), (6, 10, 26), 0.34), (0, shore))
    return whole


def bokeh(rng: Random, size: Size, mood: int) -> Image.Image:
    """Lights far out of focus."""
    base, colors = pick(
        [
            ((30, 14, 24), [(255, 170, 70), (255, 110, 60), (255, 214, 140), (255, 80, 110)]),
            ((8, 20, 34), [(80, 190, 255), (120, 255, 220), (190, 140, 255), (255, 255, 255)]),
            ((16, 30, 20), [(190, 255, 120), (255, 240, 130), (90, 220, 160), (255, 200, 90)]),
        ],
        mood,
    )
    picture = sky(size, [mix(base, BLACK, 0.4), base, mix(base, colors[0], 0.25)])
    picture = shine(picture, mix(base, colors[1], 0.4), window(clouds(rng, size, (4, 3), 3), 120, 255, 160))
    for blur, count, radius in ((14, 40, 0.085), (6, 60, 0.055), (2, 60, 0.03)):
        layer = Image.new("RGB", size)
        for _ in range(count):
            spot = rng.uniform(0.4, 1.0) * radius * size[1]
            x, y = rng.random() * size[0], size[1] * min(1.1, max(-0.1, rng.gauss(0.55, 0.26)))
            color, strength = rng.choice(colors), rng.uniform(0.12, 0.5)
            disc = Image.new("RGB", (round(2 * spot) + 2, round(2 * spot) + 2))
            rim = mix(BLACK, color, strength * 1.5)
            pen = ImageDraw.Draw(disc)
            pen.ellipse((0, 0, 2 * spot, 2 * spot), fill=mix(BLACK, color, strength), outline=rim, width=3)
            corner = (round(x - spot), round(y - spot))
            box = (*corner, corner[0] + disc.width, corner[1] + disc.height)
            layer.paste(ImageChops.screen(layer.crop(box), disc), corner)
        picture = ImageChops.screen(picture, layer.filter(ImageFilter.GaussianBlur(blur)))
    return picture


def flowers(rng: Random, size: Size, mood: int) -> Image.Image:
    """Blossoms in front of a blurred meadow."""
    leaf = pick([(70, 120, 50), (48, 104, 70), (104, 128, 54)], mood)
    picture = sky(size, [mix(leaf, (220, 235, 190), 0.65), leaf, mix(leaf, BLACK, 0.55)])
    light = clouds(rng, size, (7, 6), 3)
    picture = shine(picture, mix(leaf, (255, 250, 190), 0.5), window(light, 120, 255, 190))
    petal = pick([(250, 244, 250), (236, 70, 90), (255, 196, 60), (180, 130, 240)], mood)
    for blur, count, reach in ((16, 18, 0.10), (7, 8, 0.15), (0, 4, 0.25)):
        layer = Image.new("RGBA", size)
        heads = sorted((rng.uniform(0.25, 0.85), rng.random()) for _ in range(count))
        if not blur:
            heads = [(0.34 + 0.3 * rng.random(), (i + 0.5 + rng.uniform(-0.3, 0.3)) / count) for i in range(count)]
        for y, x in heads:
            _blossom(rng, layer, (x * size[0], y * size[1]), reach * size[1] * rng.uniform(0.7, 1.0), petal, leaf)
        soft = layer.filter(ImageFilter.GaussianBlur(blur)) if blur else layer
        picture.paste(soft, (0, 0), soft)
    return picture


def _blossom(rng: Random, layer: Image.Image, at: tuple[float, float], reach: float, petal: Color, leaf: Color) -> None:
    x, y = at
    pen = ImageDraw.Draw(layer)
    bend = rng.uniform(-0.3, 0.3) * reach
    stem = [(x + bend * (i / 12) ** 2, y + i * (layer.height - y) / 12) for i in range(13)]
    pen.line(stem, fill=(*mix(leaf, BLACK, 0.25), 255), width=max(3, round(reach * 0.06)))
    count, turn = rng.randint(11, 16), rng.uniform(0, 6.3)
    squash = rng.uniform(0.7, 0.95)
    for ring, length in ((0, 1.0), (1, 0.78)):
        for i in range(count):
            angle = turn + (i + 0.5 * ring) * 2 * math.pi / count
            shade = mix(petal, mix(petal, (60, 20, 60), 0.6), 0.15 + 0.35 * rng.random() - 0.1 * ring)
            half = 3.6 / count
            outline: list[tuple[float, float]] = []
            for step in range(-8, 9):
                spread = step / 8
                far = length * reach * (1 - 0.55 * abs(spread) ** 3) * rng.uniform(0.98, 1.0)
                lean = angle + half * spread * 0.75
                outline.append((x + far * math.cos(lean), y + far * squash * math.sin(lean)))
            pen.polygon([(x, y), *outline], fill=(*shade, 255))
            tip = (
                x + 0.82 * length * reach * math.cos(angle),
                y + 0.82 * length * reach * squash * math.sin(angle),
            )
            pen.line([(x, y), tip], fill=(*mix(shade, (80, 30, 60), 0.35), 255), width=max(1, round(reach * 0.012)))
    for _ in range(round(60 + reach)):
        angle, far = rng.uniform(0, 6.3), reach * 0.27 * math.sqrt(rng.random())
        seed = mix((250, 190, 40), (120, 60, 20), rng.random())
        cx, cy, dot = x + far * math.cos(angle), y + far * squash * math.sin(angle), reach * 0.022
        pen.ellipse((cx - dot, cy - dot, cx + dot, cy + dot), fill=(*seed, 255))


SILKS: Sequence[Color] = (
    (226, 60, 60),
    (250, 190, 50),
    (50, 110, 190),
    (245, 240, 230),
    (40, 150, 120),
    (240, 120, 40),
)


def balloons(rng: Random, size: Size, mood: int) -> Image.Image:
    """Hot-air balloons over the hills."""
    picture = _ranges(rng, size, pick(DAWNS, mood + 1), 0.78)
    places = [(0.2, 0.42, 0.13), (0.68, 0.3, 0.16), (0.46, 0.62, 0.065), (0.87, 0.6, 0.05), (0.4, 0.2, 0.05)]
    for px, py, share in places:
        x, y = (px + rng.uniform(-0.05, 0.05)) * size[0], (py + rng.uniform(-0.04, 0.04)) * size[1]
        radius = share * size[1]
        gores = rng.sample(SILKS, 3)
        _balloon(picture, (x, y), radius, gores)
    return picture


def _balloon(picture: Image.Image, at: tuple[float, float], radius: float, gores: Sequence[Color]) -> None:
    big = 3  # draw it three times as large, so that its edges are smooth in the picture
    side = round(radius * 2 * big)
    skin = Image.new("RGB", (side, round(side * 1.6)))
    shape = Image.new("L", skin.size)
    pen, cut = ImageDraw.Draw(skin), ImageDraw.Draw(shape)
    mouth = side * 1.22
    cut.ellipse((0, 0, side - 1, side - 1), fill=255)
    funnel = [
        (side * 0.045, side * 0.68),
        (side * 0.955, side * 0.68),
        (side * 0.6, mouth),
        (side * 0.4, mouth),
    ]
    cut.polygon(funnel, fill=255)
    count = 13
    for i in range(count, 0, -1):
        # The edges of the gores are meridians: ellipses as high as the balloon, each narrower than the last.
        reach = side / 2 * math.sin(i / count * math.pi / 2)
        pen.ellipse((side / 2 - reach, -side * 0.02, side / 2 + reach, side * 1.5), fill=gores[i % len(gores)])
    light = glow(skin.size, (0.32, 0.24), side * 0.75, 0.75)
    skin = shine(Image.blend(skin, Image.new("RGB", skin.size), 0.22), (210, 200, 180), light)
    pen = ImageDraw.Draw(skin)
    basket = (side * 0.42, side * 1.36, side * 0.58, side * 1.5)
    for rope in (0.42, 0.58):
        cut.line((side * rope, mouth, side * rope, basket[1]), fill=255, width=max(2, side // 120))
        pen.line((side * rope, mouth, side * rope, basket[1]), fill=(60, 40, 30), width=max(2, side // 120))
    cut.rectangle(basket, fill=255)
    pen.rectangle(basket, fill=(96, 62, 36))
    small = (skin.width // big, skin.height // big)
    picture.paste(
        skin.resize(small, Image.Resampling.LANCZOS),
        (round(at[0] - radius), round(at[1] - radius)),
        shape.resize(small, Image.Resampling.LANCZOS),
    )


def planet(rng: Random, size: Size, mood: int) -> Image.Image:
    """A planet, half in its own shadow, among the stars."""
    picture = sky(size, [(4, 5, 14), (10, 10, 26), (6, 6, 16)])
    for color in ((70, 40, 120), (30, 70, 130), (120, 50, 70)):
        picture = shine(picture, color, window(clouds(rng, size, (3, 2)), 120, 255, 150))
    stars(rng, picture, 2600)
    side = round(size[1] * 0.8)
    # Bands like a gas giant's, continents, a moon.
    dark, middle, light, cells = pick(
        [
            ((96, 50, 34), (214, 150, 100), (250, 226, 190), (2, 14)),
            ((16, 50, 110), (60, 140, 190), (236, 246, 250), (5, 5)),
            ((60, 60, 70), (150, 150, 156), (232, 230, 226), (9, 9)),
        ],
        mood,
    )
    surface = ImageOps.colorize(clouds(rng, (side, side), cells, 7), dark, light, middle)
    disc = Image.new("L", (side * 2, side * 2))
    ImageDraw.Draw(disc).ellipse((2, 2, side * 2 - 3, side * 2 - 3), fill=255)
    day = curve(glow((side, side), (0.3, 0.34), side * 0.78), lambda gray: (gray / 255) ** 0.55 * 290)
    surface = ImageChops.multiply(surface, Image.merge("RGB", (day, day, day)))
    at = (round(size[0] * rng.uniform(0.3, 0.7) - side / 2), round(size[1] * 0.5 - side / 2))
    center = ((at[0] + side * 0.46) / size[0], (at[1] + side * 0.46) / size[1])
    picture = shine(picture, mix(middle, WHITE, 0.2), glow(size, center, side * 0.68, 0.5))
    picture.paste(surface, at, disc.resize((side, side), Image.Resampling.LANCZOS))
    return picture


def woods(rng: Random, size: Size, mood: int) -> Image.Image:
    """Trunks in the mist, the light between them."""
    mist, leaf = pick(
        [
            ((232, 214, 170), (190, 96, 30)),
            ((206, 224, 200), (84, 128, 50)),
            ((214, 222, 232), (110, 120, 140)),
        ],
        mood,
    )
    picture = sky(size, [mix(mist, leaf, 0.35), mist, mix(mist, WHITE, 0.3), mix(leaf, BLACK, 0.3)])
    picture = shine(picture, mix(mist, WHITE, 0.5), glow(size, (rng.uniform(0.3, 0.7), 0.42), size[0] * 0.4))
    for layer in range(4):
        near = layer / 3
        bark = mix(mix(mist, leaf, 0.3), (34, 26, 22), 0.2 + 0.75 * near)
        trunks = Image.new("L", size)
        pen = ImageDraw.Draw(trunks)
        foot = size[1] * (0.72 + 0.09 * layer)
        for _ in range(30 - 8 * layer):
            x, half = rng.random() * size[0], size[0] * (0.0025 + 0.010 * near**1.5) * rng.uniform(0.7, 1.3)
            end = x + rng.gauss(0, 0.012) * size[0]
            drop = foot + rng.uniform(-0.01, 0.05) * size[1]
            pen.polygon([(end - half * 0.6, 0), (end + half * 0.6, 0), (x + half, drop), (x - half, drop)], fill=255)
            for _ in range(5):
                start, side, reach = (
                    rng.uniform(0.05, 0.55),
                    rng.choice([-1, 1]),
                    size[0] * rng.uniform(0.02, 0.07),
                )
                bx = end + (x - end) * start
                pen.line(
                    [(bx, start * size[1]), (bx + side * reach, start * size[1] - reach * 0.8)],
                    fill=255,
                    width=max(1, round(half * 0.35)),
                )
        texture = shaded(rng, size, mix(bark, BLACK, 0.35), mix(bark, mist, 0.35), (60, 6))
        picture.paste(texture, (0, 0), trunks)
        crown = window(clouds(rng, size, (9, 9)), 150 - 12 * layer, 190, 220)
        top = sky(size, [(255, 255, 255), (190, 190, 190), (20, 20, 20), BLACK, BLACK]).convert("L")
        tint(
            picture,
            mix(mix(mist, leaf, 0.4 + 0.5 * near), BLACK, 0.25 * near),
            ImageChops.multiply(crown, top),
        )
        floor = shaded(rng, size, mix(leaf, BLACK, 0.35 + 0.35 * near), mix(leaf, mist, 0.6 - 0.45 * near), (30, 40))
        edge = below(size, ridge(rng, size[0], foot + 0.03 * size[1], 0.03 * size[1], 0.5))
        picture.paste(floor, (0, 0), edge.filter(ImageFilter.GaussianBlur(3)))
        if layer < 3:
            tint(picture, mist, Image.new("L", size, 34))
    return picture


SCENES: Sequence[Scene] = (
    mountains,
    sea,
    balloons,
    aurora,
    flowers,
    city,
    lake,
    dunes,
    woods,
    planet,
    bokeh,
)
"""Every scene, in the order of the demo's photos."""
