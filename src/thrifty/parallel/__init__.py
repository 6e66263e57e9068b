"""Parallelism applied to an untouched model from outside."""
