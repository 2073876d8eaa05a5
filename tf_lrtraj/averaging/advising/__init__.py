"""Recommends an average of snapshots from a few measured losses.

`measurement_plan` decides what is measured, `sweep` lists the candidate averages, `measured`
measures losses and stores them, `advice` holds the result, and `advisor.advise` runs all of it.
"""
