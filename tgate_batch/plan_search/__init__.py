"""Finds the cheapest plan that keeps a promised limit, and confirms it on fresh prompts.

The algorithm is pure: it asks for losses and gets them. It loads no model and opens no file.
"""
