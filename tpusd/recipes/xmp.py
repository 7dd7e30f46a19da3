"""The XMP packet of a JPEG or WebP file: its attribute `tpusd:recipe` holds the recipe's JSON."""

import html
import re

PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:tpusd="https://tpusd.invalid/xmp/1/" tpusd:recipe="{}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_RECIPE = re.compile(r'tpusd:recipe="([^"]*)"')


def write_packet(recipe: str) -> str:
    return PACKET.format(html.escape(recipe))


def recipe_in(packet: str) -> str | None:
    """The inverse; None if the packet has no such attribute."""
    found = _RECIPE.search(packet)
    return html.unescape(found[1]) if found else None
