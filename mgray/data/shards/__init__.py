"""Shards: an ingested dataset on disk, and random access to any video in it.

A dataset is a folder, local or any address that pyarrow.fs knows:

    manifest.json       version, levels, codec, classes, counts, checksums, what was left out
    index.arrow         one row per video: where it lies at each level, label or labels, size, rate, probe; train before val
    256/00000.arrow     shards of the level whose short side is 256: one record batch per video
    128/00000.arrow     a coarser level; videos that are no larger than it are not in it

Shards are Arrow IPC files, so any Arrow tool reads them. The index holds the place of each record batch in its file, and how
much of it comes before the packets. One clip therefore costs two
rounds of reads or range requests (the packet table, then the packets that are needed), and no footer is read. Parquet was
the alternative: its smallest unit, the page of a row group, is decompressed and copied, and its footer must be read first.

Where sources are passed through, the level `source` holds packet tables only; the packets stay in the source files.
"""
