"""Resolves what is asked for, searches for the cheapest recipe, explains and writes the plan."""
