"""Decoding and encoding of video: the only package that imports PyAV.

Ingest turns a source file into packets without a container: H.264, closed GOPs of 32, 7 B frames that nothing refers
to, so that at a stride of 2 or more most packets are never decoded. Planes are limited-range BT.601, as in most sources.
Or it indexes the source's own packets (passthrough). Either way a clip is decoded from just the packets that its frames
depend on, cropped before anything is converted, and resized in one call.
"""
