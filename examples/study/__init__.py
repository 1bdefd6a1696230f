"""The study: the four claims of Video-MTR, re-enacted with the tiny MLLM on haystack videos.

``plan`` says what is run, ``runs`` runs it, ``stats`` compares, ``figures`` and ``page`` show.
Results, figures and what to make of them: ``docs/study.md``.
"""
