"""Utilities without machine learning: errors, files, downloads, caches, the command line."""
