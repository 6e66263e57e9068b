"""Reads run folders back: the ledger of a run, runs compared, and the page that shows both. Needs no torch."""
