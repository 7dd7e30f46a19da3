"""Makes tpusd/assets/clip from OpenCLIP's wheel: the merges of CLIP's tokenizer, from which its vocabulary follows.

    pip download --no-deps open_clip_torch==3.3.0
    python tools/make_clip_merges.py open_clip_torch-3.3.0-py3-none-any.whl

The wheel has OpenAI's own file of merges, of which CLIP uses the first 48,894. The same wheel gives the same bytes.
"""

import argparse
import gzip
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "tpusd" / "assets" / "clip"
SOURCE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
VOCAB_SIZE = 49408
BYTES, SPECIAL = 2 * 256, 2  # tokens that no merge makes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = zipfile.ZipFile(parser.parse_args().wheel)
    lines = gzip.decompress(wheel.read(SOURCE)).decode().split("\n")
    merges = lines[1 : 1 + VOCAB_SIZE - BYTES - SPECIAL]  # the first line is a version
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = "\n".join(merges) + "\n"
    (FOLDER / "merges.txt.gz").write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    (FOLDER / "LICENSE").write_bytes(wheel.read(licence))
    print(f"{FOLDER}: {len(merges)} merges, {(FOLDER / 'merges.txt.gz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
