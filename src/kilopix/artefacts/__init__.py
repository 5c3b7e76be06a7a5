"""Whose an artefact is, and whether it is still what was written: locks and digests."""
