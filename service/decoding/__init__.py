"""Searches for the most probable sequence: generators of runs that know no task."""
