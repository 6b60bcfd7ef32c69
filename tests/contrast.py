"""How well a colour is seen on another one."""


def contrast(one: str, other: str) -> float:
    """The ratio, 1 to 21, that https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio has of two `#rrggbb`."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    shares = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
