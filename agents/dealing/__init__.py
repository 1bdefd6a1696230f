"""How the batches of a run are dealt out to its processes.

In reading order:

    deal.py         which episodes a process plays, and with which random numbers
    minibatches.py  which episodes make which step of the optimisers
"""
