"""Dated facts with a source each: accelerators, prices, grids, model shapes; and the lookups of them."""
