# SPDX-License-Identifier: Apache-2.0
"""Streams objects into files by run:ai's streamer, which writes into memory: into mapped files, here.

The order is JSON on standard input: Bucket, Files (Key and Size in bytes) and Dest, a folder. The streamer is used
below its Python layer, which wants torch; what it does on the wire is the same.
"""

import ctypes
import importlib.util
import json
import mmap
import os
import sys
import types

# Stands in for the package itself, whose own __init__ imports torch.
package = types.ModuleType("runai_model_streamer")
package.__path__ = importlib.util.find_spec("runai_model_streamer").submodule_search_locations
sys.modules["runai_model_streamer"] = package

from runai_model_streamer.libstreamer.libstreamer import (  # noqa: E402
    runai_end,
    runai_request,
    runai_response,
    runai_response_str,
    runai_start,
)

# What the streamer's own Python layer asks for at once.
RANGE = 8 << 20


def mapped(path: str, size: int) -> mmap.mmap:
    """Makes a file of this size and maps it to be written."""
    with open(path, "w+b") as f:
        os.posix_fallocate(f.fileno(), 0, size)
        return mmap.mmap(f.fileno(), size)


def main() -> None:
    order = json.load(sys.stdin)
    paths, counts, offsets, sizes, places, maps = [], [], [], [], [], []
    for f in order["Files"]:
        m = mapped(os.path.join(order["Dest"], os.path.basename(f["Key"])), f["Size"])
        maps.append(m)
        base = ctypes.addressof(ctypes.c_char.from_buffer(m))
        paths.append(f"s3://{order['Bucket']}/{f['Key']}")
        starts = range(0, f["Size"], RANGE)
        counts.append(len(starts))
        for off in starts:
            offsets.append(off)
            sizes.append(min(RANGE, f["Size"] - off))
            places.append(base + off)
    streamer = runai_start()
    runai_request(streamer, paths, counts, offsets, sizes, places)
    done = False
    while not done:
        code, _, index, _, done = runai_response(streamer)
        if code:
            sys.exit(f"{paths[index]}: {runai_response_str(code)}")
    runai_end(streamer)


main()
