"""Mutations of the critical guards: each is taken out in a copy of the tree, and a test has to notice it."""
