"""Tunes: keys and meters, reading and writing ABC and MIDI, and what a model that composes is shown."""
