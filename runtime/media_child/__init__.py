"""The decoder's child process: untrusted bytes come in on fd 0, 16 kHz mono floats go out on fd 1.

Nothing here is imported by a daemon. `runtime.media` starts it in a process of its own, so that what a hostile file can
do to a demuxer is done to a process that holds nothing: no environment, no network, no way to open a file.
Therefore these modules import the standard library, NumPy, PyAV and soxr alone, and nothing else of ours.
"""
