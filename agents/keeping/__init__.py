"""What keeps a run from being lost, or from being spoiled by another.

In reading order:

    directory.py    one run writes to a directory at a time, and nothing is in its way
    interrupts.py   Ctrl-C and SIGTERM as a wish to stop at the next good moment
    saved.py        which checkpoints a run has, and which of them are intact
    draft.py        a checkpoint that is being written, beside its place until it is whole
    shards.py       tensors that lie in several processes, written and read by all of them
    restoring.py    a learner is put where a checkpoint left it
    fingerprint.py  which model a checkpoint belongs to
    keeper.py       when a run is saved, and what is left of it when it breaks
    undo.py         an update that broke half-way is taken back
    divergence.py   when training has come to nothing
"""
