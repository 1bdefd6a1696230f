"""Rollouts by vLLM servers: replies from outside, with the very weights that are trained.

In reading order:

    errors.py      what can go wrong with a server
    client.py      Server: the routes of one, each with a deadline
    wire.py        what a dialogue and a reply look like on the way: pure
    replicas.py    Replicas: several servers, of which some may fail
    session.py     ServedSession: replies, behind the interface of DecodeSession
    continuous.py  ContinuousCollector: dialogues that wait for nobody
    push.py        weights, from a learner to servers
    probe.py       does a server run our model as we run it?
    fleet.py       Fleet: the servers of a run, and the weights that they hold
    mismatch.py    replies whose probabilities are not quite ours
    launch.py      Launched: servers that the run starts itself, and watches
    settings.py    ServingSettings: which servers, and what is asked of them

``worker`` is what runs inside vLLM. Left out: pushes from GPU to GPU, and chance that a seed
repeats.
"""
