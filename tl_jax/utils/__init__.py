"""Helpers that know nothing of learning: errors, files, downloads, caches, the command line."""
