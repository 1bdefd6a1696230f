"""Whoever plays the tasks of a suite: scripted agents, models here, models behind a server."""
