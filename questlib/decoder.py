"""Decode compressed frames in helper processes, away from your session (notebook 12).

Codecs are foreign code that meets foreign bytes: one that crashes, hangs or asks for
all memory takes down only its helper. And as most of them never let go of Python's
lock, helpers are also what keeps both cores busy.
"""

import json
import os
import queue
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

PROCESSES = 2
SECONDS = 60  # for one frame
MEMORY = 640 << 20  # bytes a helper may allocate
LENGTHS = struct.Struct("<II")


class DecodeError(Exception):
    """A frame that could not be decoded."""


class Decoders:
    """A few helper processes, started when the first compressed frame comes.

    Examples
    --------
    >>> options = dict(rows=1, columns=2, bits_allocated=8, bits_stored=8)
    >>> options |= dict(pixel_representation=0, syntax="1.2.840.10008.1.2.5")
    >>> frame = struct.pack("<16I", 1, 64, *[0] * 14) + bytes([1, 7, 9, 0])
    >>> with Decoders() as decoders:
    ...     decoders.decode(frame, options)
    array([[7, 9]], dtype=uint8)

    Built in notebook 12.
    """

    def __init__(self):
        self.idle = queue.LifoQueue()
        for _ in range(PROCESSES):
            self.idle.put(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while not self.idle.empty():
            stop(self.idle.get())

    def decode(self, frame, options):
        """Return one frame as (row, column) ndarray, or raise DecodeError."""
        helper = self.idle.get()
        try:
            helper = helper or start()
            watchdog = threading.Timer(SECONDS, helper.kill)
            watchdog.start()
            try:
                return ask(helper, frame, options)
            except OSError:
                raise DecodeError("the decoder crashed, or took too long") from None
            finally:
                watchdog.cancel()
        finally:
            if helper and helper.poll() is not None:
                stop(helper)
                helper = None
            self.idle.put(helper)


def start():
    """Start a helper process that runs `serve`."""
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", "from questlib.decoder import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
    )


def stop(helper):
    """End a helper process and close its pipes."""
    if helper:
        helper.kill()
        helper.communicate()


def ask(helper, frame, options):
    """Send one frame to a helper and read the array it answers."""
    text = json.dumps(options).encode()
    helper.stdin.write(LENGTHS.pack(len(text), len(frame)) + text)
    helper.stdin.write(frame)
    helper.stdin.flush()
    answer = helper.stdout.read(LENGTHS.size)
    if len(answer) < LENGTHS.size:
        helper.wait()
        raise OSError("no answer")
    failed, length = LENGTHS.unpack(answer)
    data = helper.stdout.read(length)
    if failed:
        raise DecodeError(data.decode())
    kind = "i" if options["pixel_representation"] else "u"
    array = np.frombuffer(bytearray(data), f"{kind}{options['bits_allocated'] // 8}")
    return array.reshape(options["rows"], options["columns"])


def serve():
    """Answer frames on standard input with arrays on standard output, for ever."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a chatty codec must not write between the answers
    try:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass
    while lengths := requests.read(LENGTHS.size):
        text, frame = (requests.read(length) for length in LENGTHS.unpack(lengths))
        try:
            failed, data = 0, decode(frame, json.loads(text)).tobytes()
        except (
            BaseException
        ) as error:  # a codec written in Rust panics outside Exception
            failed, data = 1, type(error).__name__.encode()
        answers.write(LENGTHS.pack(failed, len(data)) + data)
        answers.flush()


def decode(frame, options):
    """Decode one frame in this process."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    decoder = get_decoder(options.pop("syntax"))
    if "pylibjpeg" in decoder.available_plugins and decoder.UID.endswith(".1.2.5"):
        options["decoding_plugin"] = "pylibjpeg"  # the other one is slow
    array = decoder.as_array(
        encapsulate([frame]),
        index=0,
        raw=True,
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        pixel_keyword="PixelData",
        **options,
    )[0]
    return array.reshape(options["rows"], options["columns"])
