"""Cluster files: what ``rayprompt clusters check`` finds in them, and what ``clusters init`` writes. No torch here."""
