"""`sparlow spectrum`: how many directions the matrices of a checkpoint use, and the ranks that this suggests.

`matrices` reads one linear after the other, `gradients` finds what trains them on held-out text, `measure` makes a row
of figures of each, `suggest` ranks for [linear.ranks], and `write` the files.
"""
